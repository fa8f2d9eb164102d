"""``examples``: the list, runs on one's own clip, and the release's clips by way of a hub on this machine."""

import json
from fractions import Fraction

import clips
import fake_hub
import pytest
import toys
import video_files
from sana_streaming.sana_core.cli import build_parser, main
from sana_streaming.sana_core.commands.examples import edit_arguments
from sana_streaming.sana_core.examples import example_run, list_examples
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.toy import make_toy_bundle

RELEASE = "Efficient-Large-Model/SANA-Streaming"
CLIP = "source/09_style_transfer_source.mp4"
MODES = ["long_streaming", "bidirectional_short"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for mode, variant in zip(MODES, ("streaming", "bidirectional"), strict=True):
        make_toy_bundle(folder / mode, variant=variant)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


@pytest.fixture
def empty_hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def examples(*command):
    return main(["examples", *map(str, command)])


@pytest.mark.parametrize("modes", [MODES, MODES[:1], MODES[1:]], ids=len)
def test_the_list(capsys, modes):
    assert examples("list", *(["--mode", modes[0]] if len(modes) == 1 else [])) == 0
    printed = capsys.readouterr().out
    for example in list_examples():
        assert all(part in printed for part in (example.name, example.prompt, example.source))
    settings = {
        "long_streaming": "streaming-2b, 1280x704, 969 frames, 4 steps, cfg 1, flow shift 8, seed 0, motion score 0, window 2",
        "bidirectional_short": "bidirectional-2b, 1280x704, 81 frames, 50 steps, cfg 6, flow shift 8, seed 0, motion score 10",
    }
    assert [mode for mode in MODES if f"{mode}: {settings[mode]}" in printed] == modes


@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_a_clip_of_ones_own(mode, toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    video = clips.clip("bigbuckbunny.mp4")
    command = ["run", "style", "--mode", mode, "--video", video, "--model", toy / mode, "--max-frames", 9, "--steps", 2]
    assert examples(*command, "--height", 64, "--width", 64, "--report", "r.json") == 0
    summary = json.loads((tmp_path / "r.json").read_text())
    assert summary["mode"] == mode
    assert summary["prompt"] == example_run("style").prompt
    assert (summary["settings"]["height"], summary["settings"]["options"]["steps"]) == (64, 2)
    info = probe(tmp_path / f"style_{mode}.mp4")
    assert (info.num_frames, info.frame_rate, info.has_audio) == (9, 25, True)
    assert "nano" not in capsys.readouterr().out


def parsed(*command):
    return build_parser().parse_args(["examples", "run", *map(str, command)])


@pytest.mark.parametrize("mode", MODES)
def test_the_releases_settings_reach_edit(mode):
    options = parsed(
        "local", "--mode", mode, "--video", "my.mp4", "--model", "some", "--device", "cpu", "--out", "o.mkv"
    )
    run, edit = example_run("local", mode, "my.mp4"), edit_arguments(options, example_run("local", mode, "my.mp4"))
    for name in ("mode", "prompt", "max_frames", "steps", "cfg_scale", "seed", "num_cached_blocks"):
        assert getattr(edit, name) == getattr(run, name), name
    assert (str(edit.input), str(edit.output), edit.model, edit.device) == ("my.mp4", "o.mkv", "some", "cpu")
    assert (edit.negative_prompt or "") == run.negative_prompt
    assert (edit.flow_shift, edit.motion_score) == ((8.0, 10) if mode == "bidirectional_short" else (None, None))
    # The size is that of the model: the release's is what edit takes unless the model is nano.
    assert (edit.height, edit.width, edit.size, edit.fps) == (None,) * 4


def test_nano_goes_on_and_says_that_it_does_not_know_these(toy, tmp_path, monkeypatch, capsys):
    nano.write_manifest(toy / MODES[0], "toy")
    monkeypatch.setattr(nano, "FOLDER", toy / MODES[0])
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9))
    assert examples("run", "local", "--video", clip, "--out", tmp_path / "o.mp4", "--steps", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the built-in model nano does not know the edit 'local'")
    assert "--model streaming-2b" in lines[0]
    assert (probe(tmp_path / "o.mp4").height, probe(tmp_path / "o.mp4").width) == (nano.HEIGHT, nano.WIDTH)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["water"], "there is no example 'water'; use one of local, background, style"),
        (["style"], f"the clip hf://{RELEASE}/{CLIP} is not on this machine; add --download to fetch it, or edit one"),
        (["style", "--video", "gone.mp4"], "gone.mp4: no such file"),
        (["style", "--video", "clip.mp4", "--out", "o.gif"], "cannot write .gif"),
        (["style", "--video", "clip.mp4", "--mode", "bidirectional_short"], "needs a bidirectional model"),
        (["style", "--video", "clip.mp4", "--steps", 0], "steps 0 is too few"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, empty_hub_cache, command, message):
    monkeypatch.chdir(tmp_path)
    video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9))
    before = sorted(tmp_path.iterdir())
    assert examples("run", *command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_releases_clip(toy, tmp_path):
    """Fetched when asked for, and then found without asking anybody, offline too."""
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(9), rate=Fraction(30))
    command = ["examples", "run", "style", "--model", toy / MODES[0], "--height", 64, "--width", 64, "--steps", 1]
    home, out = tmp_path / "home", tmp_path / "style_long_streaming.mp4"

    with fake_hub.FakeHub({RELEASE: {CLIP: clip.read_bytes(), "dit/other.pth": b"x" * 100}}) as hub:

        def run(*more, **settings):
            words = list(map(str, [*command, *more]))
            code = f"import sys\nfrom sana_streaming.sana_core.cli import main\nsys.exit(main({words!r}))"
            return hub.run(home, code, OMP_NUM_THREADS="1", **settings)

        refused = run("--download", HF_HUB_OFFLINE="1")
        assert refused.returncode == 2 and "HF_HUB_OFFLINE is set" in refused.stderr
        assert not hub.requests
        done = run("--download")
        assert done.returncode == 0, done.stderr
        assert f"downloading hf://{RELEASE}/{CLIP}" in done.stderr
        assert hub.contents == [CLIP]
        asked = len(hub.requests)
        # As the release plays it.
        assert (probe(out).num_frames, probe(out).frame_rate) == (9, 16)
        out.unlink()
        done = run(HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert probe(out).num_frames == 9
        assert len(hub.requests) == asked
