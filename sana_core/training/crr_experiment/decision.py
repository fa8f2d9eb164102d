"""The rule of decision, fixed before any run of the experiment.

CRR *helps* if B beats both A and C in warping error or in drift by more than two standard errors over seeds, while its
edit error is worse than that of neither A nor C by more than one. It *does not help* if no such win exists and B is worse
than A or C by more than two standard errors in either metric, or if a win is paid for with the edit error. Otherwise the
result is *null*: no difference that these seeds can show.

Seeds are paired (equal initial weights and clips), so a standard error is that of the mean of the differences per seed.
Drift counts as its distance from 1. D takes no part in the rule: it says where a gain comes from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import InputError

Verdict = Literal["helps", "does not help", "null"]
RIVALS = ("A", "C")
WIN_METRICS = ("warping_error", "drift")
GUARD_METRIC = "edit_error"
WIN_ERRORS, GUARD_ERRORS = 2.0, 1.0
MIN_SEEDS = 2


@dataclass(frozen=True)
class Comparison:
    """B minus a rival in one metric: mean and standard error over seeds; below 0 B is better."""

    metric: str
    rival: str
    difference: float
    standard_error: float

    def better_by(self, errors: float) -> bool:
        return self.difference < -errors * self.standard_error

    def worse_by(self, errors: float) -> bool:
        return self.difference > errors * self.standard_error


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    comparisons: tuple[Comparison, ...]


def decide(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Decision:
    """The verdict on the metrics of settings A, B and C: per setting one mapping per seed, seeds in the same order.

    InputError for fewer than two seeds or settings of unequal length.
    """
    lengths = {setting: len(results.get(setting, ())) for setting in ("B", *RIVALS)}
    if min(lengths.values()) < MIN_SEEDS or len(set(lengths.values())) != 1:
        raise InputError(
            f"runs per setting are {lengths}; the decision needs {MIN_SEEDS} or more, equally many of each"
        )
    compared = {
        (metric, rival): compare(metric, rival, results["B"], results[rival])
        for metric in (*WIN_METRICS, GUARD_METRIC)
        for rival in RIVALS
    }
    wins = any(all(compared[metric, rival].better_by(WIN_ERRORS) for rival in RIVALS) for metric in WIN_METRICS)
    loses = any(compared[metric, rival].worse_by(WIN_ERRORS) for metric in WIN_METRICS for rival in RIVALS)
    edits_less = any(compared[GUARD_METRIC, rival].worse_by(GUARD_ERRORS) for rival in RIVALS)
    verdict: Verdict = "null"
    if wins and not edits_less:
        verdict = "helps"
    elif wins or loses:
        verdict = "does not help"
    return Decision(verdict, tuple(compared.values()))


def compare(
    metric: str, rival: str, ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> Comparison:
    """The paired difference of one metric over seeds."""
    pairs = zip(ours, theirs, strict=True)
    differences = [badness(metric, mine[metric]) - badness(metric, other[metric]) for mine, other in pairs]
    mean, error = mean_and_error(differences)
    return Comparison(metric, rival, mean, error)


def badness(metric: str, value: float) -> float:
    """The metric as an error: drift by its distance from 1."""
    return abs(value - 1) if metric == "drift" else value


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error of the mean (NaN for one value)."""
    if len(values) < MIN_SEEDS:
        return values[0], math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
