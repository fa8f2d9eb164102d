"""What a row is. The rows themselves are in ``operators.py``, ``networks.py`` and ``end_to_end.py``; :func:`all_rows` is
the one list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import InputError
from .counts import Work
from .sizes import SIZES, Bench, Size

CUDA_SIZES = ("704x1280", "384x640")
COMPILED, RELEASED, FLA, NAIVE = "compiled", "released", "fla", "naive"
BASELINES: dict[str, str] = {
    RELEASED: "plain PyTorch in the released form: two scans over the frames, delta rule step by step",
    COMPILED: "torch.compile of the eager form",
    FLA: "chunk_gated_delta_rule of flash-linear-attention: one direction, token after token, no denominator",
    NAIVE: "the recurrence as its formulas read, token by token",
}
ON_GPU_ONLY = "measured on CUDA only: compiling for the CPU needs a C++ compiler and minutes"


@dataclass(frozen=True)
class Samples:
    """Seconds of a run that times itself, and whatever else it found."""

    seconds: list[float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One implementation of a row: ``run`` is one call; with ``samples`` it times itself and returns Samples."""

    run: Callable[[], object]
    samples: bool = False


@dataclass(frozen=True)
class Case:
    """A row made ready at one size.

    variants: implementations and baselines by name; one that cannot run here raises when it is first called. skipped: those
    known not to be measured here, with the reason. work: least work of one call, step after step. frames: pixel frames by
    which one call brings the stream on, 0 for a part of a pass.
    """

    variants: Mapping[str, Variant]
    work: tuple[Work, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    frames: int = 0


@dataclass(frozen=True)
class Row:
    """A question of the benchmark. ``formula`` says what its bytes and FLOPs count."""

    name: str
    group: Literal["operator", "network"]
    what: str
    formula: str
    prepare: Callable[[Bench, Size], Case]
    cpu_sizes: tuple[str, ...]

    def sizes(self, device: torch.device) -> list[Size]:
        """Those that the row is measured at on such a device."""
        return [SIZES[name] for name in (CUDA_SIZES if device.type == "cuda" else self.cpu_sizes)]


def all_rows() -> tuple[Row, ...]:
    """Every row, operators first."""
    from .end_to_end import END_TO_END_ROWS
    from .networks import NETWORK_ROWS
    from .operators import OPERATOR_ROWS

    return (*OPERATOR_ROWS, *NETWORK_ROWS, *END_TO_END_ROWS)


def chosen(names: Iterable[str] | None, device: torch.device) -> list[tuple[Row, Size]]:
    """Rows and their sizes; ``names`` are rows or ``row@size``, None for all. InputError for one that is unknown."""
    pairs = {f"{row.name}@{size.name}": (row, size) for row in all_rows() for size in row.sizes(device)}
    if names is None:
        return list(pairs.values())
    wanted: dict[str, tuple[Row, Size]] = {}
    for name in names:
        found = {key: pair for key, pair in pairs.items() if name in (key, pair[0].name)}
        if not found:
            known = ", ".join(dict.fromkeys(row.name for row, _ in pairs.values()))
            raise InputError(f"--only {name} is no row on {device.type}; use {known}, or NAME@SIZE as --list shows")
        wanted |= found
    return list(wanted.values())


def compiled(function: Callable[..., object], *arguments: object) -> Variant:
    """``torch.compile`` of a function, compiled at its first call."""
    made: list[Callable[..., object]] = []

    def run() -> object:
        if not made:
            made.append(torch.compile(function))
        return made[0](*arguments)

    return Variant(run)
