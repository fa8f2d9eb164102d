"""Writes the measured speeds into docs/performance.md: a table and a roofline per device, between markers.

    python benchmarks/page.py

Reads benchmarks/results/<device>/bench.json, which `python -m sana_streaming bench --json` writes. A device that the page
does not have yet gets a section of its own after the last one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sana_streaming.sana_core.benchmark.registry import BASELINES
from sana_streaming.sana_core.benchmark.results import read_results
from sana_streaming.sana_core.benchmark.table import number, skipped, table, with_section

ROOT = Path(__file__).parents[1]
LISTED_ROWS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    update_page(options.page, options.results)


def update_page(page: Path, results: Path) -> None:
    """Brings each device's section and picture up to date; the pictures go into ``images`` beside the page."""
    text = page.read_text(encoding="utf-8")
    for file in sorted(results.glob("*/bench.json")):
        slug, values = file.parent.name, read_results(file)
        picture = page.parent / "images" / f"roofline_{slug}.png"
        picture.parent.mkdir(exist_ok=True)
        draw_roofline(values, picture)
        text = with_section(text, "speed", slug, section(values, f"images/{picture.name}"))
    page.write_text(text, encoding="utf-8", newline="\n")


def section(values: dict[str, Any], picture: str) -> str:
    """Markdown of a device: what was measured with what, the table, what is missing, the picture."""
    copies, products = (
        sorted({record["ceilings"][key] for record in values["rows"].values()})
        for key in ("copy_bytes_per_second", "matmul_flops_per_second")
    )
    versions = f"torch {values['torch']}, triton {values['triton'] or 'absent'}"
    lines = [
        f"### {values['device']}",
        "",
        f"{values['date']}, {versions}, {values['dtype']}, seed {values['seed']}. Ceilings of the same run: copies "
        f"{_span(copies, 1e9)} GB/s, matrix products {_span(products, 1e12)} TFLOP/s.",
        "",
        table(values),
    ]
    lines += [f"- {line}" for line in stage_lines(values)]
    for missing, rows in skipped(values).items():
        where = ", ".join(rows) if len(rows) <= LISTED_ROWS else f"{len(rows)} rows"
        lines.append(f"- Not measured: {missing} ({where})")
    return "\n".join([*lines, "", f"![Roofline of {values['device']}]({picture})", ""])


def stage_lines(values: dict[str, Any]) -> list[str]:
    """Where a chunk's time goes from frames to a file, and what it takes."""
    lines = []
    for key, record in values["rows"].items():
        for name, timing in record["timings"].items():
            details = timing["details"]
            if stages := details.get("stage_seconds_per_chunk"):
                parts = ", ".join(f"{stage} {number(1000 * each)} ms" for stage, each in stages.items() if each)
                line = f"{key}, {name}, per chunk: {parts}; first chunk after {details['first_chunk_seconds']:.2f} s"
                gpu = details["peak_memory"].get("gpu")
                lines.append(line + (f"; peak GPU memory {gpu / 1e9:.3g} GB" if gpu else ""))
    return lines


def _span(values: list[float], unit: float) -> str:
    """One number, or the smallest and the largest."""
    ends = list(dict.fromkeys(f"{value / unit:.3g}" for value in (values[0], values[-1])))
    return " to ".join(ends)


def draw_roofline(values: dict[str, Any], target: Path) -> None:
    """FLOPs per second over FLOPs per byte, of the fastest implementation of each row that is no baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [record for record in values["rows"].values() if set(record["timings"]) - set(BASELINES)]
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    points = [(record, record["flops"] / record["bytes"]) for record in records]
    _draw_ceilings(axes, records, [intensity for _, intensity in points])
    for size in dict.fromkeys(record["size"] for record in records):
        mine = [(x, _rate(record), record["row"]) for record, x in points if record["size"] == size]
        axes.scatter([x for x, _, _ in mine], [y for _, y, _ in mine], s=28, label=size, zorder=3)
        for x, y, name in mine:
            axes.annotate(name, (x, y), xytext=(5, -9), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs per byte that must move",
        ylabel="GFLOP/s",
        title=f"{values['device']}, {values['dtype']}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def _rate(record: dict[str, Any]) -> float:
    """GFLOP/s of the fastest implementation."""
    own = [timing["median_ms"] for timing in record["timings"].values() if not timing["baseline"]]
    return record["flops"] / min(own) / 1e6


def _draw_ceilings(axes: Any, records: list[dict[str, Any]], intensities: list[float]) -> None:
    """The slope of copies and the level of matrix products, the highest measured."""
    copy, product = (
        max(record["ceilings"][key] for record in records) / 1e9
        for key in ("copy_bytes_per_second", "matmul_flops_per_second")
    )
    ridge = product / copy
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    axes.plot([low, ridge, high], [copy * low, product, product], color="black", linewidth=1)


if __name__ == "__main__":
    main()
