"""``edit``: a video file through the stream, with a progress bar and a report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..config import DIT_PRESETS, VAEConfig
from ..errors import InputError

if TYPE_CHECKING:
    import torch

    from ..edit_file import FileJob, FileReport
    from ..models.causal_vae import CausalVAE
    from ..models.dit import SanaStreamingDiT
    from ..streaming.edit_stream import EditedChunk, EditStream, Progress, PromptEncoder
    from ..streaming.state import StreamState

DEFAULT_HEIGHT, DEFAULT_WIDTH = 704, 1280
# Command-line names of the options that a saved stream brings along.
STREAM_OPTIONS = ("steps", "cfg_scale", "seed", "noise", "noise_device", "num_cached_blocks", "sink_token")
Networks = tuple["SanaStreamingDiT", "CausalVAE", "PromptEncoder"]


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED
    from ..edit_file import edit_file
    from ..streaming.state import StreamState

    state = StreamState.load(options.resume) if options.resume else None
    job, total_frames = plan_job(options, state)
    networks = load_networks(options, state)
    bar = ChunkBar()
    stream = open_stream(options, state, networks, total_frames, bar)
    with bar:
        report = edit_file(stream, job, bar.on_chunk)
    if options.save_state:
        stream.state.save(options.save_state)
    summary = {"input": str(options.input), **summarize(stream, job, report)}
    if options.report:
        options.report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_summary(summary, job, options)
    return EXIT_STOPPED if report.stopped else EXIT_OK


def plan_job(options: argparse.Namespace, state: StreamState | None) -> tuple[FileJob, int]:
    """The job, and the length of a new stream; InputError for the first thing that can be seen to be wrong by now.

    With --save-state a new stream is that of the rest of the clip, so that a later run can go on as if it were this one.
    """
    from ..edit_file import FileJob
    from ..paths import check_folder
    from ..video.reader import VideoReader, probe
    from ..video.writer import check_output

    info = probe(options.input)
    check_output(options.output, source=options.input)
    for path in filter(None, (options.report, options.save_state, options.sheet)):
        check_folder(path)
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {options.sheet} is not a .png file; name one that is")
    if options.prompt is None and state is None:
        raise InputError('no --prompt is given; say what to do, for example --prompt "turn it into a watercolour"')
    if options.max_frames is not None and options.max_frames < 1:
        raise InputError(f"--max-frames {options.max_frames} edits nothing; use 1 or more, or leave it out for all")
    start = options.start_frame
    if start is None:
        start = state.frames_in if state is not None else 0
    if not 0 <= start < info.num_frames:
        raise InputError(f"frame {start} is not in {options.input}, which has frames 0 to {info.num_frames - 1}")
    left = info.num_frames - start
    taken = left if options.max_frames is None else min(left, options.max_frames)
    partial = options.save_state is not None and taken < left
    job = FileJob(
        frames=VideoReader(options.input, start=start, max_frames=taken),
        target=options.output,
        start=start,
        frame_rate=parse_rate(options.fps),
        crf=options.crf,
        audio_from=options.input if info.has_audio else None,
        finish=not partial,
        sheet=options.sheet,
    )
    return job, left if partial else taken


def parse_rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise InputError(f"--fps {text} is not a frame rate; use a number such as 16, 23.976 or 30000/1001")
    return rate


def pick_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name} is unknown; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} is not here: this torch sees no GPU; use --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_networks(options: argparse.Namespace, state: StreamState | None) -> Networks:
    """Transformer, VAE and text encoder on their device, checked against each other and against the wanted size."""
    from ..streaming.edit_stream import check_networks, check_size

    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    load = _random_networks if options.random_weights else _load_files
    model, vae, text = load(options, device, dtype)
    check_networks(model, vae)
    height, width = wanted_size(options, state)
    check_size(height, width, vae.config.spatial_factor)
    return model, vae, text


def wanted_size(options: argparse.Namespace, state: StreamState | None) -> tuple[int, int]:
    saved = state.settings if state else None
    height = options.height if options.height is not None else saved.height if saved else DEFAULT_HEIGHT
    width = options.width if options.width is not None else saved.width if saved else DEFAULT_WIDTH
    return height, width


def _load_files(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Networks:
    from ..models.prompt_cache import default_cache_dir
    from ..models.text_encoder import GemmaTextEncoder
    from ..weights.dit import load_dit
    from ..weights.locate import locate
    from ..weights.vae import load_vae

    if options.model is None:
        raise InputError("no --model is given; name a checkpoint file, or a folder with dit, vae and text_encoder")
    files = locate(options.model, options.vae, options.text_encoder)
    text = GemmaTextEncoder(files.text_encoder, device=device, cache_dir=default_cache_dir())
    model = load_dit(files.model, device=device, dtype=dtype)
    width = model.config.caption_channels
    if text.hidden_size != width:
        raise InputError(
            f"{files.text_encoder} gives {text.hidden_size} channels, {files.model} takes {width}; "
            "use the text encoder that belongs to the model"
        )
    return model, load_vae(files.vae, device=device, dtype=dtype), text


def _random_networks(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Networks:
    from ..weights.random_init import RandomPrompts, random_dit, random_vae

    preset = options.model or next(iter(DIT_PRESETS))
    if preset not in DIT_PRESETS:
        raise InputError(f"--random-weights needs a preset as --model, not {preset}; use {', '.join(DIT_PRESETS)}")
    config = DIT_PRESETS[preset]
    return (
        random_dit(config, device=device, dtype=dtype),
        random_vae(VAEConfig(decoder_causal=True), device=device, dtype=dtype),
        RandomPrompts(config.caption_channels, config.max_text_tokens),
    )


def open_stream(
    options: argparse.Namespace, state: StreamState | None, networks: Networks, total_frames: int, bar: ChunkBar
) -> EditStream:
    """A new stream, or the saved one after a check that nothing asked for contradicts it."""
    from ..streaming.edit_stream import EditStream
    from ..streaming.options import StreamOptions

    model, vae, text = networks
    given = {name: value for name in STREAM_OPTIONS if (value := getattr(options, name)) is not None}
    height, width = wanted_size(options, state)
    if state is None:
        return EditStream(
            model,
            vae,
            text,
            prompt=options.prompt,
            negative_prompt=options.negative_prompt or "",
            height=height,
            width=width,
            total_frames=total_frames,
            options=StreamOptions(**given),
            on_progress=bar.on_progress,
        )
    if state.finished:
        raise InputError(f"{options.resume} is a stream that has reached its end; start a new one without --resume")
    wanted = dataclasses.replace(state.settings.options or StreamOptions(), **given)
    state.adopt(dataclasses.replace(state.settings, height=height, width=width, options=wanted))
    if options.negative_prompt is not None:
        state.negative_prompt = options.negative_prompt
    if options.prompt is not None and options.prompt != state.prompt:
        state.prompt, state.prompt_changes = options.prompt, state.prompt_changes + 1
    return EditStream.resume(model, vae, text, state, on_progress=bar.on_progress)


class ChunkBar:
    """Progress on standard error: chunks (in fractions of one), frames per second, memory."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._make = tqdm
        self._bar: Any = None

    def __enter__(self) -> ChunkBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_progress(self, progress: Progress) -> None:
        if self._bar is None:
            style = "{desc}: {n:.1f}/{total_fmt} chunks |{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = self._make(
                total=progress.total_chunks, desc="editing", file=sys.stderr, bar_format=style, dynamic_ncols=True
            )
        self._bar.update(progress.chunk + progress.number / progress.total - self._bar.n)

    def on_chunk(self, chunk: EditedChunk, report: FileReport) -> None:
        memory = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in report.peak_memory.items())
        self._bar.update(chunk.index + 1 - self._bar.n)
        self._bar.set_postfix_str(f"{report.frames_written / report.wall_seconds:.2f} frames/s, {memory}")


def summarize(stream: EditStream, job: FileJob, report: FileReport) -> dict[str, Any]:
    """Everything a user or a benchmark wants to know of a run."""
    import torch

    gpu = stream.device.type == "cuda"
    return {
        "output": str(job.target),
        **report.to_dict(),
        "frames_waiting": stream.state.num_waiting,
        "start_frame": job.start,
        "audio": job.audio is not None,
        "noise_mode": stream.noise_mode,
        "prompt": stream.state.prompt,
        "settings": stream.state.settings.to_dict(),
        "device": torch.cuda.get_device_name(stream.device) if gpu else "cpu",
        "torch": torch.__version__,
    }


def print_summary(summary: dict[str, Any], job: FileJob, options: argparse.Namespace) -> None:
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())
    memory = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in summary["peak_memory"].items())
    settings = summary["settings"]
    kept = settings["options"]
    stopped = "stopped; " if summary["stopped"] else ""
    print(
        f"{stopped}{summary['frames_written']} frames in {summary['chunks']} chunks, {summary['wall_seconds']:.1f} s "
        f"({summary['frames_per_second']:.2f} frames/s)\n"
        f"  seconds    {stages}\n"
        f"  memory     peak {memory}; stream state {summary['state_bytes'] / 2**20:.1f} MiB\n"
        f"  in force   {settings['width']}x{settings['height']}, {kept['steps']} steps, cfg {kept['cfg_scale']:g}, "
        f"seed {kept['seed']}, noise per {summary['noise_mode']}, window {kept['num_cached_blocks']}"
        f"{' with sink' if kept['sink_token'] else ''}, {settings['model_dtype']} on {summary['device']}"
    )
    if summary["frames_waiting"]:
        print(f"  waiting    {summary['frames_waiting']} frames are in the saved state and come out when it goes on")
    if job.audio_from and not job.audio:
        print("  audio      left out, because --fps differs from the source's rate")
    for what, path in (("state", options.save_state), ("report", options.report), ("sheet", options.sheet)):
        if path:
            print(f"  {what:10} {path}")
    print(f"  video      {summary['output']}")
