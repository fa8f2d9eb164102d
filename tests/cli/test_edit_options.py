"""Steering, footage, comparing and decoding by options of ``edit``: what they do, and what is refused at once."""

import json
from fractions import Fraction
from types import SimpleNamespace

import av
import clips
import numpy as np
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core.cli import build_parser, main
from sana_streaming.sana_core.commands import edit as command
from sana_streaming.sana_core.commands.edit_footage import wanted_size
from sana_streaming.sana_core.commands.edit_plan import make_plan
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.state import StreamState
from sana_streaming.sana_core.video.geometry import BUCKETS, pixels_to_uint8, resize_and_crop
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

# 120 frames at 30000/1001.
CLIP = clips.clip("carphone_pristine.mp4")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def words(source, target, toy, *more, prompt="make it snow"):
    size = [] if "--size" in more else ["--size", "64x64"]
    prompts = [] if prompt is None else ["--prompt", prompt]
    return [str(word) for word in ("edit", source, target, "--model", toy, *prompts, *size, *more)]


def edit(source, target, toy, *more, prompt="make it snow"):
    """A run in one step per chunk that loses nothing in writing, unless told otherwise."""
    steps = [] if {"--steps", "--resume"} & set(more) else ["--steps", 1]
    return main(words(source, target, toy, "--crf", 0, *steps, *more, prompt=prompt))


def plan_of(source, target, toy, *more, prompt="make it snow"):
    return make_plan(build_parser().parse_args(words(source, target, toy, *more, prompt=prompt)))


@pytest.mark.parametrize(
    "more, words_of_it",
    [
        (("--cuda-graph", "on"), "--cuda-graph on records the work of a GPU, and the transformer runs on cpu"),
        (("--precision", "fp9"), "precision fp9 is neither a preset (bf16, fp8, int8, paper-mpq"),
    ],
)
def test_machine_options_that_cannot_be_had(toy, tmp_path, capsys, more, words_of_it):
    assert edit(CLIP, tmp_path / "out.mp4", toy, "--device", "cpu", *more) == 2
    assert words_of_it in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_a_quantized_network_edits(toy, tmp_path):
    report = tmp_path / "report.json"
    for name, more in (("plain", ()), ("int8", ("--precision", "int8"))):
        options = ("--max-frames", 33, "--report", report, *more)
        assert edit(CLIP, tmp_path / f"{name}.mkv", toy, *options) == 0
    assert json.loads(report.read_text())["weights"]["precision"] == "int8"
    plain, quantized = (read(tmp_path / f"{name}.mkv").float() for name in ("plain", "int8"))
    assert 0 < (plain - quantized).abs().mean() < 8


def read(path):
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


def resumed_equals_whole(tmp_path, toy, source, *more, again=()):
    """Frames of one run, after comparing them with those of two runs, of which the second is told ``again`` alone."""
    state, more = tmp_path / "s.safetensors", [*more, *again]
    assert edit(source, tmp_path / "whole.mkv", toy, *more) == 0
    assert edit(source, tmp_path / "a.mkv", toy, *more, "--max-frames", 40, "--save-state", state) == 0
    assert edit(source, tmp_path / "b.mkv", toy, "--resume", state, *again, prompt=None) == 0
    whole = read(tmp_path / "whole.mkv")
    assert torch.equal(torch.cat([read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv")]), whole)
    return whole


LATER = [("1", "make it night"), ("00:03", "make it dawn")]


@pytest.mark.parametrize("by", ["options", "file"])
def test_prompts_by_time(tmp_path, toy, capsys, by):
    """The command's file equals the library's frames, written by the same writer."""
    if by == "file":
        content = [{"at": 0, "prompt": "make it snow"}, *({"at": at, "prompt": prompt} for at, prompt in LATER)]
        (tmp_path / "p.json").write_text(json.dumps(content))
        told, prompt = ["--prompt-file", tmp_path / "p.json"], None
    else:
        told, prompt = [word for change in LATER for word in ("--prompt-at", *change)], "make it snow"
    report = tmp_path / "r.json"
    assert edit(CLIP, tmp_path / "a.mkv", toy, *told, "--report", report, prompt=prompt) == 0
    networks = load_dit(toy / "dit", dtype=torch.float32), load_vae(toy / "vae", dtype=torch.float32)
    stream = EditStream(
        *networks,
        GemmaTextEncoder(toy / "text_encoder"),
        prompt="make it snow",
        schedule=((30, "make it night"), (90, "make it dawn")),
        height=64,
        width=64,
        total_frames=120,
        options=StreamOptions(steps=1),
    )
    with VideoWriter(tmp_path / "b.mkv", width=64, height=64, frame_rate=probe(CLIP).frame_rate, crf=0) as writer:
        for chunk in (*stream.push(read(CLIP)), *stream.flush()):
            writer.write(chunk.frames)
    assert torch.equal(read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv"))
    summary = json.loads(report.read_text())
    assert [tuple(entry.values()) for entry in summary["schedule"]] == list(stream.state.schedule)
    assert (summary["mode"], summary["decoder"], summary["prompt_changes"]) == ("long_streaming", "causal", 2)
    assert summary["prompt"] == "make it dawn"
    printed = capsys.readouterr().out
    assert "prompt     00:01.001 make it night" in printed
    assert "causal decoder" in printed


def test_a_saved_stream_keeps_its_schedule(tmp_path, toy):
    told = [word for change in LATER for word in ("--prompt-at", *change)]
    resumed_equals_whole(tmp_path, toy, CLIP, *told)
    # The first of them came after the state was saved, the other with the rest of the clip.
    state = StreamState.load(tmp_path / "s.safetensors")
    assert (state.schedule_place, [frame for frame, _ in state.schedule]) == (1, [0, 30, 90])


def test_a_prompt_of_its_own_changes_a_resumed_schedule(tmp_path, toy):
    """From here on, until the next prompt of the schedule comes."""
    state, report = tmp_path / "s.safetensors", tmp_path / "r.json"
    told = ["--prompt-at", *LATER[1]]
    assert edit(CLIP, tmp_path / "a.mkv", toy, *told, "--max-frames", 40, "--save-state", state) == 0
    plan = plan_of(CLIP, tmp_path / "b.mkv", toy, "--resume", state, "--motion-score", 3, prompt="make it rain ")
    assert plan.prompts == ["make it rain motion score: 3.", "make it dawn"]
    assert edit(CLIP, tmp_path / "b.mkv", toy, "--resume", state, "--report", report, prompt="make it rain") == 0
    summary = json.loads(report.read_text())
    assert (summary["prompt"], summary["prompt_changes"]) == ("make it dawn", 2)


def test_times_are_those_of_the_edited_video(tmp_path, toy):
    out, told = tmp_path / "o.mp4", ["--prompt-at", "2", "x"]
    assert plan_of(CLIP, out, toy, *told, "--fps", 16).schedule == ((32, "x"),)
    assert plan_of(CLIP, out, toy, *told, "--resample-fps", 12).schedule == ((24, "x"),)
    # Not those of the source.
    assert plan_of(CLIP, out, toy, *told, "--start-frame", 20).schedule == ((60, "x"),)


def test_the_motion_score_is_written_behind_every_prompt(tmp_path, toy):
    plan = plan_of(CLIP, tmp_path / "o.mp4", toy, "--motion-score", 7, "--prompt-at", "2", "make it night ")
    assert plan.prompts == ["make it snow motion score: 7.", "make it night motion score: 7."]
    assert plan_of(CLIP, tmp_path / "o.mp4", toy, "--motion-score", 0).prompts == ["make it snow"]


def test_steering_goes_along_with_a_saved_stream(tmp_path, toy, capsys):
    options = {"steps": 3, "anchor_every": 2, "start_step": 1, "max_sink_distance": 11, "flow_shift": 5.0}
    told = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    resumed_equals_whole(tmp_path, toy, CLIP, *told, "--antialias")
    state = StreamState.load(tmp_path / "s.safetensors")
    assert state.settings.options == StreamOptions(**options)
    assert state.settings.antialias
    resumed = capsys.readouterr().out.splitlines()[-2]
    for part in ("3 steps from step 1 on", "anchor every 2 chunks", "sink within 11", "flow shift 5", "antialiased"):
        assert part in resumed


@pytest.mark.parametrize("decoder", ["causal", "chunk_tile"])
def test_a_resumed_stream_compares_and_decodes_as_before(tmp_path, toy, capsys, decoder):
    """Frames whose edit was still to come are beside it; the decoder goes along with the state."""
    again = ["--compare", "wipe", "--report", tmp_path / "r.json"]
    out = resumed_equals_whole(tmp_path, toy, CLIP, "--decoder", decoder, again=again)
    assert out.shape == (120, 64, 64, 3)
    summary = json.loads((tmp_path / "r.json").read_text())
    assert (summary["decoder"], summary["frames_held"], summary["compare"]) == (decoder, 0, "wipe")
    printed = capsys.readouterr().out
    held = "edited frames, which chunk_tile completes later, are in the saved state"
    assert (held in printed) == (decoder == "chunk_tile")
    assert f"{decoder} decoder" in printed


def fitted(source):
    return pixels_to_uint8(resize_and_crop(source, 64, 64))


def test_source_and_edit_in_one_picture(tmp_path, toy):
    told = ["--max-frames", 33, "--fps", 10]
    assert edit(CLIP, tmp_path / "plain.mkv", toy, *told) == 0
    plain, source = read(tmp_path / "plain.mkv"), fitted(read(CLIP)[:33])
    assert edit(CLIP, tmp_path / "both.mkv", toy, *told, "--compare", "side-by-side") == 0
    both = read(tmp_path / "both.mkv")
    assert torch.equal(both[:, :, 64:], plain)
    # 4:2:0 costs colour, not light.
    assert (both[:, :, :64].float() - source.float()).mean(-1).abs().mean() < 4
    assert edit(CLIP, tmp_path / "wipe.mkv", toy, *told, "--compare", "wipe") == 0
    wipe = read(tmp_path / "wipe.mkv")
    assert wipe.shape == plain.shape
    # The line is in the middle at first, and to the right of it a second and a half later.
    assert (wipe[0, :, 36:].float() - plain[0, :, 36:].float()).abs().mean() < 4
    assert (wipe[0, :, :28].float() - source[0, :, :28].float()).mean(-1).abs().mean() < 6
    assert (wipe[15, :, :52].float() - source[15, :, :52].float()).mean(-1).abs().mean() < 6


@pytest.mark.parametrize(
    ("clip", "options", "size"),
    [
        ((64, 96), ["--size", "96x64"], (64, 96)),
        ((64, 96), ["--size", "auto"], BUCKETS[0.68]),
        ((96, 64), ["--size", "auto"], BUCKETS[1.46]),
        ((96, 64), ["--size", "auto", "--model", "nano"], (256, 160)),
        ((64, 64), ["--size", "auto", "--model", "nano"], (192, 192)),
        ((64, 64), [], (704, 1280)),
        ((64, 64), ["--model", "nano", "--width", "128"], (160, 128)),
    ],
    ids=str,
)
def test_sizes(clip, options, size):
    arguments = build_parser().parse_args(["edit", "a.mp4", "b.mp4", "--model", "toy", *options])
    assert wanted_size(arguments, SimpleNamespace(size=clip)) == size


def test_a_stream_keeps_how_its_clip_is_read(tmp_path, toy):
    """Uneven times made even, stretched pixels: read so again when the stream goes on."""
    frames = toys.frames(50, 48, 64)
    times = [2 * i + (i % 3 == 1) for i in range(50)]
    rate = Fraction(50)
    clip = video_files.write_clip(tmp_path / "clip.mp4", frames, rate=rate, times=times, pixel=Fraction(4, 3))
    out = resumed_equals_whole(tmp_path, toy, clip, "--resample-fps", 30, "--square-pixels")
    info = probe(tmp_path / "b.mkv")
    assert (len(out), info.frame_rate) == (60, 30)
    source = StreamState.load(tmp_path / "s.safetensors").source
    told = {"frames": 60, "width": 85, "frame_rate": "30", "resample_fps": "30", "square_pixels": True}
    assert source == {**source, **told}


def test_a_state_without_a_way_of_reading_is_of_the_default_one(tmp_path, toy):
    state = tmp_path / "s.safetensors"
    assert edit(CLIP, tmp_path / "a.mkv", toy, "--max-frames", 9, "--save-state", state) == 0
    saved = StreamState.load(state)
    for name in ("resample_fps", "square_pixels", "hdr"):
        saved.source.pop(name)
    saved.save(state)
    assert edit(CLIP, tmp_path / "b.mkv", toy, "--resume", state, "--max-frames", 30, prompt=None) == 0


def test_a_rate_near_the_sources_resamples_to_the_sources(tmp_path, toy):
    plan = plan_of(CLIP, tmp_path / "o.mp4", toy, "--resample-fps", "29.97")
    assert plan.source["resample_fps"] == "30000/1001"
    assert plan.job.frames.num_frames == 120


@pytest.mark.parametrize("count", [1, 2, 8, 9, 32])
def test_short_clips_of_odd_sizes(tmp_path, toy, count):
    clip = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(count, 51, 77))
    assert edit(clip, tmp_path / "o.mkv", toy, "--size", "96x64", "--compare", "wipe") == 0
    assert read(tmp_path / "o.mkv").shape == (count, 64, 96, 3)


def test_a_turned_clip_is_edited_upright(tmp_path, toy):
    frames = video_files.level_frames(9, 48, 64)
    clip = video_files.turn(video_files.write_clip(tmp_path / "clip.mp4", frames), 90)
    assert edit(clip, tmp_path / "o.mkv", toy, "--compare", "side-by-side", "--size", "64x96") == 0
    source = read(tmp_path / "o.mkv")[:, :, :64].float().mean(-1)
    # The bright quarter, stored at the top left, is shown at the top right.
    assert (source[:, 8:40, 40:56].mean((1, 2)) - source[:, 56:88, 8:24].mean((1, 2)) > 15).all()


def hdr_clip(path):
    """Nine grey frames, tagged PQ."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv444p10le"
        context = video.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, 16, 1
        for number in range(9):
            frame = av.VideoFrame(64, 64, "yuv444p10le")
            for plane in frame.planes:
                plane.update(np.full(plane.buffer_size // 2, 512, np.uint16).tobytes())
            frame.pts, frame.time_base, frame.colorspace, frame.color_range = number, Fraction(1, 25), 9, 1
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


@pytest.mark.parametrize("how", ["tone-map", "ignore"])
def test_high_dynamic_range(tmp_path, toy, how):
    clip, report = hdr_clip(tmp_path / "hdr.mkv"), tmp_path / "r.json"
    assert edit(clip, tmp_path / "o.mp4", toy, "--hdr", how, "--report", report) == 0
    assert json.loads(report.read_text())["source"]["hdr"] == how


RESUMED = [
    (["--resample-fps", 10], "was read with resample_fps None, not 10; leave --resample-fps out with --resume"),
    (["--square-pixels"], "was read with square_pixels False, not True"),
    (["--hdr", "ignore"], "was read with hdr refuse, not ignore"),
    (["--prompt-at", "1", "x"], "--prompt-at goes with a new stream"),
    (["--motion-score", 3], "--motion-score 3 is written behind a new prompt; give --prompt as well"),
    (["--anchor-every", 2], "made with anchor_every 0, not 2; keep it as it was"),
    (["--start-step", 0, "--steps", 2], "made with steps 1, not 2"),
    (["--decoder", "chunk_tile"], "made with the decoder causal, not chunk_tile"),
    (["--antialias"], "made with antialias False, not True"),
    (["--size", "96x64"], "made with width 64, not 96"),
    (["--size", "auto"], "made with height 64, not "),
    (["--save-latent", "l.pt"], "--save-latent"),
]


def test_resume_refuses_what_contradicts_the_state(tmp_path, toy, capsys, monkeypatch):
    state = tmp_path / "s.safetensors"
    assert edit(CLIP, tmp_path / "a.mkv", toy, "--max-frames", 9, "--save-state", state) == 0
    monkeypatch.setattr(command, "load_networks", never)
    capsys.readouterr()
    for change, message in RESUMED:
        assert edit(CLIP, tmp_path / "b.mkv", toy, "--resume", state, *change, prompt=None) == 2, change
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1


def never(*_):
    pytest.fail("weights were read before all options were checked")


BAD = [
    ({"--prompt-at": ["soon", "x"]}, "'soon' is not a time; use seconds"),
    ({"--prompt-at": ["-1", "x"]}, "'-1' is not a time"),
    ({"--prompt-at": ["1", " "]}, "the prompt at 00:01.000 is empty"),
    ({"--prompt-at": ["0", "x"]}, "--prompt and a prompt that begins at 00:00"),
    ({"--prompt-at": ["0", "x"], "--prompt": None, "--prompt-file": "p.json"}, "use one of them"),
    ({"--prompt-at": ["5", "x"]}, "begins at frame 125, after the last chunk of the clip"),
    ({"--prompt-file": "late.json", "--prompt": None}, "the first prompt begins at 00:01.000; say by --prompt"),
    ({"--prompt-file": "gone.json"}, "gone.json cannot be read as a prompt schedule"),
    ({"--prompt-file": "notes.mp4"}, "notes.mp4 cannot be read as a prompt schedule"),
    ({"--prompt-file": "empty.json"}, "empty.json is not a list of prompts"),
    ({"--prompt-file": "p.json", "--report": "p.json"}, "are the same file"),
    ({"--motion-score": -1}, "--motion-score -1 is below 0"),
    ({"--anchor-every": -1}, "anchor_every -1 is below 0"),
    ({"--start-step": 4}, "start_step 4 is not on a grid of 4 steps"),
    ({"--start-step": 1, "--steps": 1}, "grid of 1 steps"),
    ({"--max-sink-distance": 5}, "max_sink_distance 5 is too near"),
    ({"--max-sink-distance": 122, "--no-sink-token": []}, "there is none"),
    ({"--flow-shift": 0}, "flow_shift 0.0 must be above 0"),
    ({"--flow-shift": 5}, "--flow-shift 5 has no say over 4 steps: the times of 4 and 2 are fixed"),
    ({"--size": "64"}, "--size 64 is not a size; write width x height"),
    ({"--size": "big"}, "--size big is not a size"),
    ({"--size": "100x64"}, "width 100 is not a multiple of 32; use width 96 instead"),
    ({"--size": "64x32"}, "height 32 is too small"),
    ({"--height": 64}, "--size 64x64 and --height both say how large"),
    ({"--width": 64, "--size": "auto"}, "--size auto and --width both say how large"),
    ({"--resample-fps": "fast"}, "--resample-fps fast is not a frame rate"),
    ({"--resample-fps": 0}, "--resample-fps 0 is not a frame rate"),
    ({"--resample-fps": 5, "--start-frame": 3}, "frame 3 is not in clip.mp4, which has frames 0 to 2"),
    ({"IN": "hdr.mkv"}, "hdr.mkv has high dynamic range (PQ)"),
    ({"IN": "hf://owner"}, "hf://owner is not an address"),
    ({"--tiles": []}, "--tiles goes with --mode bidirectional_short; leave it out with --mode long_streaming"),
    ({"--no-tiles": []}, "--no-tiles goes with --mode bidirectional_short"),
    (
        {"--mode": "bidirectional_short", "--save-state": "s"},
        "--save-state goes with --mode long_streaming; leave it out",
    ),
    ({"--mode": "bidirectional_short", "--resume": "s"}, "--resume goes with --mode long_streaming"),
    ({"--mode": "bidirectional_short", "--no-sink-token": []}, "--no-sink-token goes with --mode long_streaming"),
    ({"--mode": "bidirectional_short", "--prompt-at": ["1", "x"]}, "--prompt-at goes with --mode long_streaming"),
    ({"--mode": "bidirectional_short", "--prompt-file": "p.json"}, "--prompt-file goes with --mode long_streaming"),
    ({"--mode": "bidirectional_short", "--anchor-every": 0}, "--anchor-every goes with --mode long_streaming"),
    ({"--mode": "bidirectional_short", "--start-step": 1}, "--start-step goes with --mode long_streaming"),
    (
        {"--mode": "bidirectional_short", "--max-sink-distance": 9},
        "--max-sink-distance goes with --mode long_streaming",
    ),
    ({"--mode": "bidirectional_short", "--noise": "chunk"}, "--noise goes with --mode long_streaming"),
    (
        {"--mode": "bidirectional_short", "--num-cached-blocks": 2},
        "--num-cached-blocks goes with --mode long_streaming",
    ),
    ({"--save-latent": "nowhere/l.pt"}, "there is no folder"),
    ({"--save-latent": "out.mp4"}, "are the same file"),
    ({"--input-latent": "gone.pt"}, "gone.pt does not exist"),
    ({"--input-text-embed": "notes.mp4"}, "notes.mp4 is not a whole torch file"),
    ({"--lora": "gone.safetensors"}, "--lora gone.safetensors does not exist"),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.mp4").write_text("not a video\n")
    (folder / "p.json").write_text('[{"at": 0, "prompt": "x"}]')
    (folder / "late.json").write_text('[{"at": 1, "prompt": "x"}]')
    (folder / "empty.json").write_text("[]")
    video_files.write_clip(folder / "clip.mp4", toys.frames(9))
    hdr_clip(folder / "hdr.mkv")
    return folder


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[case[1][:40] for case in BAD])
def test_bad_input(bad_files, toy, capsys, monkeypatch, changes, message):
    """One line that names the value and the remedy, exit code 2, nothing written, no weights read."""
    monkeypatch.chdir(bad_files)
    monkeypatch.setattr(command, "load_networks", never)
    before = sorted(bad_files.iterdir())
    values = {"IN": "clip.mp4", "--model": toy, "--size": "64x64", "--prompt": "make it snow", **changes}
    source = values.pop("IN")
    line = ["edit", source, "out.mp4"]
    for name, value in values.items():
        if value is not None:
            line += [name, *(value if isinstance(value, list) else [value])]
    assert main([str(word) for word in line]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert sorted(bad_files.iterdir()) == before


@pytest.mark.parametrize("option", ["--compare", "--decoder", "--hdr", "--mode"])
def test_a_choice_that_is_none_is_refused_with_what_there_is(capsys, option):
    with pytest.raises(SystemExit) as stopped:
        main(["edit", "a.mp4", "b.mp4", option, "nonsense"])
    assert stopped.value.code == 2
    assert f"argument {option}: invalid choice: 'nonsense' (choose from" in capsys.readouterr().err
