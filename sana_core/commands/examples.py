"""``examples``: the release's demo edits, listed, or run on its clips or on one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from ..errors import InputError
from ..examples import Example, ExampleRun, Mode, example_run, list_examples
from ..weights import nano
from ..weights.hub import download, in_units, plan_download, resolve_cached
from ..weights.hub_address import parse_uri

# Options of `edit` that are handed on where they are given.
HANDED_ON = ("vae", "text_encoder", "height", "width", "max_frames", "device", "dtype", "report", "sheet")


def run_list(options: argparse.Namespace) -> int:
    """Prints name, prompt, source and settings of every example, in ``--mode`` or in both."""
    modes = [options.mode] if options.mode else list(get_args(Mode))
    print("\n".join(_described(example) for example in list_examples()))
    for mode in modes:
        print(f"{mode}: {_settings(example_run(list_examples()[0].name, mode))}")
    print("python -m sana_streaming examples run NAME --video FILE edits a clip of your own, with any --model")
    return 0


def _described(example: Example) -> str:
    return f"{example.name}: {example.description}\n  prompt  {example.prompt}\n  source  {example.source}"


def _settings(run: ExampleRun) -> str:
    parts = [
        run.preset,
        f"{run.width}x{run.height}",
        f"{run.max_frames} frames" if run.max_frames else "all frames",
        f"{run.steps} steps",
        f"cfg {run.cfg_scale:g}",
        f"flow shift {run.flow_shift:g}",
        f"seed {run.seed}",
        f"motion score {run.motion_score}",
    ]
    if run.num_cached_blocks is not None:
        parts.append(f"window {run.num_cached_blocks}{' with sink' if run.sink_token else ''}")
    return ", ".join(parts)


def run_example(options: argparse.Namespace) -> int:
    """Runs ``edit`` with the settings of the example; exit codes are its."""
    from .edit import run

    example = example_run(options.name, options.mode, options.video and str(options.video))
    arguments = edit_arguments(options, example)
    if options.model in (None, nano.NAME) and example.mode == "long_streaming":
        print(
            f"the built-in model nano does not know the edit {example.name!r}, so expect little of it; the release's model is "
            f"--model {example.preset} (python -m sana_streaming download {example.preset} causal-vae text-encoder)",
            flush=True,
        )
    return run(arguments)


def edit_arguments(options: argparse.Namespace, example: ExampleRun) -> argparse.Namespace:
    """The options of ``edit`` for the example. InputError for a clip that is not here."""
    from ..cli import build_parser

    clip = options.video or find_clip(example.video, options.download)
    out = options.out or Path(f"{example.name}_{example.mode}.mp4")
    given: dict[str, object] = {
        "mode": example.mode,
        "prompt": example.prompt,
        "model": options.model,
        "max_frames": example.max_frames,
        "fps": example.fps,
        "steps": example.steps,
        "cfg_scale": example.cfg_scale,
        "seed": example.seed,
        "num_cached_blocks": example.num_cached_blocks,
        "negative_prompt": example.negative_prompt or None,
    }
    # Of 4 steps the times are fixed.
    if example.mode == "bidirectional_short":
        given |= {"flow_shift": example.flow_shift, "motion_score": example.motion_score}
    given |= {name: value for name in HANDED_ON if (value := getattr(options, name)) is not None}
    if options.steps is not None:
        given["steps"] = options.steps
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    words += ["--download"] if options.download else []
    return build_parser().parse_args(["edit", str(clip), str(out), *words])


def find_clip(source: str, fetch: bool) -> Path:
    """The release's clip in the hub's cache, where ``fetch`` puts it if it is not there; else InputError."""
    address = parse_uri(source)
    if address is None:
        return Path(source)
    found = resolve_cached(address, None)
    if found is not None:
        return found
    if not fetch:
        raise InputError(
            f"the clip {source} is not on this machine; add --download to fetch it, or edit one of your own by --video FILE"
        )
    plan = plan_download(source)
    print(f"downloading {source} ({in_units(plan.total_bytes)})", file=sys.stderr, flush=True)
    return download(plan)
