"""The command line on real clips: frames, sound, reports, resuming, stopping, and every refusal."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction

import av
import clips
import pytest
import torch
import toys
import video_files
from safetensors.torch import save_file
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter
from sana_streaming.sana_core.weights.dit import load_dit, official_state, save_dit
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.toy_text import make_toy_text_encoder
from sana_streaming.sana_core.weights.vae import load_vae


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def edit(source, target, toy, *arguments, prompt="make it snow"):
    size = [] if "--height" in arguments else ["--height", "64", "--width", "64"]
    prompts = [] if prompt is None else ["--prompt", prompt]
    command = ["edit", str(source), str(target), "--model", str(toy), *prompts, *size, *map(str, arguments)]
    return main(command)


def read(path):
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


def sound(path):
    """Samples of the first channel of a file."""
    with av.open(str(path)) as container:
        return torch.cat([torch.from_numpy(frame.to_ndarray()[0]) for frame in container.decode(audio=0)])


def test_a_real_clip_with_sound(tmp_path, toy, capsys):
    source = clips.clip("bigbuckbunny.mp4")
    paths = {name: tmp_path / name for name in ("out.mp4", "report.json", "sheet.png")}
    report, sheet = paths["report.json"], paths["sheet.png"]
    assert (
        edit(source, paths["out.mp4"], toy, "--max-frames", 50, "--report", report, "--sheet", sheet, "--steps", 2) == 0
    )
    info = probe(paths["out.mp4"])
    assert (info.num_frames, info.width, info.height, info.frame_rate) == (50, 64, 64, Fraction(25))
    assert info.has_audio
    summary = json.loads(report.read_text())
    assert (summary["frames_read"], summary["frames_written"], summary["chunks"]) == (50, 50, 2)
    assert set(summary["seconds"]) == {"read", "geometry", "text", "encode", "denoise", "decode", "write"}
    assert summary["noise_mode"] == "clip"
    assert summary["settings"]["options"]["steps"] == 2
    assert summary["peak_memory"]["resident"] > 2**20
    assert sheet.stat().st_size > 1000
    printed = capsys.readouterr()
    assert "50 frames in 2 chunks" in printed.out
    assert "noise per clip" in printed.out


def test_the_file_holds_what_the_stream_makes(tmp_path, toy):
    """The command's file equals the library's frames through the same writer."""
    source = clips.clip("carphone_pristine.mp4")
    assert edit(source, tmp_path / "a.mp4", toy, "--max-frames", 33, "--crf", 0) == 0
    networks = load_dit(toy / "dit", dtype=torch.float32), load_vae(toy / "vae", dtype=torch.float32)
    text = GemmaTextEncoder(toy / "text_encoder")
    stream = EditStream(*networks, text, prompt="make it snow", height=64, width=64, total_frames=33)
    (chunk,) = stream.push(read(source)[:33])
    assert not text.is_loaded
    rate = probe(source).frame_rate
    with VideoWriter(tmp_path / "b.mp4", width=64, height=64, frame_rate=rate, crf=0) as writer:
        writer.write(chunk.frames)
    assert torch.equal(read(tmp_path / "a.mp4"), read(tmp_path / "b.mp4"))


def test_resume_equals_no_interruption(tmp_path, toy):
    source = clips.clip("carphone_pristine.mp4")
    state = tmp_path / "state.safetensors"
    whole = tmp_path / "whole.mkv"
    assert edit(source, whole, toy, "--crf", 0, "--seed", 3) == 0
    first = ["--crf", 0, "--max-frames", 40, "--save-state", state, "--seed", 3]
    assert edit(source, tmp_path / "a.mkv", toy, *first) == 0
    again = ["--crf", 0, "--resume", state, "--save-state", state, "--max-frames", 30]
    assert edit(source, tmp_path / "b.mkv", toy, *again, prompt=None) == 0
    assert edit(source, tmp_path / "c.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    parts = [read(tmp_path / name) for name in ("a.mkv", "b.mkv", "c.mkv")]
    assert [len(part) for part in parts] == [25, 24, 71]
    # Each file is its own H.264 stream, lossless but for the colour conversion.
    assert torch.equal(torch.cat(parts), read(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", 4], "the options"),
        (["--height", 96, "--width", 64], "height 64, not 96"),
        (["--start-frame", 500], "frame 500 is not in"),
    ],
    ids=str,
)
def test_resume_refuses_what_contradicts_the_state(tmp_path, toy, capsys, change, message):
    source, state = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors"
    assert edit(source, tmp_path / "a.mp4", toy, "--max-frames", 9, "--save-state", state, "--steps", 1) == 0
    command = ["edit", str(source), str(tmp_path / "b.mp4"), "--model", str(toy), "--resume", str(state)]
    assert main([*command, *map(str, change)]) == 2
    assert message in capsys.readouterr().err


def test_other_rate_leaves_the_sound_out(tmp_path, toy, capsys):
    source = clips.clip("bigbuckbunny.mp4")
    assert edit(source, tmp_path / "o.mp4", toy, "--max-frames", 9, "--fps", "16", "--steps", 1) == 0
    info = probe(tmp_path / "o.mp4")
    assert (info.frame_rate, info.has_audio) == (Fraction(16), False)
    assert "audio      left out" in capsys.readouterr().out


def test_ctrl_c_leaves_a_playable_file_and_a_state(tmp_path, toy):
    source = clips.clip("carphone_pristine.mp4")
    state, out = tmp_path / "state.safetensors", tmp_path / "out.mp4"
    command = [
        sys.executable,
        "-m",
        "sana_streaming",
        "edit",
        source,
        out,
        "--model",
        toy,
        "--prompt",
        "x",
        "--steps",
        8,
    ]
    command += ["--height", 64, "--width", 64, "--save-state", state]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not out.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert b"stopped" in printed
    assert b"Traceback" not in errors
    written = probe(out).num_frames
    assert written in (25, 49, 73, 97)
    assert edit(source, tmp_path / "rest.mp4", toy, "--resume", state, prompt=None) == 0
    assert written + probe(tmp_path / "rest.mp4").num_frames == 120


@pytest.mark.slow
def test_a_long_clip_keeps_every_frame_and_the_sound(tmp_path, toy):
    """969 frames at the smallest size: 40 chunks, 969 frames, sound in step, state of constant size."""
    source = tmp_path / "long.mp4"
    frames = read(clips.clip("carphone_pristine.mp4"))[:, ::2, ::2]
    looped = frames.repeat(9, 1, 1, 1)[:969]
    video_files.write_clip(source, looped, sound=("aac", "stereo", 969 / 25))
    report = tmp_path / "report.json"
    assert edit(source, tmp_path / "out.mp4", toy, "--report", report, "--steps", 2) == 0
    summary = json.loads(report.read_text())
    assert (summary["chunks"], summary["frames_written"]) == (40, 969)
    info = probe(tmp_path / "out.mp4")
    assert info.num_frames == 969
    expected, got = sound(source), sound(tmp_path / "out.mp4")
    assert abs(len(got) / video_files.SAMPLE_RATE - 969 / 25) < 0.05
    for second in (1, 10, 19, 37):
        assert lag(got, expected, second) == 0


def lag(got, expected, second):
    """Samples, up to 40 ms either way, by which ``got`` is late at a place. The decoder fills in noise: no two are equal."""
    rate, reach = video_files.SAMPLE_RATE, 1920
    start = second * rate
    piece = got[start : start + rate // 2]
    near = expected[start - reach : start + rate // 2 + reach]
    likeness = torch.nn.functional.conv1d(near[None, None], piece[None, None]).flatten()
    return reach - int(likeness.argmax())


BAD = [
    ("missing file", ["gone.mp4"], {}, "gone.mp4"),
    ("not a video", ["notes.mp4"], {}, "notes.mp4"),
    ("zero frames", ["sound.mp4"], {}, "sound.mp4"),
    ("no such folder", ["clip.mp4", "nowhere/out.mp4"], {}, "there is no folder"),
    ("unknown ending", ["clip.mp4", "out.gif"], {}, ".gif"),
    ("same file", ["clip.mp4", "clip.mp4"], {}, "also the source"),
    ("too small", ["clip.mp4"], {"--height": 32}, "height 32 is too small; the smallest is 64"),
    ("not a multiple", ["clip.mp4"], {"--width": 100}, "width 100 is not a multiple of 32; use width 96 instead"),
    ("no model", ["clip.mp4"], {"--model": "gone"}, "--model gone does not exist"),
    ("preset without files", ["clip.mp4"], {"--model": "streaming-2b"}, "--random-weights"),
    ("bidirectional", ["clip.mp4"], {"--model": "bidirectional"}, "cannot stream"),
    ("half a checkpoint", ["clip.mp4"], {"--model": "half.safetensors"}, "half.safetensors is an incomplete"),
    ("cut checkpoint", ["clip.mp4"], {"--model": "cut.safetensors"}, "not a whole safetensors file"),
    ("no checkpoint", ["clip.mp4"], {"--model": "notes.mp4"}, "not a weight file"),
    ("a VAE as the model", ["clip.mp4"], {"--model": "vae.safetensors"}, "not a SANA-Streaming transformer"),
    ("no VAE", ["clip.mp4"], {"--vae": "gone"}, "--vae gone does not exist"),
    ("narrow text encoder", ["clip.mp4"], {"--text-encoder": "narrow"}, "gives 32 channels"),
    ("other state", ["clip.mp4"], {"--resume": "other.safetensors"}, "transformer of fingerprint"),
    ("no state", ["clip.mp4"], {"--resume": "vae.safetensors"}, "not a saved stream state"),
    ("no frames", ["clip.mp4"], {"--max-frames": 0}, "--max-frames 0"),
    ("late start", ["clip.mp4"], {"--start-frame": 9}, "frame 9 is not in"),
    ("fps", ["clip.mp4"], {"--fps": "fast"}, "--fps fast"),
    ("steps", ["clip.mp4"], {"--steps": 0}, "steps 0"),
    ("seed", ["clip.mp4"], {"--seed": -1}, "seed -1"),
    ("crf", ["clip.mp4"], {"--crf": 99}, "crf"),
    ("device", ["clip.mp4"], {"--device": "warp"}, "--device warp"),
    ("sheet", ["clip.mp4"], {"--sheet": "s.jpg"}, "--sheet s.jpg"),
    ("report folder", ["clip.mp4"], {"--report": "nowhere/r.json"}, "there is no folder"),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, toy):
    """A folder with every file that the refusals need."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.mp4").write_text("not a video\n")
    video_files.write_clip(folder / "clip.mp4", toys.frames(9))
    video_files.write_sound(folder / "sound.mp4", "aac", 1.0)
    make_toy_text_encoder(folder / "narrow", hidden_size=32)
    model = toys.networks()[0]
    state = {key: value.contiguous() for key, value in official_state(model)}
    save_file({k: v for k, v in state.items() if "final_layer" not in k}, folder / "half.safetensors")
    whole = (toy / "dit" / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file(toys.networks()[1].state_dict(), folder / "vae.safetensors")
    bidirectional = replace(model.config, variant="bidirectional", caption_channels=64)
    save_dit(random_dit(bidirectional), folder / "bidirectional" / "dit")
    for name in ("vae", "text_encoder"):
        (folder / name).symlink_to(toy / name)
        (folder / "bidirectional" / name).symlink_to(toy / name)
    editor = EditStream(*toys.networks(), prompt="x", height=64, width=64)
    editor.state.save(folder / "other.safetensors")
    return folder


@pytest.mark.parametrize(("paths", "changes", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(bad_files, toy, capsys, monkeypatch, paths, changes, message):
    """One line that names the value and the remedy, exit code 2, nothing written."""
    monkeypatch.chdir(bad_files)
    before = sorted(bad_files.iterdir())
    arguments = {"--model": str(toy), "--height": 64, "--width": 64, "--prompt": "make it snow", **changes}
    source, target = [*paths, "out.mp4"][:2]
    flags = [str(part) for pair in arguments.items() for part in pair]
    assert main(["edit", source, target, *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert sorted(bad_files.iterdir()) == before


def test_no_prompt(bad_files, toy, capsys, monkeypatch):
    monkeypatch.chdir(bad_files)
    assert main(["edit", "clip.mp4", "out.mp4", "--model", str(toy)]) == 2
    assert "--prompt" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that not even root can write to")
@pytest.mark.parametrize("option", ["OUT", "--report", "--save-state", "--sheet"])
def test_unwritable_folder(bad_files, tmp_path, toy, capsys, option):
    target, more = ("/proc/out.mp4", []) if option == "OUT" else (tmp_path / "out.mp4", [option, "/proc/x"])
    assert edit(bad_files / "clip.mp4", target, toy, *more) == 2
    assert "cannot write to /proc" in capsys.readouterr().err
