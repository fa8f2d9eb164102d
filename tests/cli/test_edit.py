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
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.state import StreamState
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
    """Samples of the first channel of a file, from time 0 on: silent until the first packet."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    silence = torch.zeros(round(float(frames[0].pts * frames[0].time_base) * frames[0].sample_rate))
    return torch.cat([silence, *(torch.from_numpy(frame.to_ndarray()[0]) for frame in frames)])


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


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_resume_equals_no_interruption(tmp_path, toy, overlap):
    """With overlap what was put off is in the file of the part that it belongs to."""
    source = clips.clip("carphone_pristine.mp4")
    state = tmp_path / "state.safetensors"
    whole = tmp_path / "whole.mkv"
    assert edit(source, whole, toy, "--crf", 0, "--seed", 3) == 0
    told = ["--crf", 0, "--overlap", overlap]
    first = [*told, "--max-frames", 40, "--save-state", state, "--seed", 3]
    assert edit(source, tmp_path / "a.mkv", toy, *first) == 0
    again = [*told, "--resume", state, "--save-state", state, "--max-frames", 30]
    assert edit(source, tmp_path / "b.mkv", toy, *again, prompt=None) == 0
    assert edit(source, tmp_path / "c.mkv", toy, *told, "--resume", state, prompt=None) == 0
    parts = [read(tmp_path / name) for name in ("a.mkv", "b.mkv", "c.mkv")]
    assert [len(part) for part in parts] == [25, 24, 71]
    # Each file is its own H.264 stream, lossless but for the colour conversion.
    assert torch.equal(torch.cat(parts), read(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", 4], "made with seed 0, not 4; keep it as it was"),
        (["--height", 96, "--width", 64], "height 64, not 96"),
        (["--start-frame", 0], "leave it out with --resume"),
        (["--model", "OTHER"], "transformer of fingerprint"),
        (["--dtype", "bfloat16"], "a transformer in float32, not bfloat16"),
    ],
    ids=str,
)
def test_resume_refuses_what_contradicts_the_state(tmp_path, toy, capsys, change, message):
    source, state = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors"
    assert edit(source, tmp_path / "a.mp4", toy, "--max-frames", 9, "--save-state", state, "--steps", 1) == 0
    if "OTHER" in change:
        change = ["--model", make_toy_bundle(tmp_path / "other", seed=1)]
    command = ["edit", source, tmp_path / "b.mp4", "--model", toy, "--vae", toy / "vae", "--resume", state, *change]
    assert main(list(map(str, command))) == 2
    assert message in capsys.readouterr().err


def test_resume_refuses_another_clip_and_a_finished_stream(tmp_path, toy, capsys):
    source, state = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors"
    assert edit(source, tmp_path / "a.mp4", toy, "--max-frames", 9, "--save-state", state, "--steps", 1) == 0
    assert edit(clips.clip("bikes.mp4"), tmp_path / "b.mp4", toy, "--resume", state, prompt=None) == 2
    assert "a clip with frames 120, " in capsys.readouterr().err
    assert edit(source, tmp_path / "b.mp4", toy, "--resume", state, "--save-state", state, prompt=None) == 0
    assert edit(source, tmp_path / "c.mp4", toy, "--resume", state, prompt=None) == 2
    assert "has reached its end" in capsys.readouterr().err


def test_resume_of_a_stream_that_began_later(tmp_path, toy):
    """The saved stream knows where in its clip it began: frames and sound go on from there."""
    clip = tmp_path / "clip.mp4"
    frames = read(clips.clip("carphone_pristine.mp4"))[:, ::2, ::2]
    video_files.write_clip(clip, frames, sound=("aac", "stereo", 120 / 25))
    state, whole = tmp_path / "s.safetensors", tmp_path / "whole.mkv"
    options = ["--crf", 0, "--steps", 1, "--start-frame", 30]
    assert edit(clip, whole, toy, *options) == 0
    assert edit(clip, tmp_path / "a.mkv", toy, *options, "--max-frames", 40, "--save-state", state) == 0
    assert edit(clip, tmp_path / "b.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    parts = [read(tmp_path / name) for name in ("a.mkv", "b.mkv")]
    assert torch.equal(torch.cat(parts), read(whole))
    begin = round((30 + len(parts[0])) / 25 * video_files.SAMPLE_RATE)
    resumed = sound(tmp_path / "b.mkv")
    assert abs(lag(resumed, sound(clip)[begin:], 0.5)) < 64


PHASES = {"read": 0, "encode": 25, "denoise": 25, "write": 25, "last chunk": 97, "write twice": 0}
# While a chunk is written the next one is denoised, and it is not lost. Signals to another thread are not counted.
OVERLAPPED = {**PHASES, "write": 49}
OVERLAPPED.pop("write twice")


@pytest.mark.parametrize(
    ("overlap", "phase"), [*(("off", phase) for phase in PHASES), *(("on", phase) for phase in OVERLAPPED)]
)
def test_ctrl_c_loses_nothing(tmp_path, toy, monkeypatch, overlap, phase):
    """Ctrl-C at any moment: whole chunks in the file, and the rest comes out when the stream goes on."""
    source = clips.clip("carphone_pristine.mp4")
    state, whole = tmp_path / "s.safetensors", tmp_path / "whole.mkv"
    options = ["--crf", 0, "--steps", 2]
    assert edit(source, whole, toy, *options) == 0
    press_ctrl_c(monkeypatch, phase)
    assert edit(source, tmp_path / "a.mkv", toy, *options, "--save-state", state, "--overlap", overlap) == 130
    monkeypatch.undo()
    out = StreamState.load(state).frames_out
    before = read(tmp_path / "a.mkv") if out else torch.empty(0, 64, 64, 3, dtype=torch.uint8)
    assert out == (PHASES if overlap == "off" else OVERLAPPED)[phase]
    assert phase == "write twice" or len(before) == out
    assert edit(source, tmp_path / "b.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    assert torch.equal(torch.cat([before[:out], read(tmp_path / "b.mkv")]), read(whole))


def press_ctrl_c(monkeypatch, phase):
    """Sends the signal once in a phase of the second chunk (the last in "last chunk"), or twice within a write."""
    from sana_streaming.sana_core.commands import edit_progress as command
    from sana_streaming.sana_core.video import writer

    def pressing(function, when, times=1):
        def wrapped(*arguments):
            for _ in range(times if when(*arguments) else 0):
                signal.raise_signal(signal.SIGINT)
            return function(*arguments)

        return wrapped

    seen = []
    if phase.startswith("write"):
        first = lambda *_: not seen and not seen.append(1)
        times = 2 if phase == "write twice" else 1
        monkeypatch.setattr(writer.VideoWriter, "write", pressing(writer.VideoWriter.write, first, times))
        return
    units = {"read": (0, "encode"), "encode": (1, "encode"), "denoise": (1, "denoise"), "last chunk": (4, "denoise")}
    at = units[phase]
    bar = command.ChunkBar
    reached = lambda _, progress: (progress.chunk, progress.stage) == at
    monkeypatch.setattr(bar, "on_progress", pressing(bar.on_progress, reached))


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_failing_writer_keeps_the_state(tmp_path, toy, monkeypatch, capsys, overlap):
    """A full disk: one line, exit code 1, and a state from which the stream goes on with the chunk that failed."""
    from sana_streaming.sana_core.video import writer

    source, state = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors"
    whole = tmp_path / "whole.mkv"
    assert edit(source, whole, toy, "--crf", 0, "--steps", 1) == 0
    write, calls = writer.VideoWriter.write, []

    def full(self, frames):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(self, frames)

    monkeypatch.setattr(writer.VideoWriter, "write", full)
    told = ["--crf", 0, "--steps", 1, "--overlap", overlap]
    assert edit(source, tmp_path / "a.mkv", toy, *told, "--save-state", state) == 1
    errors = capsys.readouterr().err
    assert "failed: [Errno 28] No space left on device" in errors
    assert "Traceback" not in errors
    monkeypatch.undo()
    assert StreamState.load(state).frames_out == 49
    assert edit(source, tmp_path / "b.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    assert torch.equal(torch.cat([read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv")]), read(whole))


def test_what_is_written_while_something_else_fails_counts(tmp_path, toy, monkeypatch):
    """The file and the saved state agree, and nothing comes twice."""
    source, state, whole = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors", tmp_path / "whole.mkv"
    assert edit(source, whole, toy, "--crf", 0, "--steps", 1) == 0
    encode, calls = CausalVAE.encode, []

    def exhausted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return encode(*arguments)

    def slow(self, frames, write=VideoWriter.write):
        time.sleep(0.5)
        write(self, frames)

    monkeypatch.setattr(CausalVAE, "encode", exhausted)
    monkeypatch.setattr(VideoWriter, "write", slow)
    told = ["--crf", 0, "--steps", 1, "--save-state", state, "--overlap", "on"]
    assert edit(source, tmp_path / "a.mkv", toy, *told) == 1
    monkeypatch.undo()
    assert StreamState.load(state).frames_out == len(read(tmp_path / "a.mkv")) == 25
    assert edit(source, tmp_path / "b.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    assert torch.equal(torch.cat([read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv")]), read(whole))


@pytest.mark.parametrize("compare", [[], ["--compare", "wipe"]], ids=["edit", "compare"])
def test_overlap_changes_no_frame(tmp_path, toy, compare):
    """Sound, sheet and report go along; read and written in threads."""
    source = clips.clip("bigbuckbunny.mp4")
    reports, sheets = {}, {}
    for overlap in ("off", "on"):
        report, sheet = tmp_path / f"{overlap}.json", tmp_path / f"{overlap}.png"
        told = [
            "--crf",
            0,
            "--steps",
            1,
            "--max-frames",
            80,
            "--overlap",
            overlap,
            "--report",
            report,
            "--sheet",
            sheet,
        ]
        assert edit(source, tmp_path / f"{overlap}.mkv", toy, *told, *compare) == 0
        reports[overlap], sheets[overlap] = json.loads(report.read_text()), sheet.read_bytes()
    assert torch.equal(read(tmp_path / "on.mkv"), read(tmp_path / "off.mkv"))
    assert torch.equal(sound(tmp_path / "on.mkv"), sound(tmp_path / "off.mkv"))
    assert sheets["on"] == sheets["off"]
    counted = ("frames_read", "frames_written", "chunks", "frames_waiting", "frames_held", "state_bytes", "settings")
    assert all(reports["on"][name] == reports["off"][name] for name in counted)
    assert set(reports["on"]["seconds"]) == set(reports["off"]["seconds"])
    assert [reports[overlap]["overlap"] for overlap in ("off", "on")] == [False, True]
    assert reports["on"]["vae_device"] == "cpu"


def test_a_reader_that_fails_costs_nothing_that_was_read(tmp_path, toy, monkeypatch, capsys):
    """One line, and the stream goes on with the frame that could not be read."""
    from sana_streaming.sana_core.video import reader

    source, state, whole = clips.clip("carphone_pristine.mp4"), tmp_path / "s.safetensors", tmp_path / "whole.mkv"
    assert edit(source, whole, toy, "--crf", 0, "--steps", 1) == 0
    upright = reader.VideoReader._upright

    def failing(self, frame, number):
        if number == 100:
            raise OSError(5, "Input/output error")
        return upright(self, frame, number)

    monkeypatch.setattr(reader.VideoReader, "_upright", failing)
    told = ["--crf", 0, "--steps", 1, "--save-state", state, "--overlap", "on"]
    assert edit(source, tmp_path / "a.mkv", toy, *told) == 1
    assert "failed: [Errno 5] Input/output error" in capsys.readouterr().err
    monkeypatch.undo()
    saved = StreamState.load(state)
    assert (saved.frames_in, saved.frames_out) == (96, len(read(tmp_path / "a.mkv")))
    assert edit(source, tmp_path / "b.mkv", toy, "--crf", 0, "--resume", state, prompt=None) == 0
    assert torch.equal(torch.cat([read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv")]), read(whole))


def test_options_without_effect_are_said_to_be(tmp_path, toy, capsys):
    source = clips.clip("carphone_pristine.mp4")
    told = ["--max-frames", 9, "--steps", 1, "--negative-prompt", "blurry"]
    assert edit(source, tmp_path / "o.mp4", toy, *told) == 0
    assert "note: --negative-prompt changes nothing without guidance" in capsys.readouterr().err
    assert edit(source, tmp_path / "o.mp4", toy, *told, "--cfg-scale", 2) == 0
    assert "note:" not in capsys.readouterr().err
    assert main(["edit", str(source), str(tmp_path / "o.mp4"), *map(str, told[:4]), "--prompt", "x", "--download"]) == 0
    printed = capsys.readouterr()
    assert "note: --download fetched no weights: nano is built in" in printed.err
    assert printed.out.startswith("model: nano")


def test_a_misspelt_option_shows_the_options_of_its_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["edit", "a.mp4", "b.mp4", "--promt", "x"])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("usage: sana_streaming edit") and "unrecognized arguments: --promt x" in errors


def test_out_of_memory_names_the_knobs(tmp_path, toy, monkeypatch, capsys):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(CausalVAE, "encode", exhausted)
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path / "a.mp4", toy, "--steps", 1) == 1
    errors = capsys.readouterr().err
    assert "out of memory" in errors
    assert "--height and --width" in errors
    assert "Traceback" not in errors


def test_fewer_frames_than_a_chunk(tmp_path, toy, capsys):
    """Nothing is written, and nothing is said to be."""
    paths = [tmp_path / name for name in ("s.safetensors", "x.png")]
    more = ["--max-frames", 9, "--save-state", paths[0], "--sheet", paths[1], "--steps", 1]
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path / "o.mp4", toy, *more) == 0
    printed = capsys.readouterr().out
    assert "9 frames are in the saved state" in printed
    assert "o.mp4" not in printed
    assert "x.png" not in printed


def test_the_text_encoder_is_gone_before_the_others_come(tmp_path, toy, monkeypatch):
    from sana_streaming.sana_core.commands import edit_networks as command

    seen = []
    monkeypatch.setattr(GemmaTextEncoder, "unload", lambda self: seen.append("unload text"))
    for name in ("load_vae", "load_dit"):
        load = getattr(command, name)
        monkeypatch.setattr(command, name, lambda *a, _n=name, _f=load, **k: seen.append(_n) or _f(*a, **k))
    assert edit(clips.clip("carphone_pristine.mp4"), tmp_path / "o.mp4", toy, "--max-frames", 9, "--steps", 1) == 0
    assert seen[0] == "unload text"
    assert seen.index("load_vae") > 0


def test_a_rate_near_the_source_is_the_source(tmp_path, toy):
    source = clips.clip("carphone_pristine.mp4")
    assert edit(source, tmp_path / "o.mp4", toy, "--max-frames", 9, "--fps", "29.97", "--steps", 1) == 0
    assert probe(tmp_path / "o.mp4").frame_rate == Fraction(30000, 1001)


def test_other_rate_leaves_the_sound_out(tmp_path, toy, capsys):
    source = clips.clip("bigbuckbunny.mp4")
    assert edit(source, tmp_path / "o.mp4", toy, "--max-frames", 9, "--fps", "16", "--steps", 1) == 0
    info = probe(tmp_path / "o.mp4")
    assert (info.frame_rate, info.has_audio) == (Fraction(16), False)
    assert "audio      left out" in capsys.readouterr().out


def test_ctrl_c_from_outside(tmp_path, toy):
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
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert b"stopped" in printed
    assert b"Traceback" not in errors
    written = probe(out).num_frames
    assert written in (25, 49, 73, 97)
    assert written == StreamState.load(state).frames_out


@pytest.mark.slow
def test_a_long_clip_keeps_every_frame_and_the_sound(tmp_path, toy):
    """969 frames at the smallest size: 40 chunks, 969 frames, sound in step."""
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
    start = round(second * rate)
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
    ("other state", ["clip.mp4"], {"--resume": "other.safetensors"}, "was not saved by edit"),
    ("damaged state", ["clip.mp4"], {"--resume": "damaged.safetensors"}, "is a damaged stream state"),
    ("no state", ["clip.mp4"], {"--resume": "vae.safetensors"}, "not a saved stream state"),
    ("no frames", ["clip.mp4"], {"--max-frames": 0}, "--max-frames 0"),
    ("late start", ["clip.mp4"], {"--start-frame": 9}, "frame 9 is not in"),
    ("fps", ["clip.mp4"], {"--fps": "fast"}, "--fps fast"),
    ("steps", ["clip.mp4"], {"--steps": 0}, "steps 0"),
    ("seed", ["clip.mp4"], {"--seed": -1}, "seed -1"),
    ("crf", ["clip.mp4"], {"--crf": 99}, "crf"),
    ("device", ["clip.mp4"], {"--device": "warp"}, "--device warp"),
    ("VAE device", ["clip.mp4"], {"--vae-device": "warp"}, "--vae-device warp cannot be used here"),
    ("no such name", ["clip.mp4"], {"--model": "nano2"}, "or one of the names nano, streaming-2b, bidirectional-2b"),
    ("device without numbers", ["clip.mp4"], {"--device": "meta"}, "--device meta"),
    ("noise device", ["clip.mp4"], {"--noise-device": "warp"}, "noise_device 'warp'"),
    ("guidance", ["clip.mp4"], {"--cfg-scale": "nan"}, "cfg_scale nan"),
    ("tiny fps", ["clip.mp4"], {"--fps": "0.000001"}, "--fps 0.000001"),
    ("huge", ["clip.mp4"], {"--height": 1_000_000, "--width": 64}, "1000000"),
    ("report over the source", ["clip.mp4"], {"--report": "clip.mp4"}, "are the same file"),
    ("state over the result", ["clip.mp4"], {"--save-state": "out.mp4"}, "are the same file"),
    ("a folder as report", ["clip.mp4"], {"--report": "narrow"}, "narrow is a folder"),
    ("a folder as input", ["narrow"], {}, "narrow"),
    ("a folder as state", ["clip.mp4"], {"--resume": "narrow"}, "not there or not a file"),
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
    save_file({"waiting": torch.zeros(1)}, folder / "damaged.safetensors", {"sana_streaming_state": '{"version": 1}'})
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


def test_nano_is_not_announced_before_an_error(bad_files, capsys, monkeypatch):
    monkeypatch.chdir(bad_files)
    assert main(["edit", "clip.mp4", "out.mp4", "--prompt", "x", "--vae", "gone"]) == 2
    assert capsys.readouterr().out == ""


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
