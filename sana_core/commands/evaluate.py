"""``evaluate``: a model's edits of the held-out clips, measured."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..evaluation.editor import StreamEditor
from ..evaluation.held_out import (
    chosen_clips,
    expected_samples,
    measure_clip,
    measure_round_trip,
    samples_by_clip,
)
from ..evaluation.long_run import check_loop_frames, measure_long_run
from ..evaluation.report import Report
from ..evaluation.sheet import EvaluationSheet
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..paths import check_distinct, check_target
from ..streaming.edit_stream import check_networks, check_size
from ..streaming.options import StreamOptions
from ..training.data.sources import Sample, check_held_out
from ..weights.dit import load_dit
from ..weights.locate import locate
from ..weights.lora import apply_loras, parse_loras
from ..weights.vae import load_vae
from .edit_networks import pick_device, pick_dtype


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED

    stream_options, clips = check_options(options)
    check_held_out()
    editor = load_editor(options, stream_options)
    evaluation = Evaluation(editor, clips, options)
    try:
        evaluation.run()
    except KeyboardInterrupt:
        print("stopped; what was measured so far:", file=sys.stderr)
    evaluation.save()
    if options.sheet:
        evaluation.sheet.draw(options.sheet)
    print(evaluation.report.table())
    return EXIT_OK if evaluation.report.complete else EXIT_STOPPED


def check_options(options: argparse.Namespace) -> tuple[StreamOptions, list[int]]:
    """How the stream is sampled, and the numbers of the clips. InputError for what is wrong in the command line."""
    for path in filter(None, (options.json, options.sheet)):
        check_target(path)
    check_distinct({"--json": options.json, "--sheet": options.sheet})
    if options.sheet and options.sheet.suffix.lower() not in (".png", ".jpg"):
        raise InputError(f"--sheet {options.sheet} is not a .png or .jpg file; name one that is")
    if options.frames < 2:
        raise InputError(f"--frames {options.frames} is too few; use 2 or more (default: 97)")
    check_size(options.height, options.width, 1)
    check_loop_frames(options.loop_frames)
    parse_loras(options.lora)
    return StreamOptions(steps=options.steps, seed=options.seed), chosen_clips(options.clips)


def load_editor(options: argparse.Namespace, stream_options: StreamOptions) -> StreamEditor:
    """The networks on their device. InputError where files are missing, or the size does not fit the VAE."""
    files = locate(options.model, options.vae, options.text_encoder, download=options.download)
    device = pick_device(options.device)
    dtype = pick_dtype("auto", device)
    vae = load_vae(files.vae, device=device, dtype=dtype)
    check_size(options.height, options.width, vae.config.spatial_factor)
    model = load_dit(files.model, device=device, dtype=dtype)
    apply_loras(model, parse_loras(options.lora))
    check_networks(model, vae)
    text = GemmaTextEncoder(files.text_encoder, device=device, cache_dir=default_cache_dir())
    return StreamEditor(model, vae, text, height=options.height, width=options.width, options=stream_options)


def describe(editor: StreamEditor, options: argparse.Namespace) -> dict[str, Any]:
    """What it takes to run the same again. Folders of this machine stay out of it."""
    device = next(editor.model.parameters()).device
    return {
        "version": _version(),
        "model": Path(options.model).resolve().name,
        "loras": [f"{Path(lora.file).name}:{lora.strength:g}" for lora in parse_loras(options.lora)],
        "model_fingerprint": editor.model.fingerprint,
        "vae_fingerprint": editor.vae.fingerprint,
        "steps": options.steps,
        "seed": options.seed,
        "height": options.height,
        "width": options.width,
        "frames": options.frames,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}",
        "dtype": str(editor.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _version() -> str | None:
    try:
        return version("sana-streaming")
    except PackageNotFoundError:
        return None


class Evaluation:
    """Runs clip after clip, tells of each sample, and keeps the report file up to date."""

    def __init__(self, editor: StreamEditor, clips: list[int], options: argparse.Namespace) -> None:
        self.editor, self.clips, self.options = editor, clips, options
        self.report = Report(describe(editor, options))
        self.sheet = EvaluationSheet()
        self._samples = expected_samples(clips)
        self._frames_left = self._samples * options.frames + options.loop_frames
        self._frames_done = 0
        self._began = time.perf_counter()

    def run(self) -> None:
        """Everything. KeyboardInterrupt leaves in ``report`` what was measured."""
        options = self.options
        for rank, samples in samples_by_clip(self.clips, options.frames, options.height, options.width):
            self._measure_clip(rank, samples)
            # Not to be held while the samples of the next clip are made.
            del samples
            self.save()
        if options.loop_frames:
            print(f"long run of {options.loop_frames} frames", file=sys.stderr)
            self.report.long_run = measure_long_run(
                self.editor, options.loop_frames, options.height, options.width, on_frames=self._add_loop_frames
            )
        self.report.complete = True

    def save(self) -> None:
        if self.options.json:
            self.report.write(self.options.json)

    def _measure_clip(self, rank: int, samples: list[Sample]) -> None:
        clip = samples[0].clip
        round_trip = measure_round_trip(self.editor, clip)
        self.report.round_trip[clip.name] = round_trip
        print(f"{clip.name}: VAE round trip {round_trip:.2f} dB", file=sys.stderr)
        for sample, output, scores in measure_clip(self.editor, samples):
            self.report.samples.append(scores)
            self.sheet.offer(rank, sample, output, scores)
            self._count(len(output))
            print(
                f"[{len(self.report.samples)}/{self._samples}] {scores.clip}, {scores.edit}: {scores.psnr:.2f} dB "
                f"(source {scores.source_psnr:.2f}){self._rate()}",
                file=sys.stderr,
            )

    def _add_loop_frames(self, count: int) -> None:
        self._count(count)
        print(f"long run{self._rate()}", file=sys.stderr)

    def _count(self, frames: int) -> None:
        self._frames_done += frames
        self._frames_left -= frames

    def _rate(self) -> str:
        rate = self._frames_done / (time.perf_counter() - self._began)
        return f", {rate:.1f} frames/s, {timedelta(seconds=round(max(0, self._frames_left) / rate))} left"
