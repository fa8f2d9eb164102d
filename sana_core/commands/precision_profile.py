"""The command line of ``precision profile`` and ``precision compare``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..weights.hub_address import path_or_address


def _profile(options: argparse.Namespace) -> int:
    from .precision_runs import run_profile

    return run_profile(options)


def _compare(options: argparse.Namespace) -> int:
    from .precision_runs import run_compare

    return run_compare(options)


def _size(text: str) -> tuple[int, int]:
    """(height, width) in pixels."""
    if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise argparse.ArgumentTypeError(f"{text} is no size; give HEIGHTxWIDTH in pixels, such as 704x1280")
    return int(match[1]), int(match[2])


def add_profile(parser: argparse.ArgumentParser) -> None:
    """``precision profile``."""
    parser.set_defaults(run=_profile)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="JSON file to write the chosen plan to")
    _add_networks(parser)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--max-latency",
        type=float,
        metavar="SHARE",
        help="least error within this share of the unquantized time in matrices, such as 0.5",
    )
    budget.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="fastest with this signal to noise, by the sum of errors (default: as much as fp8 in all matrices "
        "has, or the first of --formats if fp8 is none of them)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        metavar="FORMAT",
        help="to choose from beside bf16: fp8, int8, int8-hadamard, mxfp8, nvfp4 (default: all)",
    )
    parser.add_argument(
        "--latency",
        choices=("measured", "projected"),
        default="measured",
        help="measured on the device, or projected from a data sheet (default: measured)",
    )
    parser.add_argument(
        "--target",
        default="rtx5090",
        metavar="CARD",
        help="to project for: rtx4090, rtx5090 or h100 (default: rtx5090)",
    )
    parser.add_argument(
        "--sizes",
        choices=("own", "2b"),
        default="own",
        help="latencies of matrices as they are, or with each block as one of the 2B network (default: own)",
    )
    parser.add_argument(
        "--latency-size",
        type=_size,
        metavar="HxW",
        help="frames that latencies are for, in pixels, such as 384x640; --height and --width are those of the clips that "
        "errors are measured on (default: what the network is for, 704x1280 for one of 2B)",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keeps every measurement, so that a stopped profile goes on, and another budget measures its own plan only "
        "(default: PLAN with .profile.json)",
    )
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw the best plans, with the presets marked")
    parser.add_argument("--map", type=Path, metavar="PNG", help="draw which unit of which block has which format")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """``precision compare``."""
    parser.set_defaults(run=_compare)
    parser.add_argument(
        "plans", nargs="+", metavar="PRESET|PLAN", help="bf16, fp8, int8, paper-mpq, or JSON files of plans"
    )
    _add_networks(parser)
    parser.add_argument("--held-out", type=int, default=3, metavar="N", help="held-out clips to edit (default: 3)")
    parser.add_argument("--edits", nargs="+", metavar="EDIT", help="of each (default: sepia night negative)")
    parser.add_argument("--frames", type=int, default=65, help="of each (default: 65)")
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="keeps every row, so that a stopped comparison goes on"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", metavar="nano|FILE|FOLDER|NAME", help="as for edit (default: nano)")
    parser.add_argument("--vae", type=path_or_address, metavar="PATH", help="as for edit")
    parser.add_argument("--text-encoder", type=path_or_address, metavar="PATH", help="as for edit")
    parser.add_argument("--download", action="store_true", help="as for edit")
    parser.add_argument("--height", type=int, default=96, help="of the clips in pixels (default: 96)")
    parser.add_argument("--width", type=int, default=128, help="of the clips in pixels (default: 128)")
    parser.add_argument("--scenes", type=int, default=2, metavar="N", help="drawn clips to calibrate on (default: 2)")
    parser.add_argument(
        "--clip",
        nargs=2,
        action="append",
        metavar=("VIDEO", "PROMPT"),
        help="a clip of yours in place of drawn ones, its first 65 frames; may be given several times",
    )
    parser.add_argument("--steps", type=int, default=4, help="denoising passes per chunk (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
