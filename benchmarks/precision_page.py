"""Writes the measured plans into docs/precision.md, a section per device between markers, and draws their charts.

    python benchmarks/precision_page.py

Reads benchmarks/results/<device>/precision.json, which benchmarks/precision.py writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sana_streaming.sana_core.benchmark.table import with_section
from sana_streaming.sana_core.config import DiTConfig, read_json
from sana_streaming.sana_core.precision import chart
from sana_streaming.sana_core.precision.latency import LatencyTable
from sana_streaming.sana_core.precision.plan import UNQUANTIZED, Plan
from sana_streaming.sana_core.precision.profile import Point, decibels
from sana_streaming.sana_core.precision.units import KINDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "precision.md"
# Plans whose formats are drawn block by block.
MAPPED = ("paper-mpq", "auto", "auto-half", "auto-quarter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    update_page(options.page, options.results)


def update_page(page: Path, results: Path) -> None:
    """Brings the section and the pictures of each device up to date; the pictures go into ``images`` beside the page."""
    text = page.read_text(encoding="utf-8")
    for file in sorted(results.glob("*/precision.json")):
        slug, values = file.parent.name, read_json(file)
        images = {kind: f"images/precision_{kind}_{slug}.png" for kind in ("front", "map")}
        drawn = draw(values, *(page.parent / image for image in images.values()))
        images = {kind: image for kind, image in images.items() if page.parent / image in drawn}
        text = with_section(text, "precision", slug, section(values, images))
    page.write_text(text, encoding="utf-8", newline="\n")


def section(values: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """Markdown of a device: what was run on what, the table, the pictures, the latencies."""
    lines = [f"### {values['size']} on {values['device']}", "", *provenance(values), "", *plan_table(values), ""]
    lines += [*findings(values), ""]
    captions = {"front": "Front of the best plans", "map": "Formats by block"}
    for kind, image in images.items():
        lines += [f"![{captions[kind]}]({image})", ""]
    lines += [*kind_table(values), "", *part_table(values), "", *latency_table(values), ""]
    return "\n".join(lines)


def provenance(values: Mapping[str, Any]) -> list[str]:
    """Where the numbers are from."""
    source, identity = values["latency"]["source"], values["identity"]
    lines = [f"{values['date']}, torch {values['torch']}. Network: {values['size']}, {values['model']}."]
    if source["kind"] == "projected":
        lines.append(
            f"Latency is a **projection, not measured**: data sheet of the {source['target']}, "
            f"{source['assumed_share_of_operations']:.0%} of its operations and {source['assumed_share_of_bytes']:.0%} of its "
            f"bytes per second, each block with the matrices of the 2B network's ({identity['tokens']} tokens)."
        )
    else:
        lines.append(
            f"Latency is measured on this device in {source['dtype']}, {identity['tokens']} tokens: {source['how']}."
        )
    clips, places = identity["clip_count"], ", ".join(identity["places"])
    against = "float32 with TF32 products" if identity.get("tf32") else "float32"
    lines.append(f"Errors: {clips} calibration clip{'s'[: clips > 1]}, chunks {places}, all steps, against {against}.")
    if held := values.get("held_out"):
        lines.append(
            f"Free runs: {held['clips']} held-out clips ({', '.join(held['names'])}), {', '.join(held['edits'])}, "
            f"{held['frames']} frames of {held['width']}x{held['height']}, 4 steps."
        )
    return lines


def plan_table(values: Mapping[str, Any]) -> list[str]:
    """A row for every plan; a dash for what was not run."""
    plans = values["plans"]
    full = plans[UNQUANTIZED].get("latency_ms")
    head = (
        "plan", "weights, MB", "ms", "share", "SQNR by sum, dB", "SQNR, dB", "edit PSNR, dB", "lost", "PSNR to unquantized, dB",
        "SSIM", "flicker", "pass here, ms", "ratio",
    )  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    base = plans[UNQUANTIZED].get("free_run")
    for name, row in plans.items():
        cells = [*_model_cells(name, row, full), *_free_cells(name, row, base), *_pass_cells(row)]
        rows.append(f"| {' | '.join((name, *cells))} |")
    return rows


def findings(values: Mapping[str, Any]) -> list[str]:
    """What the table says, in words."""
    plans, floor = values["plans"], values["floor"]
    lines = [
        f"- bfloat16's own rounding gives {decibels(floor):.1f} dB against float32: no plan has to be better than that, and "
        "what the front shows beyond it is arithmetic."
    ]
    timed = {name: row["latency_ms"] for name, row in plans.items() if row.get("latency_ms") is not None}
    if timed.keys() >= {"auto", "fp8"}:
        published = f" and paper-mpq {timed['paper-mpq']:.2f}" if "paper-mpq" in timed else ""
        lines.append(
            f"- auto, the fastest plan that errs no more than uniform fp8, takes {timed['auto']:.2f} ms where fp8 takes "
            f"{timed['fp8']:.2f}{published} ({values['latency']['source']['kind']})."
        )
    if free := plans[UNQUANTIZED].get("free_run"):
        lost = {name: free["edit_psnr"] - plans[name]["free_run"]["edit_psnr"] for name in plans if name != UNQUANTIZED}
        worst = max(lost, key=lambda name: lost[name])
        lines.append(
            f"- On the edits fp8 loses {lost['fp8']:.2f} dB and int8 {lost['int8']:.2f} dB (below 0 is a gain); the most is "
            f"lost by {worst}, {lost[worst]:.2f} dB."
        )
    return lines


def _model_cells(name: str, row: Mapping[str, Any], full: float | None) -> list[str]:
    latency, exact = row.get("latency_ms"), name == UNQUANTIZED
    return [
        f"{row['unit_bytes'] / 1e6:.2f}" if "unit_bytes" in row else "-",
        "-" if latency is None else f"{latency:.2f}",
        "-" if latency is None or full is None else f"{latency / full:.2f}",
        "-" if exact or row.get("error") is None else f"{decibels(row['error']):.1f}",
        "-" if exact or row.get("noise_power") is None else f"{decibels(row['noise_power']):.1f}",
    ]


def _free_cells(name: str, row: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[str]:
    free = row.get("free_run")
    if free is None or base is None:
        return ["-"] * 5
    if name == UNQUANTIZED:
        return [f"{free['edit_psnr']:.2f}", *["-"] * 4]
    lost = base["edit_psnr"] - free["edit_psnr"]
    likeness = [f"{free['psnr']:.1f}", f"{free['ssim']:.4f}", f"{free['flicker']:.2f}"]
    return [f"{free['edit_psnr']:.2f}", f"{round(lost, 2) + 0.0:.2f}", *likeness]


def _pass_cells(row: Mapping[str, Any]) -> list[str]:
    time = row.get("pass")
    return ["-", "-"] if time is None else [f"{time['milliseconds']:.2f}", f"{time['ratio']:.3f}"]


def kind_table(values: Mapping[str, Any]) -> list[str]:
    """Errors of the units by kind, summed over blocks."""
    errors = values["errors"]
    formats = list(next(iter(errors.values())))
    rows = [
        "Signal to noise of the velocity in dB when one kind of matrix is in a format (errors of its blocks summed):",
        "",
        f"| kind | {' | '.join(formats)} |",
        "| --- |" + " ---: |" * len(formats),
    ]
    for kind in KINDS:
        found = [per_format for name, per_format in errors.items() if name.split(".", 2)[2] == kind]
        cells = [f"{decibels(sum(each[name] for each in found)):.1f}" for name in formats]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return rows


def part_table(values: Mapping[str, Any]) -> list[str]:
    """Where in a stream the plans err: by chunk, and by timestep of the pass."""
    found = {name: row for name, row in values["plans"].items() if row.get("formats") and "by_place" in row}
    first = next(iter(found.values()))
    parts = [(column, name) for column in ("by_place", "by_timestep") for name in first[column]]
    heads = [f"{name} chunk" if column == "by_place" else f"t = {name}" for column, name in parts]
    rows = [
        "Signal to noise of the velocity in dB by chunk, and by timestep:",
        "",
        f"| plan | {' | '.join(heads)} |",
        "| --- |" + " ---: |" * len(parts),
    ]
    for name, row in found.items():
        rows.append(f"| {name} | {' | '.join(f'{decibels(row[column][part]):.1f}' for column, part in parts)} |")
    return rows


def latency_table(values: Mapping[str, Any]) -> list[str]:
    """Milliseconds by shape and format, input quantization included."""
    entries = values["latency"]["entries"]
    formats = list(dict.fromkeys(name.rpartition("/")[2] for name in entries))
    shapes = list(dict.fromkeys(name.rpartition("/")[0] for name in entries))
    rows = [
        f"Milliseconds of a product M x N x K with its input's quantization ({values['latency']['source']['kind']}):",
        "",
        f"| shape | {' | '.join(formats)} |",
        "| --- |" + " ---: |" * len(formats),
    ]
    for shape in shapes:
        cells = [_entry(entries.get(f"{shape}/{name}")) for name in formats]
        rows.append(f"| {shape} | {' | '.join(cells)} |")
    return rows


def _entry(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    return f"{entry['linear']:.3f}" + ("" if entry["road"] == "fast" else " (dequantized)")


def draw(values: Mapping[str, Any], front: Path, blocks: Path) -> list[Path]:
    """The front with all plans marked, and the formats of some plans block by block if there are any; what was drawn."""
    front.parent.mkdir(exist_ok=True)
    table = LatencyTable.from_dict(values["latency"])
    marked = [_point(name, row) for name, row in values["plans"].items() if row.get("latency_ms") is not None]
    points = [_point("front", row) for row in values["front"]]
    title = f"{values['size']}: the best plans, and others"
    chart.save(chart.front_figure(table, points, marked, values["floor"], title), front)
    mapped = {name: _formats(row) for name in MAPPED if "formats" in (row := values["plans"].get(name, {}))}
    if not mapped:
        return [front]
    # Only the number of blocks matters.
    config = DiTConfig(depth=values["plans"][UNQUANTIZED]["blocks"], softmax_layers=(0,))
    chart.save(chart.map_figure(config, mapped), blocks)
    return [front, blocks]


def _point(name: str, row: Mapping[str, Any]) -> Point:
    return Point(name, _formats(row), row["latency_ms"], row["error"], row["unit_bytes"], row["noise_power"])


def _formats(row: Mapping[str, Any]) -> Mapping[str, str]:
    """By unit."""
    listed = {"format": "sana-streaming-precision", "version": 1, "name": "row", "formats": row["formats"]}
    return Plan.from_dict(listed).formats


if __name__ == "__main__":
    main()
