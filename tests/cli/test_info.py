import builtins
import json
import platform

import pytest
import torch
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.commands.info import MISSING, PACKAGES, as_text, describe


def test_it_says_what_a_report_needs(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"python: {platform.python_version()}" in lines
    assert f"torch: {torch.__version__}" in lines
    assert [line.split(":")[0].strip() for line in lines if line.startswith("  ")][-len(PACKAGES) :] == list(PACKAGES)
    assert any(line.startswith("FFmpeg: libavcodec ") for line in lines)


def test_json_is_the_same(capsys):
    assert main(["info", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert as_text(printed) == as_text(describe())


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_without_a_gpu_it_says_why_kernels_are_plain():
    found = describe()
    assert found["GPUs"] == [] and "GPUs: none" in as_text(found)
    assert found["kernels"].startswith("plain PyTorch: ")
    assert found["formats"]["fp8"] == "cpu has no fast product in fp8"


def test_what_is_missing_is_told(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name in ("av", "psutil"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("sana_streaming.sana_core.commands.info.PACKAGES", ("no-such-package",))
    found = describe()
    assert found["packages"] == {"no-such-package": MISSING}
    assert "psutil is not installed" in found["memory"] and "PyAV cannot be imported" in found["FFmpeg"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU that works")
def test_a_gpu_that_cannot_be_used_is_told(monkeypatch):
    """As with a driver that is too old."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = describe()
    assert found["GPUs"][0].startswith("cuda:0: cannot be used (")
    assert found["kernels"].startswith("plain PyTorch: ")


def test_options_are_written_out(capsys):
    with pytest.raises(SystemExit):
        main(["precision", "profile", "plan.json", "--size", "64x64"])
    assert "unrecognized arguments: --size 64x64" in capsys.readouterr().err
