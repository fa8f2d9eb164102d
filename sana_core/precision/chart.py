"""Pictures of a profile: the front of the best plans, and which unit has which format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import DiTConfig
from ..errors import InputError
from .latency import LatencyTable
from .plan import UNQUANTIZED
from .profile import Point, decibels
from .units import KINDS

COLORS = {
    "bf16": "#d9d9d9",
    "fp8": "#80b1d3",
    "int8": "#8dd3a7",
    "int8-hadamard": "#3b9c6b",
    "mxfp8": "#bc80bd",
    "nvfp4": "#fb8072",
}
_DPI = 110


def front_figure(
    table: LatencyTable, front: Sequence[Point], marked: Sequence[Point], floor: float | None = None, title: str = ""
) -> Any:
    """Signal to noise over latency: the front as a line, other plans by name, ``floor`` the noise of bfloat16 itself.

    Where a plan was run its measured noise is drawn, else the sum of its units' errors. The unquantized plan is no part of
    the line, and marked at the floor. The axis says whether its milliseconds were measured or projected.
    """
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    seen = [point for point in front if point.formats]
    axes.plot(
        [point.latency for point in seen],
        [decibels(_noise(point, floor) or 0) for point in seen],
        marker="o",
        markersize=4,
        color="#333333",
        label="best plans",
        zorder=2,
    )
    by_name = {point.name: point for point in marked}
    for number, point in enumerate(sorted(by_name.values(), key=lambda point: (point.latency, point.error))):
        noise = _noise(point, floor)
        if noise is None:
            continue
        x, y = point.latency, decibels(noise)
        axes.scatter([x], [y], s=60, color=COLORS.get(point.name, "#fdb462"), edgecolor="#333333", zorder=3)
        axes.annotate(point.name, (x, y), xytext=(7, 5 if number % 2 else -13), textcoords="offset points", fontsize=9)
    if floor is not None:
        axes.axhline(decibels(floor), color="#888888", linestyle=":", label="bfloat16's own rounding")
    axes.set(xlabel=latency_label(table), ylabel="signal to noise of the velocity, dB", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def _noise(point: Point, floor: float | None) -> float | None:
    if not point.formats:
        return floor
    return point.error if point.noise is None else point.noise


def latency_label(table: LatencyTable) -> str:
    """What the milliseconds are, measured or projected, and of which matrices if not of the network's own."""
    source = table.source
    whose = " of the 2B network" if source.get("sizes") == "2b" else ""
    what = f"milliseconds per pass of {table.tokens} tokens in matrices{whose}"
    if source["kind"] == "measured":
        return f"{what}, measured on {source['device']}"
    return f"{what}, projected from the data sheet of {source['target']}"


def map_figure(config: DiTConfig, plans: Mapping[str, Mapping[str, str]]) -> Any:
    """Formats of units, blocks from left to right, one panel for each plan (name -> unit name -> format)."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    names = list(COLORS)
    width = max(2.6, 0.28 * config.depth + 0.4)
    figure = _figure(1.6 + width * len(plans), 4.6)
    panels = figure.subplots(1, len(plans), sharey=True, squeeze=False)[0]
    for axes, (title, formats) in zip(panels, plans.items(), strict=True):
        cells = [
            [names.index(formats.get(f"blocks.{block}.{kind}", UNQUANTIZED)) for block in range(config.depth)]
            for kind in KINDS
        ]
        axes.pcolormesh(
            cells,
            cmap=ListedColormap(list(COLORS.values())),
            norm=BoundaryNorm([i - 0.5 for i in range(len(names) + 1)], len(names)),
            edgecolors="white",
            linewidth=1.5,
        )
        step = 1 if config.depth <= 8 else 5
        blocks = range(0, config.depth, step)
        axes.set_xticks([block + 0.5 for block in blocks], [str(block) for block in blocks])
        axes.set(title=title, xlabel="block")
        axes.tick_params(length=0)
    panels[0].set_yticks([row + 0.5 for row in range(len(KINDS))], list(KINDS))
    panels[0].invert_yaxis()
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def save(figure: Any, path: str | Path) -> None:
    """As PNG or another kind of picture, by the end of the name."""
    figure.savefig(path, dpi=_DPI)


def _figure(width: float, height: float) -> Any:
    """Without pyplot, whose windows and state belong to the caller; InputError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"charts need matplotlib ({error}); pip install matplotlib, or ask for no chart") from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure
