"""``edit --mode bidirectional_short`` on real clips: frames, sound, report, stopping, and every refusal."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction

import clips
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core import short_clip
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.commands import short
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.short_clip import ShortClipOptions, edit_clip
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

PROMPT = "make it snow"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"), variant="bidirectional")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def arguments(source, target, toy, *more):
    size = [] if {"--height", "--size"} & set(more) else ["--size", "64x64"]
    command = [
        "edit",
        source,
        target,
        "--mode",
        "bidirectional_short",
        "--model",
        toy,
        "--prompt",
        PROMPT,
        *size,
        *more,
    ]
    return list(map(str, command))


def edit(*command):
    return main(arguments(*command))


def read(path):
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


def test_a_real_clip_with_sound(tmp_path, toy):
    """A process of its own, as a user starts it."""
    paths = {name: tmp_path / name for name in ("out.mp4", "report.json", "sheet.png")}
    more = ["--max-frames", 33, "--start-frame", 4, "--steps", 3, "--compare", "side-by-side", "--motion-score", 5]
    more += ["--report", paths["report.json"], "--sheet", paths["sheet.png"]]
    command = arguments(clips.clip("bigbuckbunny.mp4"), paths["out.mp4"], toy, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sana_streaming", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "5/5 steps" in done.stderr
    assert "33 frames edited at once" in done.stdout
    info = probe(paths["out.mp4"])
    assert (info.num_frames, info.width, info.height, info.frame_rate) == (33, 128, 64, Fraction(25))
    assert info.has_audio
    assert paths["sheet.png"].stat().st_size > 1000
    summary = json.loads(paths["report.json"].read_text())
    assert (summary["frames_read"], summary["frames_written"], summary["chunks"]) == (33, 33, 1)
    assert summary["mode"] == "bidirectional_short"
    assert summary["tiles"] == {"size": 512, "stride": 448}
    assert (summary["flow_shift"], summary["motion_score"], summary["start_frame"]) == (8.0, 5, 4)
    assert summary["settings"]["options"]["steps"] == 3 and summary["settings"]["options"]["cfg_scale"] == 6.0
    stages = {"read", "geometry", "text", "encode", "denoise", "decode", "compare", "write"}
    assert set(summary["seconds"]) == stages


def test_the_file_holds_what_the_library_makes(tmp_path, toy):
    source = clips.clip("carphone_pristine.mp4")
    more = ["--max-frames", 10, "--steps", 2, "--cfg-scale", 3, "--seed", 4, "--flow-shift", 5, "--antialias"]
    assert edit(source, tmp_path / "a.mkv", toy, *more, "--crf", 0) == 0
    networks = load_dit(toy / "dit", dtype=torch.float32), load_vae(toy / "vae", dtype=torch.float32)
    options = ShortClipOptions(steps=2, cfg_scale=3.0, seed=4, flow_shift=5.0)
    text, size = GemmaTextEncoder(toy / "text_encoder"), {"height": 64, "width": 64}
    edited = edit_clip(*networks, text, read(source)[:10], options, prompt=PROMPT, antialias=True, **size)
    with VideoWriter(tmp_path / "b.mkv", width=64, height=64, frame_rate=probe(source).frame_rate, crf=0) as writer:
        writer.write(edited)
    assert torch.equal(read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv"))


def test_tiles_and_the_whole_frame(tmp_path, toy):
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(1, 576, 64))
    results = []
    for name, more in (("tiled", []), ("whole", ["--no-tiles"])):
        more = [*more, "--steps", 2, "--size", "64x576", "--report", tmp_path / f"{name}.json"]
        assert edit(clip, tmp_path / f"{name}.mp4", toy, *more) == 0
        tiles = json.loads((tmp_path / f"{name}.json").read_text())["tiles"]
        results.append((tiles is None, read(tmp_path / f"{name}.mp4")))
    assert [whole for whole, _ in results] == [False, True]
    assert not torch.equal(results[0][1], results[1][1])


def test_longer_clips_only_when_asked_for(tmp_path, toy, capsys):
    source = clips.clip("carphone_pristine.mp4")
    assert edit(source, tmp_path / "a.mp4", toy, "--start-frame", 10) == 2
    errors = capsys.readouterr().err
    assert "has 110 frames from frame 10 on" in errors and errors.count("\n") == 1
    assert "add --max-frames 81" in errors and "--mode long_streaming" in errors
    assert edit(source, tmp_path / "a.mp4", toy, "--max-frames", 84, "--steps", 2) == 0
    assert "84 frames are edited at once; the model was trained on 81" in capsys.readouterr().out
    assert probe(tmp_path / "a.mp4").num_frames == 84


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_ctrl_c_ends_it_within_a_step(tmp_path, toy, monkeypatch, stage):
    passes = []
    step = short.StepBar.on_progress

    def pressing(bar, progress):
        if progress.stage == "denoise":
            passes.append(progress.number)
        if progress.stage == stage and len(passes) in (0, 2, 6):
            signal.raise_signal(signal.SIGINT)
        step(bar, progress)

    monkeypatch.setattr(short.StepBar, "on_progress", pressing)
    out, latents = tmp_path / "out.mp4", tmp_path / "l.pt"
    more = ["--max-frames", 9, "--steps", 6, "--save-latent", latents, "--report", tmp_path / "r.json"]
    assert edit(clips.clip("carphone_pristine.mp4"), out, toy, *more) == 130
    assert len(passes) == {"encode": 0, "denoise": 2, "decode": 6}[stage]
    assert not out.exists()
    assert latents.exists() == (stage == "decode")
    assert json.loads((tmp_path / "r.json").read_text())["stopped"]


def test_what_fails_after_sampling_keeps_the_latents(tmp_path, toy, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(short_clip, "decode_tiled", exhausted)
    more = ["--max-frames", 9, "--steps", 2, "--save-latent", tmp_path / "l.pt"]
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path / "o.mp4", toy, *more) == 1
    assert "out of memory" in capsys.readouterr().err
    assert (tmp_path / "l.pt").exists()


def test_other_rate_leaves_the_sound_out(tmp_path, toy, capsys):
    source = clips.clip("bigbuckbunny.mp4")
    assert edit(source, tmp_path / "o.mp4", toy, "--max-frames", 9, "--fps", "16", "--steps", 2) == 0
    info = probe(tmp_path / "o.mp4")
    assert (info.frame_rate, info.has_audio) == (Fraction(16), False)
    assert "audio      left out" in capsys.readouterr().out


BAD = [
    ("built-in model", {"--model": "nano"}, "needs a bidirectional model, and the built-in nano is a streaming one"),
    ("streaming model", {"--model": "streaming"}, "the model is the streaming one"),
    ("streaming preset", {"--model": "streaming-2b"}, "--model streaming-2b edits chunk by chunk"),
    ("no model", {"--model": "gone"}, "--model gone does not exist"),
    ("too few steps", {"--steps": 1}, "steps 1 is too few"),
    ("flow shift", {"--flow-shift": 0}, "flow_shift 0.0 must be above 0"),
    ("motion score", {"--motion-score": -1}, "--motion-score -1 is below 0"),
    ("guidance", {"--cfg-scale": "nan"}, "cfg_scale nan"),
    ("seed", {"--seed": -1}, "seed -1"),
    ("noise device", {"--noise-device": "warp"}, "noise_device 'warp'"),
    ("device", {"--device": "warp"}, "--device warp"),
    ("size", {"--size": "100x64"}, "width 100 is not a multiple of 32"),
    ("no frames", {"--max-frames": 0}, "--max-frames 0"),
    ("late start", {"--start-frame": 9}, "frame 9 is not in"),
    ("sheet", {"--sheet": "s.jpg"}, "--sheet s.jpg"),
    ("same file", {"--report": "out.mp4"}, "are the same file"),
    ("no text encoder", {"--text-encoder": "gone"}, "--text-encoder gone does not exist"),
]
BAD += [
    (
        name,
        {f"--{name}": value},
        f"--{name} goes with --mode long_streaming; leave it out with --mode bidirectional_short",
    )
    for name, value in {
        "num-cached-blocks": 2,
        "noise": "clip",
        "prompt-file": "p.json",
        "anchor-every": 0,
        "start-step": 1,
        "max-sink-distance": 0,
        "save-state": "s.safetensors",
        "resume": "s.safetensors",
    }.items()
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, toy):
    folder = tmp_path_factory.mktemp("bad")
    video_files.write_clip(folder / "clip.mp4", toys.frames(9))
    make_toy_bundle(folder / "streaming")
    (folder / "toy").symlink_to(toy)
    return folder


def refusal(command, folder, capsys, monkeypatch):
    """The one line that ``edit`` ends with; exit code 2, nothing written."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert main(["edit", "clip.mp4", "out.mp4", "--mode", "bidirectional_short", *map(str, command)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return errors


@pytest.mark.parametrize(("changes", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(bad_files, capsys, monkeypatch, changes, message):
    options = {"--model": "toy", "--size": "64x64", "--prompt": PROMPT, **changes}
    command = [part for pair in options.items() for part in pair]
    assert message in refusal(command, bad_files, capsys, monkeypatch)


@pytest.mark.parametrize("option", ["--sink-token", "--no-sink-token"])
def test_the_sink_is_the_streams(bad_files, capsys, monkeypatch, option):
    errors = refusal(["--model", "toy", "--prompt", PROMPT, option], bad_files, capsys, monkeypatch)
    assert f"{option} goes with --mode long_streaming" in errors


def test_what_is_left_out(bad_files, capsys, monkeypatch):
    assert "no --prompt is given" in refusal(["--model", "toy"], bad_files, capsys, monkeypatch)
    errors = refusal(["--prompt", PROMPT], bad_files, capsys, monkeypatch)
    assert "download bidirectional-2b vae text-encoder and add --model bidirectional-2b" in errors


def test_random_weights_are_of_the_bidirectional_preset(bad_files, capsys, monkeypatch):
    command = ["--random-weights", "--prompt", PROMPT, "--model"]
    assert "edits chunk by chunk" in refusal([*command, "streaming-2b"], bad_files, capsys, monkeypatch)
    assert "needs a preset as --model" in refusal([*command, "toy"], bad_files, capsys, monkeypatch)
    built = []
    monkeypatch.setattr(short, "load_networks", lambda options, *_: built.append(options.model) or 1 / 0)
    monkeypatch.chdir(bad_files)
    with pytest.raises(ZeroDivisionError):
        main(["edit", "clip.mp4", "out.mp4", "--mode", "bidirectional_short", *command[:-1]])
    assert built == ["bidirectional-2b"]


def test_tiles_are_of_short_clips_alone(bad_files, toy, capsys, monkeypatch):
    monkeypatch.chdir(bad_files)
    assert main(["edit", "clip.mp4", "out.mp4", "--model", "streaming", "--prompt", PROMPT, "--no-tiles"]) == 2
    assert "--no-tiles goes with --mode bidirectional_short" in capsys.readouterr().err
