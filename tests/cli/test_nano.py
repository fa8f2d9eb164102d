"""The built-in model as the command line's default. Most of it needs no trained weights: a toy stands in."""

import json
import shutil

import clips
import pytest
import toys
import video_files
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.toy import make_toy_bundle


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path / "prompts"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = make_toy_bundle(tmp_path_factory.mktemp("nano"))
    nano.write_manifest(folder, "toy")
    return folder


@pytest.fixture
def standin(toy, monkeypatch):
    """A toy in the place of the built-in model."""
    monkeypatch.setattr(nano, "FOLDER", toy)
    return toy


def edit(source, folder, *more):
    command = ["edit", source, folder / "out.mp4", "--prompt", "make it night", "--max-frames", 9, "--steps", 1, *more]
    return main(list(map(str, command)))


@pytest.mark.parametrize("more", [[], ["--model", "nano"]], ids=["by default", "by name"])
def test_it_edits_at_its_own_size(standin, tmp_path, monkeypatch, capsys, more):
    """Whatever lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path, *more, "--report", tmp_path / "r.json") == 0
    info = probe(tmp_path / "out.mp4")
    assert (info.height, info.width) == (nano.HEIGHT, nano.WIDTH) == (160, 256)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("model: nano (built in), a small model")
    assert "black and white" in first and "plain background" in first
    weights = json.loads((tmp_path / "r.json").read_text())["weights"]
    assert weights["model"] == str(standin / "dit" / "model.safetensors")


def test_another_size_and_a_resumed_stream_keep_theirs(standin, tmp_path):
    source, state = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors"
    assert edit(source, tmp_path, "--height", 64, "--width", 96, "--save-state", state) == 0
    assert main(["edit", str(source), str(tmp_path / "b.mp4"), "--resume", str(state), "--max-frames", "40"]) == 0
    info = probe(tmp_path / "b.mp4")
    assert (info.height, info.width) == (64, 96)


def test_other_weights_say_nothing_of_it(standin, tmp_path, capsys):
    options = ["--model", standin, "--height", 64, "--width", 64]
    assert edit(video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9)), tmp_path, *options) == 0
    assert "nano" not in capsys.readouterr().out.splitlines()[0]


def test_random_weights_are_of_presets_alone(standin, tmp_path, capsys):
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9))
    assert edit(clip, tmp_path, "--model", "nano", "--random-weights") == 2
    assert "needs a preset as --model, not nano" in capsys.readouterr().err


def test_a_broken_install(toy, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(toy, tmp_path / "broken")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr(nano, "FOLDER", folder)
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9))
    for command in (["edit", clip, tmp_path / "out.mp4", "--prompt", "x"], ["inspect", "nano"]):
        assert main(list(map(str, command))) == 2
        errors = capsys.readouterr().err
        assert "lacks vae/diffusion_pytorch_model.safetensors; install the package again" in errors
        assert errors.count("\n") == 1


def test_inspect(standin, capsys):
    assert main(["inspect", "nano"]) == 0
    printed = capsys.readouterr().out
    assert main(["inspect", str(standin)]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.nano
@pytest.mark.slow
def test_the_trained_model_edits(tmp_path, capsys):
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path) == 0
    assert probe(tmp_path / "out.mp4").num_frames == 9
