"""``precision show`` and ``precision apply``."""

import pytest
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.precision.plan import choose_plan, preset


def run(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["precision", *map(str, arguments)]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_show_says_who_gets_what(capsys):
    lines = run(capsys, "show", "paper-mpq").splitlines()
    assert lines[0] == "plan paper-mpq on streaming-2b"
    assert "ffn.in         fp8 in blocks 0-5, nvfp4 in blocks 6-19" in lines
    assert "their bytes: 4.21 GB in bf16, 1.67 GB under the plan (2.53 times fewer)" in lines
    assert "ffn.in         fp8 in block 0, nvfp4 in blocks 1-3" in run(capsys, "show", "paper-mpq", "--model", "nano")


def test_what_show_writes_is_read(capsys, tmp_path):
    (tmp_path / "plan.json").write_text(run(capsys, "show", "paper-mpq", "--json"))
    assert choose_plan(tmp_path / "plan.json", DiTConfig()) == preset("paper-mpq", DiTConfig())


def test_apply_is_convert(capsys, tmp_path):
    said = run(capsys, "apply", "int8", "nano", tmp_path / "small.safetensors")
    assert "precision int8: " in said
    assert "is there already" in run(capsys, "apply", "int8", "nano", tmp_path / "small.safetensors", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "fp9"), "neither a preset"),
        (("show", "fp8", "--model", "absent"), "absent does not exist"),
        (("apply", "fp8", "absent", "x.safetensors"), "absent does not exist"),
    ],
)
def test_refusals(capsys, arguments, message):
    assert message in run(capsys, *arguments, code=2)
