"""Results as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .registry import BASELINES

EMPTY = "-"


def table(results: dict[str, Any]) -> str:
    """One line per row and implementation; baselines in italics. Ends with a newline."""
    used = {name for record in results["rows"].values() for name in record["timings"]}
    baselines = [name for name in BASELINES if name in used]
    heads = ["row", "size", "implementation", "median, ms", "IQR, ms", "floor, ms", "floor / median", "frames/s"]
    heads += [f"over {name}" for name in baselines]
    lines = [_line(heads), _line(["---"] * 3 + ["---:"] * (len(heads) - 3))]
    for record in results["rows"].values():
        lines += [_line(cells) for cells in _cells(record, baselines)]
    return "\n".join(lines) + "\n"


def _cells(record: dict[str, Any], baselines: list[str]) -> Iterator[list[str]]:
    for name, timing in record["timings"].items():
        rate = record["frames"] / timing["median_ms"] * 1000
        cells = [record["row"], record["size"], f"*{name}*" if timing["baseline"] else name]
        cells += [number(timing["median_ms"]), number(timing["iqr_ms"])]
        cells += [f"{number(record['floor_ms'])} ({record['bound']})", f"{100 * timing['of_floor']:.0f} %"]
        cells.append(number(rate) if record["frames"] else EMPTY)
        for key in baselines:
            known = key in timing["speedup"] and key != name
            cells.append(f"{timing['speedup'][key]:.2f}x" if known else EMPTY)
        yield cells


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Three significant digits, without an exponent for what is measured here."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else f"{value:.1e}"


def skipped(results: dict[str, Any]) -> dict[str, list[str]]:
    """Rows by what was not measured in them and why."""
    found: dict[str, list[str]] = {}
    for key, record in results["rows"].items():
        for name, reason in record["skipped"].items():
            found.setdefault(f"{name}: {reason}", []).append(key)
    return found


def with_section(text: str, subject: str, slug: str, body: str) -> str:
    """A page with the device's part on ``subject`` replaced, or put before the subject's end marker.

    ValueError where there is no such marker.
    """
    begin, end, last = f"<!-- {subject}: {slug} -->", f"<!-- {subject}: end of {slug} -->", f"<!-- {subject}: end -->"
    part = f"{begin}\n\n{body}\n{end}\n"
    if begin in text:
        before, rest = text.split(begin, 1)
        return before + part + rest.split(f"{end}\n", 1)[1]
    if last not in text:
        raise ValueError(f"the page has no line {last} to put the first section of {slug} before")
    return text.replace(last, f"{part}\n{last}", 1)
