"""Which unit takes which format: an exact multiple-choice knapsack over latency and error.

Errors add up (noise powers of independent roundings); latencies add up, and quantizing an input that several units share is
paid once for each format. Self-attention's layout is one for the whole network, so the fused and the split one are two
problems, and the better answer of both counts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import DiTConfig
from ..errors import InputError
from .latency import LatencyTable, fused_rows
from .plan import UNQUANTIZED
from .units import FUSED_KINDS, Unit, block_units

# Unit name -> format -> relative noise power; what is not quantized has none.
Errors = Mapping[str, Mapping[str, float]]
# A solver's tolerance, as a share of the budget.
TOLERANCE = 1e-6
# Sizes at which the solver's own absolute tolerances are small.
_OBJECTIVE, _BUDGET = 1e4, 1e3

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A group of units in one format: milliseconds, noise power, and the cost it shares with others, if any."""

    format: str
    latency: float
    error: float
    shares: str = ""


@dataclass(frozen=True)
class Problem:
    """One choice for each group.

    choices: by group. members: names of the units of each group. shared: milliseconds of each shared cost, paid once.
    """

    choices: Mapping[str, Sequence[Choice]]
    members: Mapping[str, Sequence[str]]
    shared: Mapping[str, float] = field(default_factory=dict)

    def selection(self, picks: Sequence[int]) -> Selection:
        """The outcome of taking choice number ``picks[i]`` of the i-th group."""
        chosen = [options[pick] for options, pick in zip(self.choices.values(), picks, strict=True)]
        paid = {choice.shares for choice in chosen if choice.shares}
        formats = {
            unit: choice.format
            for choice, members in zip(chosen, self.members.values(), strict=True)
            for unit in members
            if choice.format != UNQUANTIZED
        }
        latency = sum(choice.latency for choice in chosen) + sum(self.shared[name] for name in sorted(paid))
        return Selection(formats, latency, sum(choice.error for choice in chosen))


@dataclass(frozen=True)
class Selection:
    """Formats of the units that are quantized, milliseconds per pass, and summed noise power."""

    formats: Mapping[str, str]
    latency: float
    error: float


def problems(config: DiTConfig, table: LatencyTable, errors: Errors) -> list[Problem]:
    """The fused and the split problem of a network. Formats of a unit are those that both table and errors have."""
    return [_fused(config, table, errors), _split(config, table, errors)]


def _fused(config: DiTConfig, table: LatencyTable, errors: Errors) -> Problem:
    choices, members = _alone(config, table, errors)
    for block in range(config.depth):
        shared = _shared(config, block)
        names = [unit.name for unit in shared]
        rows, columns = fused_rows(shared), shared[0].columns
        kinds = [kind for kind in table.formats() if all(_known(errors, name, kind) for name in names)]
        group = f"blocks.{block}.self.qkvg"
        members[group] = names
        choices[group] = [
            Choice(kind, table.of(rows, columns, kind).linear, sum(_error(errors, name, kind) for name in names))
            for kind in kinds
        ]
    return Problem(choices, members)


def _split(config: DiTConfig, table: LatencyTable, errors: Errors) -> Problem:
    choices, members = _alone(config, table, errors)
    costs: dict[str, float] = {}
    for block in range(config.depth):
        for unit in _shared(config, block):
            members[unit.name] = [unit.name]
            options: list[Choice] = []
            for kind in (kind for kind in table.formats() if _known(errors, unit.name, kind)):
                found = table.of(unit.rows, unit.columns, kind)
                cost = f"blocks.{block}.input/{kind}" if found.quantize else ""
                if cost:
                    costs[cost] = found.quantize
                options.append(Choice(kind, found.product, _error(errors, unit.name, kind), cost))
            choices[unit.name] = options
    return Problem(choices, members, costs)


def _shared(config: DiTConfig, block: int) -> list[Unit]:
    return [unit for unit in block_units(config, block) if unit.kind in FUSED_KINDS]


def _alone(
    config: DiTConfig, table: LatencyTable, errors: Errors
) -> tuple[dict[str, Sequence[Choice]], dict[str, Sequence[str]]]:
    """Choices and members of the units that read their input alone, the same in both layouts."""
    choices: dict[str, Any] = {}
    for block in range(config.depth):
        for unit in (unit for unit in block_units(config, block) if unit.kind not in FUSED_KINDS):
            kinds = [kind for kind in table.formats() if _known(errors, unit.name, kind)]
            found = [Choice(kind, table.unit(unit, kind), _error(errors, unit.name, kind)) for kind in kinds]
            choices[unit.name] = _undominated(found)
    return choices, {name: [name] for name in choices}


def _undominated(choices: Sequence[Choice]) -> list[Choice]:
    """Without those that another beats in one respect and equals in the other; of equals the first stays."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.latency, c.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept


def _known(errors: Errors, name: str, kind: str) -> bool:
    return kind == UNQUANTIZED or kind in errors[name]


def _error(errors: Errors, name: str, kind: str) -> float:
    return 0.0 if kind == UNQUANTIZED else errors[name][kind]


def plan_error(formats: Mapping[str, str], errors: Errors) -> float:
    """Summed noise power of a plan's formats, by unit. InputError where one was not measured."""
    for name, kind in formats.items():
        if not _known(errors, name, kind):
            raise InputError(f"the error of {name} in {kind} was not measured; profile with --formats that have it")
    return sum(_error(errors, name, kind) for name, kind in formats.items())


def least_error(found: Iterable[Problem], max_latency: float) -> Selection | None:
    """The selection of least error that takes no longer than ``max_latency`` milliseconds; None where none does."""
    answers = [_solve(problem, "error", "latency", max_latency) for problem in found]
    return min((a for a in answers if a), key=lambda answer: (answer.error, answer.latency), default=None)


def least_latency(found: Iterable[Problem], max_error: float) -> Selection | None:
    """The fastest selection whose summed noise power is at most ``max_error``; None where there is none."""
    answers = [_solve(problem, "latency", "error", max_error) for problem in found]
    return min((a for a in answers if a), key=lambda answer: (answer.latency, answer.error), default=None)


def front(found: Sequence[Problem], budgets: Iterable[float]) -> list[Selection]:
    """The selections of least error for each latency budget, from the fastest on; those that another beats are left out."""
    answers = [answer for budget in budgets if (answer := least_error(found, budget)) is not None]
    kept: list[Selection] = []
    for answer in sorted(answers, key=lambda a: (a.latency, a.error)):
        if not kept or answer.error < kept[-1].error:
            kept.append(answer)
    return kept


def budgets(found: Sequence[Problem], count: int, also: Iterable[float] = ()) -> list[float]:
    """``count`` latencies evenly from the fastest selection there is to the one without error, and those in ``also``."""
    fastest, exact = least_latency(found, float("inf")), least_latency(found, 0.0)
    assert fastest is not None and exact is not None
    step = (exact.latency - fastest.latency) / max(1, count - 1)
    return sorted({*(fastest.latency + step * i for i in range(count - 1)), exact.latency, *also})


def _solve(problem: Problem, least: str, bounded: str, budget: float) -> Selection | None:
    """The selection with the least of one measure within the budget of the other; of equals the one that takes least of it."""
    model = _Model(problem, bounded, budget)
    first = model.minimise(model.costs(least), [])
    if first is None:
        return None
    # Equal up to the tolerance is equal: the other measure decides, then the order of the formats.
    best = getattr(first, least)
    second = model.minimise(model.costs(bounded) + model.order(), [(model.costs(least), best)])
    return second or first


def _solver() -> tuple[Any, Any, Any]:
    """scipy's, imported when first used; InputError where it is missing."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"choosing a plan needs scipy ({error}); pip install scipy, or take a preset") from error
    return Bounds, LinearConstraint, milp


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """The solver's library prints remarks past Python, which are no part of a program's output."""
    if sys.stdout is not None:
        sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        # A program without a terminal may have neither.
        with contextlib.suppress(OSError):
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        yield


class _Model:
    """A problem as arrays: a binary variable for each choice, then one for each shared cost."""

    def __init__(self, problem: Problem, bounded: str, budget: float) -> None:
        self.problem = problem
        self.choices = [choice for options in problem.choices.values() for choice in options]
        self.shared = {name: len(self.choices) + place for place, name in enumerate(problem.shared)}
        self.size = len(self.choices) + len(self.shared)
        self._limits = [] if np.isinf(budget) else [(self.costs(bounded), budget)]
        self._rows, self._upper_bounds = self._structure()
        # What breaks a budget alone need not be left to the solver's tolerance.
        self._upper = np.ones(self.size)
        for costs, limit in self._limits:
            self._upper[costs > limit * (1 + 1e-12)] = 0

    def costs(self, measure: str) -> Array:
        """What each variable adds to ``latency`` or ``error``."""
        values = [getattr(choice, measure) for choice in self.choices]
        return np.array(
            [*values, *(self.problem.shared.values() if measure == "latency" else [0.0] * len(self.shared))]
        )

    def order(self) -> Array:
        """A cost that is too small to matter but between equals, where it prefers the earlier choice."""
        places = [place for options in self.problem.choices.values() for place in range(len(options))]
        scale = sum(choice.latency for choice in self.choices) / max(1, len(self.choices))
        return np.array([*places, *[0] * len(self.shared)]) * scale * 1e-9

    def minimise(self, objective: Array, limits: list[tuple[Array, float]]) -> Selection | None:
        Bounds, LinearConstraint, milp = _solver()
        constraints = [LinearConstraint(self._rows, *self._upper_bounds)]
        for costs, limit in (*self._limits, *limits):
            scale = _BUDGET / (limit or 1.0)
            constraints.append(LinearConstraint(costs[None] * scale, -np.inf, limit * scale * (1 + TOLERANCE / 2)))
        # The solver stops at a fixed absolute gap, which has to be small beside the objective.
        scale = _OBJECTIVE / max(float(objective.max()) * len(self.problem.choices), 1e-300)
        with _output_to_stderr():
            answer = milp(
                objective * scale,
                integrality=np.ones(self.size),
                bounds=Bounds(0, self._upper),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        if answer.x is None:
            return None
        return self.problem.selection(self._picks(answer.x))

    def _structure(self) -> tuple[Any, tuple[Array, Array]]:
        """One choice for each group, and a shared cost for whoever has it: rows, and their lower and upper bounds."""
        from scipy.sparse import coo_array  # type: ignore[import-untyped]

        entries: list[tuple[int, int, float]] = []
        variable = 0
        for row, options in enumerate(self.problem.choices.values()):
            entries += [(row, variable + place, 1.0) for place in range(len(options))]
            variable += len(options)
        groups = row = len(self.problem.choices)
        for place, choice in enumerate(self.choices):
            if choice.shares:
                entries += [(row, place, 1.0), (row, self.shared[choice.shares], -1.0)]
                row += 1
        rows, columns, values = zip(*entries, strict=True)
        lower = np.array([1.0] * groups + [-1.0] * (row - groups))
        upper = np.array([1.0] * groups + [0.0] * (row - groups))
        return coo_array((values, (rows, columns)), shape=(row, self.size)).tocsr(), (lower, upper)

    def _picks(self, x: Array) -> list[int]:
        picks, start = [], 0
        for options in self.problem.choices.values():
            picks.append(int(np.argmax(x[start : start + len(options)])))
            start += len(options)
        return picks
