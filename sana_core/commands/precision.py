"""``precision``: what a plan gives which matrix and what it saves, and writing a network under a plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..config import DIT_PRESETS, DiTConfig
from ..errors import InputError
from ..weights.hub import in_units
from .precision_profile import add_compare, add_profile


def add_options(parser: argparse.ArgumentParser) -> None:
    """The actions of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser(
        "show", help="formats of a plan, by kind of matrix and block, and the bytes that they take"
    )
    _add_plan(shown)
    shown.add_argument(
        "--model",
        default="streaming-2b",
        metavar="MODEL",
        help="network that it is for: nano, the name of a preset or a file (default: streaming-2b)",
    )
    shown.add_argument(
        "--json", action="store_true", help="print the plan as JSON, which --precision reads from a file"
    )
    shown.set_defaults(run=run_show)
    applied = actions.add_parser("apply", help="write a transformer under a plan; the same as convert --precision")
    _add_plan(applied)
    applied.add_argument("source", metavar="IN", help="weights of a transformer that is not quantized")
    applied.add_argument("target", type=Path, metavar="OUT", help=".safetensors file to write")
    applied.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of what is not quantized (default: bf16)")
    applied.add_argument("--force", action="store_true", help="replace OUT if it is there")
    applied.set_defaults(run=run_apply)
    add_profile(actions.add_parser("profile", help="measure a network, and write the plan that fits a budget best"))
    add_compare(actions.add_parser("compare", help="plans beside each other: noise, edits of held-out clips, time"))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="bf16, fp8, int8, paper-mpq, or the JSON file of a plan")


def run_show(options: argparse.Namespace) -> int:
    from ..precision.plan import choose_plan

    config = _config(options.model)
    plan = choose_plan(options.plan, config)
    plan.check(config)
    if options.json:
        print(json.dumps(plan.to_dict(), indent=2))
        return 0
    formats = plan.to_dict()["formats"]
    rows = [f"{kind:14} {_ranges(per_range)}" for kind, per_range in formats.items()]
    print("\n".join([f"plan {plan.name} on {options.model}", *rows, *_sums(plan, config)]))
    return 0


def run_apply(options: argparse.Namespace) -> int:
    from .convert import run

    options.precision, options.decoder, options.source = options.plan, "auto", _file(options.source)
    return run(options)


def _config(name: str) -> DiTConfig:
    from ..weights.convert import read_network

    if name in DIT_PRESETS:
        return DIT_PRESETS[name]
    _, values, variant = read_network(_file(name))
    if variant == "vae":
        raise InputError(f"{name} is a VAE; precision plans are for transformers")
    return DiTConfig.from_dict(values)


def _file(name: str) -> Path:
    """The weight file of a transformer that is named as elsewhere: nano, a path, or hf://..."""
    from ..weights.convert import weights_file
    from ..weights.locate import model_path

    path = model_path(name)
    if not path.exists():
        raise InputError(f"{name} does not exist; give nano, a preset or the path of a transformer")
    return weights_file(path, first=True)


def _ranges(per_range: dict[str, str]) -> str:
    return ", ".join(
        f"{kind} in {'blocks' if '-' in blocks else 'block'} {blocks}" for blocks, kind in per_range.items()
    )


def _sums(plan: Any, config: DiTConfig) -> list[str]:
    from ..precision.formats import FORMATS
    from ..precision.plan import preset
    from ..precision.report import parameters_by_format, unit_bytes

    counts = parameters_by_format(plan, config)
    total = sum(counts.values())
    shares = [f"{kind} {count / total:.1%} ({count / 1e6:,.0f} M)" for kind, count in counts.items()]
    before, after = (unit_bytes(each, config) for each in (preset("bf16", config), plan))
    lines = [
        f"matrices: {', '.join(shares)}",
        f"their bytes: {in_units(before)} in bf16, {in_units(after)} under the plan ({before / after:.2f} times fewer)",
        f"self-attention: {plan.layout(config)}",
    ]
    lines += [
        f"{kind} is multiplied on GPUs of compute capability {'.'.join(map(str, need))} and later, elsewhere it saves memory"
        for kind in counts
        if (need := FORMATS[kind].min_capability) > (7, 5)
    ]
    return lines
