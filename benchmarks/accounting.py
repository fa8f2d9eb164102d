"""Writes into docs/performance.md where the time of a chunk goes: floors, projections, predictions, and their picture.

    python benchmarks/accounting.py

All of it is arithmetic on the sizes of the networks and on data sheets, but for what `benchmarks/results` holds. The part
between the markers and `docs/images/accounting.png` are made anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sana_streaming.sana_core.benchmark.accounting import (
    CARDS,
    PEAK,
    REALISTIC,
    Card,
    Projection,
    Shares,
    Stage,
    chunk_stages,
    part_seconds,
    project,
)
from sana_streaming.sana_core.benchmark.counts import Part, total
from sana_streaming.sana_core.benchmark.predictions import Prediction, predictions
from sana_streaming.sana_core.benchmark.results import read_results
from sana_streaming.sana_core.benchmark.sizes import SIZES
from sana_streaming.sana_core.benchmark.table import number
from sana_streaming.sana_core.config import read_json

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- accounting -->", "<!-- accounting: end -->"
PICTURE = "images/accounting.png"
NOT_MEASURED = "not measured: no GPU run yet"
HEADING = "Projection, not measured"
SIZE = SIZES["704x1280"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    update_page(options.page, options.results)


def update_page(page: Path, results: Path) -> None:
    """Brings section and picture up to date; the picture goes into ``images`` beside the page."""
    text = with_section(page.read_text(encoding="utf-8"), section(results))
    (page.parent / PICTURE).parent.mkdir(exist_ok=True)
    draw(page.parent / PICTURE)
    page.write_text(text, encoding="utf-8", newline="\n")


def with_section(text: str, body: str) -> str:
    """``text`` with what is between the markers replaced. ValueError where they are not there."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"the page has no lines {BEGIN} and {END} to put the accounting between")
    return f"{text.split(BEGIN, 1)[0]}{BEGIN}\n\n{body}\n{END}{text.split(END, 1)[1]}"


def section(results: Path) -> str:
    """Markdown of everything; ``results`` is the folder of measured ones."""
    stages = chunk_stages(SIZE)
    return "\n".join(
        [
            f"### {HEADING}: frames per second",
            "",
            *peaks_lines(),
            "",
            *_lines(cards_table()),
            "",
            video_line(results),
            "",
            f"![{HEADING}: milliseconds of a chunk]({PICTURE})",
            "",
            f"### {HEADING}: every operation of a chunk",
            "",
            "Sums over the chunk. Milliseconds are floor / assumed.",
            "",
            *_lines(operations_table(stages)),
            "",
            f"### {HEADING}: what each fused kernel will save",
            "",
            "All calls of a chunk; a pass saves a fifth of what the transformer's rows say.",
            "",
            *_lines(predictions_table(results)),
            "",
        ]
    )


def peaks_lines() -> list[str]:
    """The ceilings, and what is assumed to be reached of them."""
    peaks = [
        f"- {card.name}: {card.bf16 / 1e12:g} TFLOP/s in bf16, {card.eight_bit / 1e12:g} in the fastest 8-bit format, "
        f"{card.memory / 1e12:g} TB/s, {card.link / 1e9:g} GB/s from the host and as much to it"
        for card in CARDS
    ]
    kinds = {
        "matmul": "products with weights",
        "convolution": "convolutions",
        "attention": "attention and the gated delta rule",
    }
    shares = ", ".join(f"{100 * REALISTIC.of(kind):.0f} % for {what}" for kind, what in kinds.items())
    return [
        "Peaks are those of data sheets, dense, with float32 sums:",
        "",
        *peaks,
        "",
        f"*Floor* is all of them; *assumed* is {shares},",
        f"and {100 * REALISTIC.bytes:.0f} % of the bytes per second. *8-bit products* are those with weights only, their "
        "bytes as in bf16.",
    ]


def cards_table() -> list[list[str]]:
    """A line for each card, floor and assumed shares, bf16 and 8-bit products."""
    heads = ["card", "", "encode, ms", "DiT, ms", "decode, ms", "frames in and out, ms", "chunk, ms"]
    rows = [[*heads, "DiT frames/s", "end-to-end frames/s"]]
    for card in CARDS:
        for shares, eight_bit, name in (
            (PEAK, False, "floor, bf16"),
            (REALISTIC, False, "assumed, bf16"),
            (REALISTIC, True, "assumed, 8-bit products"),
        ):
            rows.append([card.name, name, *_rates(project(card, shares, SIZE, eight_bit=eight_bit))])
    return rows


def _rates(found: Projection) -> list[str]:
    times = dict(found.stage_seconds)
    around = times["frames in"] + times["frames out"]
    cells = (times["encode"], times["DiT"], times["decode"], around, found.seconds)
    return [*(_ms(seconds) for seconds in cells), f"{found.dit_rate:.0f}", f"{found.rate:.0f}"]


def video_line(results: Path) -> str:
    """What the host adds where nothing overlaps, as it was measured on a CPU."""
    values = read_json(results / "cpu" / "video_files.json")
    read, write = values["read_ms"], values["write_ms"]
    return (
        f"Reading and writing 24 frames of H.264 take the host {number(read)} and {number(write)} ms, measured on "
        f"{values['cores']} cores of {values['device'].removeprefix('CPU ').split(',')[0]}; one after another with the "
        "rest they come on top, beside it the slower of the two counts."
    )


def operations_table(stages: Sequence[Stage]) -> list[list[str]]:
    """Every operation with its sums over the chunk; those of one name together, stages and their sum in bold."""
    heads = ["operation", "calls", "TFLOP", "GB", *(f"{card.name}, ms" for card in CARDS)]
    rows = [heads]
    for stage in stages:
        rows.append([f"**{cell}**" if cell else "" for cell in _operation(stage.name, "", stage.parts)])
        for name in dict.fromkeys(part.name for part in stage.parts):
            parts = [part for part in stage.parts if part.name == name]
            calls = max(part.work.calls for part in parts)
            rows.append(_operation(name.removeprefix(f"{stage.name}: "), str(calls), parts))
    everything = [part for stage in stages for part in stage.parts]
    return [*rows, [f"**{cell}**" if cell else "" for cell in _operation("chunk", "", everything)]]


def _operation(name: str, calls: str, parts: Sequence[Part]) -> list[str]:
    work = total(parts)
    times = (
        " / ".join(_ms(sum(part_seconds(part, card, shares) for part in parts)) for shares in (PEAK, REALISTIC))
        for card in CARDS
    )
    flops = number(work.flops / 1e12) if work.flops else "-"
    return [name, calls, flops, number(work.bytes / 1e9), *times]


def predictions_table(results: Path) -> list[list[str]]:
    """Bytes in plain PyTorch and fused, and what their difference takes; and what was measured."""
    heads = ["row of `bench`", "what", "calls", "eager, GB", "fused, GB"]
    rows = [[*heads, *(f"{card.name}, ms saved" for card in CARDS), "measured"]]
    gpus = [values for values in map(read_results, sorted(results.glob("*/bench.json"))) if _of_gpu(values)]
    for each in predictions(SIZE):
        moved = (number(each.eager_bytes / 1e9), number(each.fused_bytes / 1e9))
        saved = (_ms(each.saved_seconds(card)) for card in CARDS)
        rows.append([f"`{each.row}`", each.what, str(each.calls), *moved, *saved, _measured(each, gpus)])
    return rows


def _measured(prediction: Prediction, gpus: Sequence[dict[str, Any]]) -> str:
    found = ((values["device"], prediction.measured_ms(values, SIZE)) for values in gpus)
    cells = [f"{number(saved)} ms ({device})" for device, saved in found if saved is not None]
    return ", ".join(cells) or NOT_MEASURED


def _of_gpu(values: dict[str, Any]) -> bool:
    return not values["device"].startswith("CPU ")


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; columns of numbers to the right."""
    head, *body = rows
    ruled = [_rule([row[column] for row in body]) for column in range(len(head))]
    for row in (head, ruled, *body):
        yield f"| {' | '.join(row)} |"


def _rule(cells: Sequence[str]) -> str:
    return "---:" if all(cell.strip("*")[:1].isdigit() or cell.strip("*") in ("", "-") for cell in cells) else "---"


# Names of the picture's segments, and which parts they take, the first that fits.
SEGMENTS = (
    ("VAE encode, convolutions", "#1f4e79", lambda stage, part: stage == "encode" and part.kind == "convolution"),
    ("VAE encode, rest", "#7fa8cc", lambda stage, part: stage == "encode"),
    ("DiT, products with weights", "#a63d00", lambda stage, part: stage == "DiT" and part.kind == "matmul"),
    ("DiT, softmax and cross-attention", "#e08a2e", lambda stage, part: stage == "DiT" and "attention" in part.name),
    ("DiT, gated delta rule", "#f2c14e", lambda stage, part: stage == "DiT" and part.kind == "attention"),
    ("DiT, norms and depthwise", "#fae6b0", lambda stage, part: stage == "DiT"),
    ("VAE decode, convolutions", "#2f6b3a", lambda stage, part: stage == "decode" and part.kind == "convolution"),
    ("VAE decode, rest", "#96c29d", lambda stage, part: stage == "decode"),
    ("frames in and out", "#555555", lambda stage, part: True),
)


def segment_seconds(card: Card, shares: Shares) -> dict[str, float]:
    """Seconds of each segment of the picture; every part is in exactly one."""
    seconds = {name: 0.0 for name, _, _ in SEGMENTS}
    for stage in chunk_stages(SIZE):
        for part in stage.parts:
            name = next(name for name, _, takes in SEGMENTS if takes(stage.name, part))
            seconds[name] += part_seconds(part, card, shares)
    return seconds


def draw(target: Path) -> None:
    """Two bars for each card: floor, and assumed shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5.2), layout="constrained")
    bars = [(card, shares, name) for card in CARDS for shares, name in ((PEAK, "floor"), (REALISTIC, "assumed"))]
    left = [0.0] * len(bars)
    for name, colour, _ in SEGMENTS:
        widths = [1000 * segment_seconds(card, shares)[name] for card, shares, _ in bars]
        axes.barh(range(len(bars)), widths, left=left, color=colour, label=name, edgecolor="white", linewidth=0.4)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in enumerate(left):
        axes.text(end + 8, place, f"{end:.0f} ms, {24_000 / end:.0f} frames/s", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [f"{card.name}, {name}" for card, _, name in bars])
    axes.invert_yaxis()
    axes.set(
        xlabel="milliseconds for 24 frames at 704x1280, bf16, one stage after another",
        title=f"{HEADING}: where the time of a chunk goes",
        xlim=(0, 1.22 * max(left)),
    )
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
