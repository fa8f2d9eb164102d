"""``bench``: how fast each part is on this device, beside its floor and its baselines."""

from __future__ import annotations

import argparse
import sys

from ..benchmark.measure import run_rows
from ..benchmark.registry import CUDA_SIZES, Row, all_rows, chosen
from ..benchmark.results import Results
from ..benchmark.sizes import Bench, Size
from ..benchmark.table import table
from ..paths import check_target
from .edit_networks import pick_device
from .train import say


def run(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED

    device = pick_device(options.device)
    if options.list:
        print_rows()
        return EXIT_OK
    pairs = chosen(options.only, device)
    if options.json is not None:
        check_target(options.json)
    bench = Bench.on(device, options.seed)
    results = Results.open(bench, options.json, options.replace)
    if not options.again:
        pairs = missing(pairs, results)
    try:
        if pairs:
            run_rows(bench, pairs, results, say)
    except KeyboardInterrupt:
        print("stopped; what was measured so far:", file=sys.stderr)
        print(table(results.values), end="")
        return EXIT_STOPPED
    print(table(results.values), end="")
    return EXIT_OK


def missing(pairs: list[tuple[Row, Size]], results: Results) -> list[tuple[Row, Size]]:
    """Those that ``results`` have not, so that a run that was cut short goes on where it was; tells of the others."""
    left = [(row, size) for row, size in pairs if f"{row.name}@{size.name}" not in results.rows]
    if done := len(pairs) - len(left):
        say(f"{done} of {len(pairs)} rows are in {results.path} already; --again measures them anew")
    return left


def print_rows() -> None:
    """Names, what they measure, and where."""
    for row in all_rows():
        sizes = f"cuda {', '.join(CUDA_SIZES)}; cpu {', '.join(row.cpu_sizes)}"
        print(f"{row.name:18} {row.what} ({sizes})")
