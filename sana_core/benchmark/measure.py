"""One run of the benchmark: row after row, each written down as soon as it is done, and the ceilings between them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch

from .counts import Work
from .registry import BASELINES, Case, Row, Samples
from .results import Results, today
from .sizes import Bench, Size
from .table import number
from .timing import Ceilings, Clock, Timing, time_in_turns

Log = Callable[[str], None]


@torch.no_grad()
def run_rows(bench: Bench, pairs: Iterable[tuple[Row, Size]], results: Results, log: Log = print) -> None:
    """Measures every row at its size and adds it to ``results``."""
    if bench.device.type == "cuda" and bench.device.index is not None:
        # Events are recorded on the current device.
        torch.cuda.set_device(bench.device)
    ceilings = Ceilings.measure(bench.device, bench.dtype)
    done: list[dict[str, Any]] = []
    for row, size in pairs:
        done.append(measure_row(bench, row, size))
        free(bench.device)
        # Other work on the machine hides what it can do: the best of the whole run counts, for earlier rows too.
        ceilings = ceilings.best_of(Ceilings.measure(bench.device, bench.dtype))
        results.add(*(with_floor(record, ceilings) for record in done))
        log(describe(done[-1]))
    log(
        f"copy {ceilings.copy_bytes_per_second / 1e9:.1f} GB/s, "
        f"matrix product {ceilings.matmul_flops_per_second / 1e12:.3g} TFLOP/s in {bench.dtype}"
    )


def measure_row(bench: Bench, row: Row, size: Size) -> dict[str, Any]:
    """The record of a row (``results.RECORD``) but for what :func:`with_floor` adds."""
    case = row.prepare(bench, size)
    timings, details, failed = measure_case(bench, case, flush=row.group == "operator")
    return {
        "row": row.name,
        "size": size.name,
        "group": row.group,
        "what": row.what,
        "formula": row.formula,
        "date": today(),
        "frames": case.frames,
        "bytes": sum(step.calls * step.bytes for step in case.work),
        "flops": sum(step.calls * step.flops for step in case.work),
        "steps": [asdict(step) for step in case.work],
        "timings": {
            name: {
                "median_ms": 1000 * timing.median,
                "iqr_ms": 1000 * timing.spread,
                "repeats": timing.repeats,
                "baseline": name in BASELINES,
                "speedup": {key: timings[key].median / timing.median for key in BASELINES if key in timings},
                "details": details[name],
            }
            for name, timing in sorted(timings.items(), key=lambda item: item[0] in BASELINES)
        },
        "skipped": {**case.skipped, **failed},
    }


def with_floor(record: dict[str, Any], ceilings: Ceilings) -> dict[str, Any]:
    """``record`` with its floor under these ceilings, and the share of it in each median."""
    work = [Work(**step) for step in record["steps"]]
    floor_ms = 1000 * ceilings.floor(work)
    timings = {
        name: {**timing, "of_floor": floor_ms / timing["median_ms"]} for name, timing in record["timings"].items()
    }
    found = {"floor_ms": floor_ms, "bound": ceilings.bound(work), "ceilings": asdict(ceilings)}
    return {**record, **found, "timings": timings}


def measure_case(
    bench: Bench, case: Case, flush: bool
) -> tuple[dict[str, Timing], dict[str, dict[str, Any]], dict[str, str]]:
    """Timings and details by variant, and the reasons of those that failed."""
    timings: dict[str, Timing] = {}
    details: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    runs = {}
    sampled: dict[str, Samples] = {}
    for name, variant in case.variants.items():
        try:
            details[name], found = _first_call(bench.device, variant.run)
        except Exception as error:
            # Whatever stops one implementation (a missing package, a kernel that does not build, too little memory) must
            # not cost the others their row; it is written down instead.
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        if isinstance(found, Samples):
            sampled[name] = found
        else:
            runs[name] = variant.run
    # Once more in turns, for what else the machine does; by then everything is warm, so the details are those of this time.
    for name, first in sampled.items():
        again = case.variants[name].run()
        assert isinstance(again, Samples)
        timings[name], details[name] = Timing.of(first.seconds + again.seconds), again.details
    timings |= time_in_turns(runs, Clock(bench.device, flush), bench.budget)
    return timings, details, failed


def _first_call(device: torch.device, run: Callable[[], object]) -> tuple[dict[str, Any], object]:
    """Warms up; the most bytes allocated on a GPU meanwhile, and what the call returned if that is Samples."""
    if device.type != "cuda":
        found = run()
        return {}, found if isinstance(found, Samples) else None
    # Compiling and choosing kernels takes memory that later calls do not.
    found = run()
    if isinstance(found, Samples):
        return {}, found
    del found
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return {"peak_allocated": torch.cuda.max_memory_allocated(device)}, None


def describe(record: dict[str, Any]) -> str:
    """A line for people."""
    timings = ", ".join(
        f"{name} {number(timing['median_ms'])} ms (IQR {number(timing['iqr_ms'])})"
        for name, timing in record["timings"].items()
    )
    skipped = "".join(f"; {name} skipped: {reason}" for name, reason in record["skipped"].items())
    return f"{record['row']} at {record['size']}: {timings}{skipped}"


def free(device: torch.device) -> None:
    """Gives back what the last row held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
