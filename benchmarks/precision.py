"""Number formats measured: latencies, errors of every matrix, the front of the best plans, and plans beside each other.

    python benchmarks/precision.py [--device cuda] [--size nano|2b|toy] [--out FOLDER] [--journal FILE] [--minutes N]

nano (default on a CPU) is the trained network: latencies are projected for an RTX 5090 with each block as one of the 2B
network, and plans edit held-out clips. 2b (default on a GPU) has random weights, so its errors say nothing of the released
network's; latencies and passes are measured. toy is 2b at a size for a CPU. Writes benchmarks/results/<device>/precision.json
(toy: out/precision_toy.json) and brings docs/precision.md up to date. With --out results and journal go into a folder, and the
page stays as it is: for a borrowed machine, whose results are copied here before benchmarks/precision_page.py runs. A run that
was cut short, or stopped by --minutes, goes on from its journal.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import precision_page
import torch
from common import RESULTS, write_result
from sana_streaming.sana_core.benchmark.results import device_slug, header
from sana_streaming.sana_core.benchmark.sizes import Bench
from sana_streaming.sana_core.commands.edit_networks import pick_device
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.evaluation.editor import StreamEditor
from sana_streaming.sana_core.evaluation.held_out import chosen_clips
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.precision.comparison import compare_plans
from sana_streaming.sana_core.precision.footage import calibration_clips, scenes
from sana_streaming.sana_core.precision.free_running import EDITS, held_out
from sana_streaming.sana_core.precision.journal import Journal
from sana_streaming.sana_core.precision.pass_time import pass_times
from sana_streaming.sana_core.precision.plan import UNQUANTIZED, Plan, preset, preset_names
from sana_streaming.sana_core.precision.probe import probe
from sana_streaming.sana_core.precision.profile import (
    QUANTIZED,
    Point,
    Profile,
    Profiler,
    ProfileSettings,
    Progress,
    decibels,
)
from sana_streaming.sana_core.precision.reference import CalibrationClip
from sana_streaming.sana_core.precision.report import unit_bytes
from sana_streaming.sana_core.streaming.chunks import CHUNK_LATENTS
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.random_init import RandomPrompts, random_dit
from sana_streaming.sana_core.weights.vae import load_vae

ROOT = Path(__file__).parents[1]
# Chosen plans by name: the share of the unquantized time in matrices that they may take, None for the default budget.
CHOSEN = {"auto": None, "auto-half": 0.5, "auto-quarter": 0.25}
CALIBRATION = {"scenes": 2, "height": 96, "width": 128}
HELD_OUT = {"clips": 3, "frames": 65, "height": 160, "width": 256}
# A first chunk of five latent frames and two of three, so that the last one reads a full window.
LATENTS = 11
TOY = DiTConfig(
    depth=2, hidden_size=64, num_heads=2, in_channels=8, source_channels=8, caption_channels=24, max_text_tokens=12,
    softmax_layers=(1,),
)  # fmt: skip


class StopError(Exception):
    """The time is up; what was measured is in the journal."""


class Teller:
    """Prints where the run is, and ends it after ``minutes``."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._told = 0.0

    def __call__(self, progress: Progress) -> None:
        self.say(f"{progress.stage} {progress.done + 1}/{progress.total} {progress.what}")

    def say(self, line: str) -> None:
        now = time.monotonic()
        if now > self._end:
            raise StopError
        if now - self._told > 10:
            self._told = now
            print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=("nano", "2b", "toy"))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    device = pick_device(options.device)
    size = options.size or ("nano" if device.type == "cpu" else "2b")
    out = options.out or ROOT / "out"
    journal = options.journal or out / f"precision_{device_slug(device)}_{size}.json"
    for folder in (out, journal.parent):
        folder.mkdir(parents=True, exist_ok=True)
    run = run_nano if size == "nano" else run_random
    try:
        result = {"size": size, **run(device, size, journal, Teller(options.minutes))}
    except StopError:
        print(f"stopped; run again to go on from {journal}", file=sys.stderr)
        return 1
    if size == "toy":
        (out / "precision_toy.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    else:
        print(write_result("precision", device, result, options.out or RESULTS))
        if options.out is None:
            precision_page.update_page(precision_page.PAGE, RESULTS)
    print("\n".join(precision_page.plan_table(result)))
    return 0


def run_nano(device: torch.device, size: str, journal: Path, tell: Teller) -> dict[str, Any]:
    """Profile and comparison of the built-in network."""
    bench = Bench.on(device)
    folder = nano.nano_folder()
    vae = load_vae(folder / "vae", device=device, dtype=bench.dtype)
    text = GemmaTextEncoder(folder / "text_encoder", device=device)
    model = load_dit(folder / "dit", device=device, dtype=bench.dtype)
    frame = (CALIBRATION["height"], CALIBRATION["width"])
    clips = calibration_clips(scenes(CALIBRATION["scenes"], *frame), vae, text, *frame)
    profiler = Profiler(
        model, clips, ProfileSettings(latency="projected", sizes="2b"), journal=journal, on_progress=tell
    )
    found, plans = profiled(profiler)
    del found["amax"]
    where = (HELD_OUT["height"], HELD_OUT["width"])
    numbers = chosen_clips(HELD_OUT["clips"])
    samples = held_out(numbers, HELD_OUT["frames"], *where)
    editor = StreamEditor(model, vae, text, height=where[0], width=where[1], options=StreamOptions())
    machine = {name: value for name, value in header(device).items() if name != "date"}
    identity = {**profiler.journal.identity, **machine, "held_out": HELD_OUT, "edits": EDITS}
    rows = compare_plans(
        editor,
        plans,
        profiler.reference(),
        samples,
        journal=Journal.open(journal.with_suffix(".compare.json"), identity),
        on_step=lambda plan, stage, number: tell.say(f"{plan}: {stage} {number + 1}"),
        seconds=5.0,
    )
    names = [sample.clip.name for sample in samples]
    return found | {
        "calibration": CALIBRATION,
        "held_out": HELD_OUT | {"edits": EDITS, "names": list(dict.fromkeys(names))},
        "plans": {name: {**found["plans"].get(name, {}), **row} for name, row in rows.items()},
    }


def run_random(device: torch.device, size: str, journal: Path, tell: Teller) -> dict[str, Any]:
    """Profile with measured latencies, and real passes, of random weights."""
    bench = Bench.on(device)
    config, grid = (DiTConfig(), (22, 40)) if size == "2b" else (TOY, (4, 6))
    model = random_dit(config, device=device, dtype=bench.dtype)
    text = RandomPrompts(config.caption_channels, config.max_text_tokens, config.max_text_tokens // 2)
    source = bench.random(1, config.source_channels, LATENTS, *grid, dtype=torch.float32)
    clips = [CalibrationClip("random latents", source, text.encode("random"))]
    fast = tuple(name for name in QUANTIZED if is_fast(name, model, device))
    settings = ProfileSettings(
        formats=fast or QUANTIZED[:2],
        seconds=0.5 if size == "2b" else 0.01,
        tokens=CHUNK_LATENTS * grid[0] * grid[1],
    )
    # The errors of random weights say nothing; TF32 makes them quick.
    profiler = Profiler(model, clips, settings, journal=journal, places=("late",), tf32=True, on_progress=tell)
    found, plans = profiled(profiler)
    tell.say("passes")
    presets = {name: preset(name, config) for name in preset_names()}
    plans = {UNQUANTIZED: Plan(UNQUANTIZED, {}), **presets, **plans}
    amax = found.pop("amax")
    calibrated = {name: plan.with_amax(amax) for name, plan in plans.items()}
    times = pass_times(model, calibrated, profiler.reference(), seconds=2.0 if size == "2b" else 0.05)
    rows = {
        name: {**_plan_values(plan, config), **found["plans"].get(name, {}), "pass": dataclasses.asdict(times[name])}
        for name, plan in plans.items()
    }
    return found | {"grid": grid, "plans": rows}


def is_fast(name: str, model: SanaStreamingDiT, device: torch.device) -> bool:
    width = model.config.hidden_size
    return probe(name, device, width, width, model.dtype).fast


def profiled(profiler: Profiler) -> tuple[dict[str, Any], dict[str, Plan]]:
    """What a profile found, for JSON, and the plans to compare: presets, uniform formats, chosen ones."""
    profile = profiler.run()
    chosen = {}
    for name, share in CHOSEN.items():
        # A device on which no format pays has no plan of half the time.
        with contextlib.suppress(InputError):
            chosen[name] = dataclasses.replace(profile.choose(max_latency=share), name=name)
    points = {point.name: point for point in (*profile.presets(), *profile.uniform(), *chosen.values())}
    checked = profiler.check(profile, list(points.values()))
    front = profiler.check(profile, profile.front(also=list(chosen.values())))
    found = {
        "model": profile.fingerprint,
        "identity": {
            **{key: profiler.journal.identity[key] for key in ("clip_count", "places", "tf32", "comfy_kitchen")},
            "tokens": profile.table.tokens,
            "settings": dataclasses.asdict(profile.settings),
        },
        "latency": profile.table.to_dict(),
        "errors": profile.errors,
        "floor": profiler.floor(),
        "front": [_values(profile, point) for point in front],
        "plans": {point.name: _values(profile, point) | _parts(profiler, profile, point) for point in checked},
        "amax": profile.amax,
    }
    plans = {point.name: profile.plan(point, point.name) for point in checked if point.formats}
    return found, plans


def _parts(profiler: Profiler, profile: Profile, point: Point) -> dict[str, Any]:
    """The noise of a checked point by place of the chunk and by timestep."""
    found = profiler.journal.section("check")[Plan(point.name, point.formats, input_amax=profile.amax).digest()]
    return {name: found[name] for name in ("by_place", "by_timestep")}


def _values(profile: Profile, point: Point) -> dict[str, Any]:
    """A point for JSON."""
    return {
        **_plan_values(Plan(point.name, point.formats), profile.config),
        "latency_ms": point.latency,
        "error": point.error,
        "noise_power": point.noise,
        "sqnr_db": None if not point.formats else decibels(point.noise or 0.0),
    }


def _plan_values(plan: Plan, config: DiTConfig) -> dict[str, Any]:
    """What needs no measurement; formats as plans have them in files."""
    return {
        "formats": plan.to_dict()["formats"],
        "unit_bytes": unit_bytes(plan, config),
        "blocks": config.depth,
    }


if __name__ == "__main__":
    raise SystemExit(main())
