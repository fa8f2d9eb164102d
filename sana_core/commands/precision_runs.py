"""What ``precision profile`` and ``precision compare`` do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ..benchmark.results import header
from ..config import VAEConfig
from ..errors import InputError
from ..evaluation.editor import StreamEditor
from ..evaluation.held_out import chosen_clips
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..paths import check_distinct, check_target
from ..precision.apply import twin
from ..precision.comparison import FLOOR, compare_plans
from ..precision.footage import NUM_FRAMES, Footage, calibration_clips, scenes
from ..precision.formats import kitchen_version
from ..precision.free_running import EDITS, held_out
from ..precision.journal import Journal
from ..precision.plan import UNQUANTIZED, Plan, choose_plan, preset_names
from ..precision.profile import (
    QUANTIZED,
    Point,
    Profile,
    Profiler,
    ProfileSettings,
    Progress,
    decibels,
    power,
)
from ..precision.reference import CalibrationClip, clips_digest, record
from ..streaming.chunks import CHUNK_LATENTS
from ..streaming.edit_stream import check_networks
from ..streaming.frame_stream import check_size
from ..streaming.options import StreamOptions
from ..training.data.edits import EDITS as KNOWN_EDITS
from ..training.data.sources import check_held_out
from ..weights.dit import load_dit
from ..weights.locate import locate
from ..weights.vae import load_vae
from .edit_networks import pick_device, pick_dtype
from .train import say


@dataclass
class Networks:
    """What is profiled, on its device, with its calibration clips."""

    model: SanaStreamingDiT
    vae: CausalVAE
    text: GemmaTextEncoder
    clips: list[CalibrationClip]


def load_networks(options: argparse.Namespace) -> Networks:
    """The networks, and the calibration clips encoded. InputError for what does not fit together."""
    files = locate(options.model, options.vae, options.text_encoder, download=options.download)
    device = pick_device(options.device)
    dtype = pick_dtype("auto", device)
    vae = load_vae(files.vae, device=device, dtype=dtype)
    check_size(options.height, options.width, vae.config.spatial_factor)
    text = GemmaTextEncoder(files.text_encoder, device=device, cache_dir=default_cache_dir())
    clips = calibration_clips(_footage(options), vae, text, options.height, options.width)
    model = load_dit(files.model, device=device, dtype=dtype)
    check_networks(model, vae)
    return Networks(model, vae, text, clips)


def _footage(options: argparse.Namespace) -> Iterator[Footage]:
    if not options.clip:
        yield from scenes(options.scenes, options.height, options.width)
        return
    from ..video.reader import VideoReader

    for path, prompt in options.clip:
        with VideoReader(path, max_frames=NUM_FRAMES) as reader:
            yield Footage(Path(path).name, torch.stack(list(reader)), prompt)


def run_profile(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK

    journal = options.journal or options.plan.with_suffix(".profile.json")
    files = {"PLAN": options.plan, "--journal": journal, "--chart": options.chart, "--map": options.map}
    for path in filter(None, files.values()):
        check_target(path)
    check_distinct(files)
    settings = ProfileSettings(tuple(options.formats or QUANTIZED), options.latency, options.target, options.sizes)
    networks = load_networks(options)
    if options.latency_size:
        settings = dataclasses.replace(settings, tokens=_tokens(options.latency_size, options.sizes, networks.vae))
    profiler = Profiler(
        networks.model,
        networks.clips,
        settings,
        journal=journal,
        options=StreamOptions(steps=options.steps, seed=options.seed),
        on_progress=Teller(),
    )
    profile = profiler.run()
    max_error = None if options.min_sqnr is None else power(options.min_sqnr)
    chosen = profile.choose(max_latency=options.max_latency, max_error=max_error)
    front = profile.front(also=[chosen]) if options.chart else []
    marked = profiler.check(profile, [*profile.presets(), *profile.uniform(), chosen])
    chosen = marked[-1]
    options.plan.write_text(profile.plan(chosen).to_json(), encoding="utf-8", newline="\n")
    _draw(options, profiler, profile, front, marked)
    say(table(profile, marked))
    if options.max_latency is None and max_error is None:
        say(f"{chosen.name}: the fastest plan that errs no more than {profile.bar} in all matrices")
    say(f"wrote {options.plan}")
    return EXIT_OK


def _tokens(size: tuple[int, int], sizes: str, vae: CausalVAE) -> int:
    """Of a chunk of frames of (height, width) pixels; InputError for a size that the VAE does not divide."""
    factor = (VAEConfig() if sizes == "2b" else vae.config).spatial_factor
    check_size(*size, factor)
    return CHUNK_LATENTS * (size[0] // factor) * (size[1] // factor)


def _draw(
    options: argparse.Namespace, profiler: Profiler, profile: Profile, front: list[Point], marked: list[Point]
) -> None:
    if not options.chart and not options.map:
        return
    from ..precision import chart

    if options.chart:
        title = f"{options.model}: plans"
        chart.save(chart.front_figure(profile.table, front, marked, profiler.floor(), title), options.chart)
    if options.map:
        chart.save(chart.map_figure(profile.config, {marked[-1].name: marked[-1].formats}), options.map)


def table(profile: Profile, points: list[Point]) -> str:
    """The points for people, after a line that says where the milliseconds are from."""
    from ..precision.chart import latency_label

    full = next((point.latency for point in points if not point.formats), None)
    lines = [f"latency: {latency_label(profile.table)}", f"{'plan':16}{'MB':>8}{'ms':>10}{'share':>8}{'SQNR dB':>10}"]
    for point in {point.name: point for point in points}.values():
        share = "-" if full is None else f"{point.latency / full:.2f}"
        sqnr = "exact" if not point.formats else f"{point.sqnr:.1f}"
        lines.append(f"{point.name:16}{point.num_bytes / 1e6:8.2f}{point.latency:10.4f}{share:>8}{sqnr:>10}")
    return "\n".join(lines)


class Teller:
    """Prints a line when a stage begins, and every ten seconds in it."""

    def __init__(self) -> None:
        self._stage, self._began, self._first = "", 0.0, 0
        self._told = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.stage != self._stage:
            self._stage, self._began, self._first = progress.stage, now, progress.done
        elif now - self._told < 10:
            return
        self._told = now
        what = f"{progress.stage} {progress.done + 1}/{progress.total}: {progress.what}"
        print(what + self._left(progress, now), file=sys.stderr, flush=True)

    def _left(self, progress: Progress, now: float) -> str:
        if not (done := progress.done - self._first):
            return ""
        seconds = (now - self._began) / done * (progress.total - progress.done)
        return f", {timedelta(seconds=round(seconds))} left"


def run_compare(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK

    files = {"--json": options.json, "--journal": options.journal}
    for path in filter(None, files.values()):
        check_target(path)
    check_distinct(files)
    options.edits = options.edits or EDITS
    if unknown := [name for name in options.edits if name not in KNOWN_EDITS]:
        raise InputError(f"no edit is called {unknown[0]}; there are {', '.join(KNOWN_EDITS)}")
    check_held_out()
    clips = chosen_clips(options.held_out)
    networks = load_networks(options)
    plans = named_plans(options.plans, networks.model)
    rows = compare_all(options, networks, plans, clips)
    if options.json:
        values = {**header(next(networks.model.parameters()).device), "rows": rows}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
    say(comparison_table(rows))
    return EXIT_OK


def named_plans(texts: list[str], model: SanaStreamingDiT) -> dict[str, Plan]:
    """Presets and plans of files by a name each; InputError for a plan of another network, and for two of one name."""
    plans: dict[str, Plan] = {}
    for text in texts:
        plan = choose_plan(text, model.config)
        plan.check(model.config, model.fingerprint)
        name = text if text in preset_names() else Path(text).stem
        if name in plans:
            raise InputError(f"two plans are called {name}; give each file a name of its own")
        plans[name] = plan
    return plans


def compare_all(
    options: argparse.Namespace, networks: Networks, plans: dict[str, Plan], clips: list[int]
) -> dict[str, dict[str, Any]]:
    """The rows of :func:`compare_plans` on the held-out clips of these numbers."""
    stream = StreamOptions(steps=options.steps, seed=options.seed)
    size = {"height": options.height, "width": options.width}
    identity = {
        "model": networks.model.fingerprint,
        "dtype": str(networks.model.dtype),
        "clips": clips_digest(networks.clips),
        "held_out": [clips, list(options.edits), options.frames, size],
        "options": stream.to_dict(),
        "comfy_kitchen": kitchen_version(),
        **{name: value for name, value in header(next(networks.model.parameters()).device).items() if name != "date"},
    }
    journal = Journal.open(options.journal, identity)
    reference = record(twin(networks.model, torch.float32, split=True), networks.clips, stream)
    editor = StreamEditor(networks.model, networks.vae, networks.text, **size, options=stream)
    samples = held_out(clips, options.frames, options.height, options.width, options.edits)

    def tell(plan: str, stage: str, number: int) -> None:
        print(f"{plan}: {stage} {number + 1}", file=sys.stderr, flush=True)

    return compare_plans(editor, plans, reference, samples, journal=journal, on_step=tell)


def comparison_table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows for people."""
    head = ("plan", "MB", "SQNR dB", "edit PSNR", "to bf16", "SSIM", "flicker", "pass ms", "ratio")
    lines = [f"{head[0]:16}" + "".join(f"{name:>11}" for name in head[1:])]
    for name, row in rows.items():
        free, time_ = row["free_run"], row.get("pass")
        exact = name == UNQUANTIZED
        cells = [
            f"{row['unit_bytes'] / 1e6:.2f}",
            "exact" if exact else f"{decibels(row['noise_power']):.1f}",
            f"{free['edit_psnr']:.2f}",
            "exact" if exact else f"{free['psnr']:.2f}",
            f"{free['ssim']:.4f}",
            f"{free['flicker']:.3f}",
            f"{time_['milliseconds']:.1f}" if time_ else "-",
            f"{time_['ratio']:.3f}" if time_ else "-",
        ]
        lines.append(f"{name:16}" + "".join(f"{cell:>11}" for cell in cells))
    lines.append(
        f"{FLOOR}: the unquantized network, rounded otherwise (bfloat16, or plain operators): what free runs differ by anyway"
    )
    return "\n".join(lines)
