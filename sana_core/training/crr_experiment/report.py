"""The results as a Markdown table, and the decision with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .decision import Decision, decide, mean_and_error
from .experiment import SETTINGS

# Metric, what the table calls it.
ROWS = {
    "warping_error": "warping error",
    "drift": "drift of the warping error (1 is best)",
    "colour_drift": "drift of the colour error (1 is best)",
    "boundary_jump": "boundary jump (1 is best)",
    "preservation_error": "preservation error",
    "edit_error": "edit error (0 perfect, 1 no edit)",
    "edit_error_style": "- style",
    "edit_error_recolour": "- recolour",
    "edit_error_background": "- background",
    "reconstruction_error": "source reconstruction error",
}


def metrics_by_setting(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Metrics of the seeds that every setting has, in the order of seeds."""
    by_key = {(run["setting"], run["seed"]): run["metrics"] for run in runs}
    seeds = sorted({seed for _, seed in by_key if all((setting, seed) in by_key for setting in SETTINGS)})
    return {setting: [by_key[setting, seed] for seed in seeds] for setting in SETTINGS}


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard error per metric and setting, cost, and the decision. InputError for fewer than two seeds."""
    results = metrics_by_setting(runs)
    decision = decide(results)
    lines = [f"Mean ± standard error over {len(results['A'])} seeds; lower is better but for ratios.", ""]
    lines += ["| | " + " | ".join(SETTINGS) + " |", "|---" * (1 + len(SETTINGS)) + "|"]
    for metric, name in ROWS.items():
        cells = [_cell([run[metric] for run in results[setting]]) for setting in SETTINGS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += _cost_rows(runs)
    return "\n".join([*lines, "", *_decision_lines(decision)]) + "\n"


def _cell(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.4f} ± {error:.4f}"


def _cost_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Work, time and memory of a step relative to A, and the number of steps; times are of the same seed."""

    def over_a(key: str) -> list[str]:
        own = {(run["setting"], run["seed"]): run[key] for run in runs}
        pairs = [
            [v / own["A", seed] for (s, seed), v in own.items() if s == wanted and ("A", seed) in own]
            for wanted in SETTINGS
        ]
        return [f"{mean_and_error(ratios)[0]:.2f}" for ratios in pairs]

    steps = [str(next(run["steps"] for run in runs if run["setting"] == setting)) for setting in SETTINGS]
    rows = {
        "steps": steps,
        "work per step, over A's": over_a("work_per_step"),
        "processor time per step, over A's": over_a("cpu_seconds_per_step"),
        "wall time per step, over A's": over_a("wall_seconds_per_step"),
        "bytes kept for the backward pass, over A's": over_a("saved_bytes"),
    }
    return [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def _decision_lines(decision: Decision) -> list[str]:
    lines = [f"Decision: **{decision.verdict}**. B minus the rival, paired by seed; drift as its distance from 1:", ""]
    lines += ["| metric | rival | difference | standard error | in standard errors |", "|---|---|---|---|---|"]
    for c in decision.comparisons:
        ratio = f"{c.difference / c.standard_error:+.1f}" if c.standard_error else "-"
        lines.append(f"| {c.metric} | {c.rival} | {c.difference:+.4f} | {c.standard_error:.4f} | {ratio} |")
    return lines
