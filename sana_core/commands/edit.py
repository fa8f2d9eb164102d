"""``edit``: a video file through the stream, with a progress bar and a report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from ..config import DIT_PRESETS, VAEConfig
from ..edit_file import FileEdit, FileJob, FileReport
from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..paths import check_distinct, check_target
from ..streaming.edit_stream import EditStream, FixedPrompts, check_networks, check_size
from ..streaming.noise import ChunkNoise
from ..streaming.options import StreamOptions
from ..streaming.state import StreamState
from ..video.reader import FrameSource, PictureFrames, VideoInfo, VideoReader, closest_rate, probe
from ..video.writer import check_output
from ..weights import nano
from ..weights.dit import load_dit
from ..weights.locate import Components, locate
from ..weights.random_init import RandomPrompts, random_dit, random_vae
from ..weights.vae import load_vae

if TYPE_CHECKING:
    from ..streaming.edit_stream import EditedChunk, Progress

DEFAULT_HEIGHT, DEFAULT_WIDTH = 704, 1280
# Command-line names of the options that a saved stream brings along.
STREAM_OPTIONS = ("steps", "cfg_scale", "seed", "noise", "noise_device", "num_cached_blocks", "sink_token")
RANDOM = "random weights"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is decided before weights are read."""

    job: FileJob
    state: StreamState | None
    total_frames: int
    source: dict[str, Any]
    options: StreamOptions
    size: tuple[int, int]
    prompt: str
    negative_prompt: str
    device: torch.device
    dtype: torch.dtype


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED

    plan = make_plan(options)
    if uses_nano(options):
        print_nano()
    model, vae, prompts, weights = load_networks(options, plan)
    with GracefulStop() as stop, ChunkBar(stop) as bar:
        stream = open_stream(plan, model, vae, prompts, bar)
        edit = FileEdit(stream, plan.job, bar.on_chunk)
        try:
            report = edit.run()
        finally:
            if options.save_state:
                stream.state.save(options.save_state)
    summary = {"input": str(options.input), "weights": weights, **summarize(stream, plan.job, report)}
    if options.report:
        options.report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    edit.draw_sheet()
    print_summary(summary, plan.job, options)
    return EXIT_STOPPED if report.stopped else EXIT_OK


def make_plan(options: argparse.Namespace) -> Plan:
    """Checks everything that can be checked without weights; InputError for the first thing that is wrong."""
    info = probe(options.input)
    check_targets(options)
    state = StreamState.load(options.resume) if options.resume else None
    if options.prompt is None and state is None:
        raise InputError('no --prompt is given; say what to do, for example --prompt "turn it into a watercolour"')
    if options.max_frames is not None and options.max_frames < 1:
        raise InputError(f"--max-frames {options.max_frames} edits nothing; use 1 or more, or leave it out for all")
    if not 0 <= options.crf <= 51:
        raise InputError(f"--crf {options.crf} is out of range; use 0 (lossless) to 51, 25 is the default")
    source = describe_source(info, options.start_frame or 0)
    start = check_resumed(options, state, source) if state else source["start_frame"]
    if not 0 <= start < info.num_frames and not (state and start == info.num_frames):
        raise InputError(f"frame {start} is not in {options.input}, which has frames 0 to {info.num_frames - 1}")
    left = info.num_frames - start
    taken = left if options.max_frames is None else min(left, options.max_frames)
    # With --save-state the stream is that of the rest of the clip, so that a later run can go on as if it were this one.
    partial = options.save_state is not None and taken < left
    given = {name: value for name in STREAM_OPTIONS if (value := getattr(options, name)) is not None}
    saved = state.settings.options if state else None
    device = pick_device(options.device)
    plan = Plan(
        job=make_job(options, info, start, taken, finish=not partial),
        state=state,
        total_frames=left if partial else taken,
        source=state.source if state else source,
        options=dataclasses.replace(saved or StreamOptions(), **given),
        size=wanted_size(options, state),
        prompt=options.prompt if options.prompt is not None else state.prompt if state else "",
        negative_prompt=options.negative_prompt or (state.negative_prompt if state else ""),
        device=device,
        dtype=pick_dtype(options.dtype, device),
    )
    if state is not None:
        height, width = plan.size
        state.adopt(dataclasses.replace(state.settings, height=height, width=width, options=plan.options))
    ChunkNoise(plan.options, None, (1, 1, 1))
    return plan


def check_targets(options: argparse.Namespace) -> None:
    """InputError for a place that cannot be written to, or that is used twice."""
    check_output(options.output, source=options.input)
    named = {"--report": options.report, "--save-state": options.save_state, "--sheet": options.sheet}
    for path in filter(None, named.values()):
        check_target(path)
    check_distinct({"IN": options.input, "OUT": options.output, **named})
    if options.resume:
        check_distinct({"--resume": options.resume, "OUT": options.output, "--report": options.report})
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {options.sheet} is not a .png file; name one that is")


def describe_source(info: VideoInfo, start: int) -> dict[str, Any]:
    """What a saved stream remembers of its clip."""
    return {
        "frames": info.num_frames,
        "width": info.width,
        "height": info.height,
        "frame_rate": str(info.frame_rate),
        "start_frame": start,
    }


def check_resumed(options: argparse.Namespace, state: StreamState, source: dict[str, Any]) -> int:
    """The source frame that a saved stream goes on with; InputError when it cannot go on with this clip."""
    if state.finished:
        raise InputError(f"{options.resume} is a stream that has reached its end; start a new one without --resume")
    if options.start_frame is not None:
        raise InputError(f"--start-frame {options.start_frame} goes with a new stream; leave it out with --resume")
    if not state.source:
        raise InputError(f"{options.resume} was not saved by edit --save-state; go on with it where it was made")
    for name in ("frames", "width", "height", "frame_rate"):
        if state.source[name] != source[name]:
            raise InputError(
                f"{options.resume} is a stream over a clip with {name.replace('_', ' ')} {state.source[name]}, "
                f"{options.input} has {source[name]}; give the clip that the stream was started with"
            )
    return state.source["start_frame"] + state.frames_in


def make_job(options: argparse.Namespace, info: VideoInfo, start: int, taken: int, finish: bool) -> FileJob:
    frames: FrameSource
    if taken:
        frames = VideoReader(options.input, start=start, max_frames=taken)
    else:
        # All frames were read before the stream was stopped; what waits in its state is still to come out.
        frames = PictureFrames(torch.zeros(0, info.height, info.width, 3, dtype=torch.uint8), info.frame_rate)
    rate = parse_rate(options.fps)
    return FileJob(
        frames=frames,
        target=options.output,
        start=start,
        frame_rate=rate and closest_rate(rate, info.frame_rate),
        crf=options.crf,
        audio_from=options.input if info.has_audio else None,
        finish=finish,
        sheet=options.sheet,
    )


def parse_rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not Fraction(1, 1000) <= rate <= 1000:
        raise InputError(f"--fps {text} is not a frame rate; use a number such as 16, 23.976 or 30000/1001")
    return rate


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"--device {name} cannot be used here; use auto, cpu, or cuda where torch sees a GPU"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def uses_nano(options: argparse.Namespace) -> bool:
    """Whether the transformer is the built-in one."""
    return not options.random_weights and options.model in (None, nano.NAME)


def print_nano() -> None:
    from ..training.data.edits import EDITS

    edits = ", ".join(name.replace("_", " ") for name in EDITS)
    hint = f"a small model that knows these edits: {edits}; for others name weights by --model"
    print(f"model: nano (built in), {hint}", flush=True)


def wanted_size(options: argparse.Namespace, state: StreamState | None) -> tuple[int, int]:
    saved = state.settings if state else None
    default = (nano.HEIGHT, nano.WIDTH) if uses_nano(options) else (DEFAULT_HEIGHT, DEFAULT_WIDTH)
    height = options.height if options.height is not None else saved.height if saved else default[0]
    width = options.width if options.width is not None else saved.width if saved else default[1]
    check_size(height, width)
    return height, width


def load_networks(
    options: argparse.Namespace, plan: Plan
) -> tuple[SanaStreamingDiT, CausalVAE, FixedPrompts, dict[str, str]]:
    """Transformer, VAE, embedded prompts and where they came from; the text encoder is gone before the others come."""
    if options.random_weights:
        return _random_networks(options, plan)
    files = locate(options.model or nano.NAME, options.vae, options.text_encoder)
    with GemmaTextEncoder(files.text_encoder, device=plan.device, cache_dir=default_cache_dir()) as text:
        prompts = FixedPrompts(
            text.encode(plan.prompt),
            text.encode_negative(plan.negative_prompt) if plan.options.guided else None,
        )
    vae = load_vae(files.vae, device=plan.device, dtype=plan.dtype)
    check_size(*plan.size, vae.config.spatial_factor)
    model = load_dit(files.model, device=plan.device, dtype=plan.dtype)
    _check_text(files, prompts, model)
    check_networks(model, vae)
    return model, vae, prompts, {name: str(path) for name, path in dataclasses.asdict(files).items()}


def _check_text(files: Components, prompts: FixedPrompts, model: SanaStreamingDiT) -> None:
    got, needed = prompts.positive.embeds.shape[-1], model.config.caption_channels
    if got != needed:
        raise InputError(
            f"{files.text_encoder} gives {got} channels, {files.model} takes {needed}; "
            "use the text encoder that belongs to the model"
        )


def _random_networks(
    options: argparse.Namespace, plan: Plan
) -> tuple[SanaStreamingDiT, CausalVAE, FixedPrompts, dict[str, str]]:
    preset = options.model or next(iter(DIT_PRESETS))
    if preset not in DIT_PRESETS:
        raise InputError(f"--random-weights needs a preset as --model, not {preset}; use {', '.join(DIT_PRESETS)}")
    config = DIT_PRESETS[preset]
    text = RandomPrompts(config.caption_channels, config.max_text_tokens)
    model = random_dit(config, device=plan.device, dtype=plan.dtype)
    vae = random_vae(VAEConfig(decoder_causal=True), device=plan.device, dtype=plan.dtype)
    check_networks(model, vae)
    prompts = FixedPrompts(text.encode(plan.prompt), text.encode_negative(plan.negative_prompt))
    return model, vae, prompts, {"model": f"{preset}, {RANDOM}", "vae": RANDOM, "text_encoder": RANDOM}


def open_stream(
    plan: Plan, model: SanaStreamingDiT, vae: CausalVAE, prompts: FixedPrompts, bar: ChunkBar
) -> EditStream:
    """A new stream, or the saved one."""
    state = plan.state
    if state is None:
        stream = EditStream(
            model,
            vae,
            prompts,
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            height=plan.size[0],
            width=plan.size[1],
            total_frames=plan.total_frames,
            options=plan.options,
            on_progress=bar.on_progress,
        )
        stream.state.source = plan.source
        return stream
    state.prompt_changes += plan.prompt != state.prompt
    state.prompt, state.negative_prompt = plan.prompt, plan.negative_prompt
    return EditStream.resume(model, vae, prompts, state, on_progress=bar.on_progress)


class GracefulStop:
    """Turns Ctrl-C into a request that is honoured before the next unit of work, never while a chunk is written.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt


class ChunkBar:
    """Progress on standard error: chunks (in fractions of one), frames per second, memory."""

    def __init__(self, stop: GracefulStop) -> None:
        from tqdm import tqdm

        self._stop = stop
        self._make = tqdm
        self._bar: Any = None

    def __enter__(self) -> ChunkBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_progress(self, progress: Progress) -> None:
        self._stop.check()
        if self._bar is None:
            style = "{desc}: {n:.1f}/{total_fmt} chunks |{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = self._make(
                total=progress.total_chunks, desc="editing", file=sys.stderr, bar_format=style, dynamic_ncols=True
            )
        self._bar.update(progress.chunk + progress.number / progress.total - self._bar.n)

    def on_chunk(self, chunk: EditedChunk, report: FileReport) -> None:
        self._bar.update(chunk.index + 1 - self._bar.n)
        rate = report.frames_written / report.wall_seconds
        self._bar.set_postfix_str(f"{rate:.2f} frames/s, {_in_gib(report.peak_memory)}")


def summarize(stream: EditStream, job: FileJob, report: FileReport) -> dict[str, Any]:
    """Everything a user or a benchmark wants to know of a run."""
    gpu = stream.device.type == "cuda"
    return {
        "output": str(job.target),
        **report.to_dict(),
        "frames_waiting": stream.state.num_waiting,
        "start_frame": job.start,
        "frame_rate": str(job.frame_rate or job.frames.frame_rate),
        "crf": job.crf,
        "audio": job.audio is not None,
        "noise_mode": stream.noise_mode,
        "prompt": stream.state.prompt,
        "negative_prompt": stream.state.negative_prompt,
        "settings": stream.state.settings.to_dict(),
        "device": torch.cuda.get_device_name(stream.device) if gpu else "cpu",
        "torch": torch.__version__,
    }


def print_summary(summary: dict[str, Any], job: FileJob, options: argparse.Namespace) -> None:
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())
    settings = summary["settings"]
    kept = settings["options"]
    stopped = "stopped; " if summary["stopped"] else ""
    print(
        f"{stopped}{summary['frames_written']} frames in {summary['chunks']} chunks, {summary['wall_seconds']:.1f} s "
        f"({summary['frames_per_second']:.2f} frames/s)\n"
        f"  seconds    {stages}\n"
        f"  memory     peak {_in_gib(summary['peak_memory'])}; stream state {summary['state_bytes'] / 2**20:.1f} MiB\n"
        f"  in force   {settings['width']}x{settings['height']}, {kept['steps']} steps, cfg {kept['cfg_scale']:g}, "
        f"seed {kept['seed']}, noise per {summary['noise_mode']}, window {kept['num_cached_blocks']}"
        f"{' with sink' if kept['sink_token'] else ''}, {settings['model_dtype']} on {summary['device']}"
    )
    if summary["frames_waiting"]:
        what = "are in the saved state and come out when it goes on" if options.save_state else "were not edited"
        print(f"  waiting    {summary['frames_waiting']} frames {what}")
    if job.audio_from and not job.audio:
        print("  audio      left out, because --fps differs from the source's rate")
    made = (("state", options.save_state), ("report", options.report), ("sheet", options.sheet), ("video", job.target))
    for what, path in made:
        if path and path.exists() and (what != "video" or summary["frames_written"]):
            print(f"  {what:10} {path}")


def _in_gib(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in sizes.items())
