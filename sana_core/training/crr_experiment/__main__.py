"""``python -m sana_streaming.sana_core.training.crr_experiment --seeds 5 --json FILE [--smoke]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from .decision import MIN_SEEDS
from .experiment import SMOKE, ExperimentConfig
from .report import markdown
from .runner import run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the file lacks and prints the table; exit code 2 for bad input."""
    parser = argparse.ArgumentParser(prog="crr_experiment", description="Does CRR help? Settings A, B, C and D.")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (default: 5)")
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="results; finished runs in it are kept"
    )
    parser.add_argument("--smoke", action="store_true", help="two seeds and two steps, to see that everything runs")
    options = parser.parse_args(arguments)
    config, seeds = (SMOKE, MIN_SEEDS) if options.smoke else (ExperimentConfig(), options.seeds)
    try:
        if seeds < MIN_SEEDS:
            raise InputError(f"--seeds {seeds} is too few to compare; use {MIN_SEEDS} or more (default 5)")
        report = run_all(config, range(seeds), options.json, lambda line: print(line, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(report["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
