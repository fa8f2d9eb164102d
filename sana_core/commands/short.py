"""``edit --mode bidirectional_short``: a short clip edited whole, from file to file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ..config import DIT_PRESETS
from ..edit_file import FileEdit, FileJob, FileReport
from ..errors import InputError
from ..models.prompt import DEFAULT_NEGATIVE_PROMPT, prompt_text
from ..models.vae_tiles import RELEASE_TILES, SpatialTiles
from ..precision.plan import check_choice
from ..short_clip import (
    DEFAULT_MOTION_SCORE,
    TRAINED_FRAMES,
    ShortClip,
    ShortClipOptions,
    check_fitting,
)
from ..streaming.noise import ChunkNoise
from ..video.reader import VideoReader
from ..weights.vae import DecoderChoice
from .edit_footage import check_numbers, check_targets, open_footage, output_rate, wanted_size
from .edit_networks import load_networks, pick_device, pick_dtype, random_preset, uses_nano
from .edit_options import BIDIRECTIONAL_SHORT, LONG_STREAMING
from .edit_progress import GracefulStop, in_gib
from .exchange import Exchange, check_exchange, read_exchange, save_exchange

if TYPE_CHECKING:
    from ..streaming.edit_stream import Progress

PRESET = "bidirectional-2b"
# Options of the sampler by their names on the command line.
SAMPLER_OPTIONS = ("steps", "cfg_scale", "seed", "noise_device", "flow_shift")
STAGES = {"encode": "encoding", "denoise": "denoising", "decode": "decoding"}
T = TypeVar("T", str, int)


@dataclasses.dataclass(frozen=True)
class ShortPlan:
    """What to read, to edit and to write; decided before weights are read."""

    job: FileJob
    total_frames: int
    options: ShortClipOptions
    size: tuple[int, int]
    antialias: bool
    decoder: DecoderChoice
    tiles: SpatialTiles | None
    prompt: str
    motion_score: int
    negative_prompt: str
    exchange: Exchange
    device: torch.device
    dtype: torch.dtype

    @property
    def prompts(self) -> list[str]:
        """What the text encoder is asked for."""
        return [prompt_text(self.prompt, self.motion_score)]


def run(options: argparse.Namespace) -> int:
    """Edits the clip; exit codes as for a stream. InputError, before weights are read, for what cannot be edited so."""
    from ..cli import EXIT_OK, EXIT_STOPPED

    if options.random_weights and options.model is None:
        options = argparse.Namespace(**{**vars(options), "model": PRESET})
    check_model(options)
    plan = make_plan(options)
    if plan.total_frames > TRAINED_FRAMES:
        print(f"{plan.total_frames} frames are edited at once; the model was trained on {TRAINED_FRAMES}", flush=True)
    model, vae, prompts, weights = load_networks(options, plan, check_fitting)
    with GracefulStop() as stop, StepBar(stop) as bar:
        clip = ShortClip(
            model,
            vae,
            prompts,
            plan.options,
            total_frames=plan.total_frames,
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            motion_score=plan.motion_score,
            height=plan.size[0],
            width=plan.size[1],
            antialias=plan.antialias,
            tiles=plan.tiles,
            on_progress=bar.on_progress,
            given=plan.exchange.given,
            recorder=plan.exchange.recorder,
        )
        edit = FileEdit(clip, plan.job)
        try:
            report = edit.run()
        finally:
            save_exchange(options, plan.exchange)
    summary = {"input": str(options.input), "weights": weights, **summarize(clip, plan, report)}
    if options.report:
        options.report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    edit.draw_sheet()
    print_summary(summary, plan, options)
    return EXIT_STOPPED if report.stopped else EXIT_OK


def check_model(options: argparse.Namespace) -> None:
    """InputError for models that are known not to see a clip whole."""
    if uses_nano(options):
        raise InputError(
            f"--mode {BIDIRECTIONAL_SHORT} needs a bidirectional model, and the built-in nano is a streaming one; give "
            f"--model a path or an hf:// address of one, or run python -m sana_streaming download {PRESET} vae text-encoder "
            f"and add --model {PRESET}"
        )
    if options.random_weights:
        random_preset(options)
    preset = DIT_PRESETS.get(str(options.model))
    if preset is not None and preset.variant != "bidirectional" and not Path(options.model).exists():
        raise InputError(
            f"--model {options.model} edits chunk by chunk; use it with --mode {LONG_STREAMING}, or --model {PRESET} with "
            f"--mode {BIDIRECTIONAL_SHORT}"
        )


def make_plan(options: argparse.Namespace) -> ShortPlan:
    """Checks everything that can be checked without weights; InputError for the first thing that is wrong."""
    check_targets(options)
    check_exchange(options)
    check_numbers(options)
    if options.precision is not None:
        check_choice(options.precision)
    if options.prompt is None and not options.input_text_embed:
        raise InputError('no --prompt is given; say what to do, for example --prompt "turn it into a watercolour"')
    reader, _ = open_footage(options)
    start, taken = taken_frames(options, reader)
    given = {name: value for name in SAMPLER_OPTIONS if (value := getattr(options, name)) is not None}
    sampler = ShortClipOptions(**given, max_frames=max(taken, TRAINED_FRAMES))
    ChunkNoise(sampler.as_stream(), None, (1, 1, 1))
    device, rate = pick_device(options.device), output_rate(options, reader)
    return ShortPlan(
        job=FileJob(
            frames=reader.part(start, taken),
            target=options.output,
            start=start,
            frame_rate=rate if rate != reader.frame_rate else None,
            crf=options.crf,
            audio_from=options.input if reader.info.has_audio else None,
            sheet=options.sheet,
            compare=options.compare,
        ),
        total_frames=taken,
        options=sampler,
        size=wanted_size(options, reader),
        antialias=bool(options.antialias),
        decoder=cast(DecoderChoice, options.decoder),
        tiles=None if options.tiles is False else RELEASE_TILES,
        prompt=options.prompt or "",
        motion_score=_given(options.motion_score, DEFAULT_MOTION_SCORE, options),
        negative_prompt=_given(options.negative_prompt, DEFAULT_NEGATIVE_PROMPT, options),
        exchange=read_exchange(options, taken),
        device=device,
        dtype=pick_dtype(options.dtype, device),
    )


def _given(value: T | None, default: T, options: argparse.Namespace) -> T:
    """``value``, else ``default``, but nothing of either where the prompts come embedded from a file."""
    if options.input_text_embed:
        return type(default)()
    return default if value is None else value


def taken_frames(options: argparse.Namespace, reader: VideoReader) -> tuple[int, int]:
    """(first frame, frames) of the clip to edit. More than the trained length only where ``--max-frames`` says so."""
    start, whole = options.start_frame or 0, reader.num_frames
    if not 0 <= start < whole:
        raise InputError(f"frame {start} is not in {options.input}, which has frames 0 to {whole - 1}")
    left = whole - start
    if options.max_frames is None and left > TRAINED_FRAMES:
        raise InputError(
            f"{options.input} has {left} frames{f' from frame {start} on' if start else ''}, all of which --mode "
            f"{BIDIRECTIONAL_SHORT} would edit at once; the model was trained on {TRAINED_FRAMES}: add --max-frames "
            f"{TRAINED_FRAMES} for the first of them, or more where memory allows, or edit it with --mode {LONG_STREAMING}"
        )
    return start, left if options.max_frames is None else min(left, options.max_frames)


class StepBar:
    """Progress on standard error: a step for every tile and every denoising pass, with the stage that is under way."""

    def __init__(self, stop: GracefulStop) -> None:
        from tqdm import tqdm

        self._stop, self._make = stop, tqdm
        self._bar: Any = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            if not self._stop.requested:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()

    def on_progress(self, progress: Progress) -> None:
        """Before each tile and pass; raises KeyboardInterrupt where Ctrl-C was pressed."""
        self._stop.check()
        if self._bar is None:
            style = "{desc}: {n_fmt}/{total_fmt} steps |{bar}| {elapsed}<{remaining}"
            self._bar = self._make(
                total=progress.total,
                desc=STAGES[progress.stage],
                file=sys.stderr,
                bar_format=style,
                dynamic_ncols=True,
            )
        self._bar.set_description_str(STAGES[progress.stage], refresh=False)
        self._bar.update(progress.number - self._bar.n)


def summarize(clip: ShortClip, plan: ShortPlan, report: FileReport) -> dict[str, Any]:
    """What a stream's report says as well, as far as a clip has it, and what it alone has."""
    job, state = plan.job, clip.state
    settings = {
        "height": state.settings.height,
        "width": state.settings.width,
        "total_frames": plan.total_frames,
        "antialias": plan.antialias,
        "model": clip.model.fingerprint,
        "model_dtype": str(clip.model.dtype).removeprefix("torch."),
        "vae": state.settings.vae,
        "vae_dtype": state.settings.vae_dtype,
        "options": dataclasses.asdict(plan.options),
    }
    return {
        "mode": BIDIRECTIONAL_SHORT,
        "output": str(job.target),
        **report.to_dict(),
        # All frames are one chunk, however many pieces the file was written in.
        "chunks": min(1, report.chunks),
        "start_frame": job.start,
        "frame_rate": str(job.frame_rate or job.frames.frame_rate),
        "crf": job.crf,
        "audio": job.audio is not None,
        "compare": job.compare,
        "noise_mode": "file" if plan.exchange.given else "clip",
        "decoder": "causal" if clip.vae.decodes_causally else "non-causal",
        "tiles": plan.tiles and dataclasses.asdict(plan.tiles),
        "flow_shift": plan.options.flow_shift,
        "motion_score": plan.motion_score,
        "prompt": plan.prompt,
        "negative_prompt": plan.negative_prompt,
        "settings": settings,
        "device": torch.cuda.get_device_name(clip.device) if clip.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def print_summary(summary: dict[str, Any], plan: ShortPlan, options: argparse.Namespace) -> None:
    job, recorder = plan.job, plan.exchange.recorder
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())
    settings, sampler, tiles = summary["settings"], summary["settings"]["options"], summary["tiles"]
    parts = [
        f"{settings['width']}x{settings['height']}",
        f"{sampler['steps']} steps",
        f"cfg {sampler['cfg_scale']:g}",
        f"flow shift {sampler['flow_shift']:g}",
        f"seed {sampler['seed']}",
        f"motion score {summary['motion_score']}",
        f"tiles of {tiles['size']}" if tiles else "no tiles",
        f"{summary['decoder']} decoder",
        f"{settings['model_dtype']} on {summary['device']}",
    ]
    print(
        f"{'stopped; ' if summary['stopped'] else ''}{summary['frames_written']} frames edited at once, "
        f"{summary['wall_seconds']:.1f} s ({summary['frames_per_second']:.2f} frames/s)\n"
        f"  seconds    {stages}\n"
        f"  memory     peak {in_gib(summary['peak_memory'])}\n"
        f"  in force   {', '.join(parts)}"
    )
    if job.audio_from and not job.audio:
        print("  audio      left out, because --fps differs from the source's rate")
    written = summary["frames_written"] > 0
    made = (
        ("latents", options.save_latent, recorder is not None and recorder.num_latents > 0),
        ("report", options.report, True),
        ("sheet", options.sheet, written),
        ("video", job.target, written),
    )
    for what, path, done in made:
        if path and done:
            print(f"  {what:10} {path}")
