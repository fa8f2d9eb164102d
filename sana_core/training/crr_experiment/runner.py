"""All settings and seeds, one after another, with every finished run kept in a JSON file at once."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from .decision import MIN_SEEDS, decide
from .experiment import SETTINGS, ExperimentConfig, run_one
from .report import metrics_by_setting


def run_all(
    config: ExperimentConfig, seeds: Sequence[int], path: Path, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """The content of ``path`` once every setting has run with every seed; what is in the file is not run again.

    Runs go seed by seed, so that a file cut short still compares settings. InputError for a file of another config.
    """
    report = _begin(path, config)
    done = {(run["setting"], run["seed"]) for run in report["runs"]}
    for seed in seeds:
        for setting in SETTINGS:
            if (setting, seed) not in done:
                report["runs"].append(asdict(run_one(config, setting, seed, log)))
                _conclude(report)
                _write(path, report)
    return report


def _begin(path: Path, config: ExperimentConfig) -> dict[str, Any]:
    """What the file holds, or a report without runs."""
    wanted = asdict(config)
    if not path.exists():
        return {**_environment(), "config": wanted, "runs": []}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found, _ = report["config"], report["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a report of this experiment ({error!r}); give another file") from error
    if found != wanted:
        raise InputError(f"{path} was made with the config {found}, not {wanted}; give another file, or remove it")
    return report


def _environment() -> dict[str, Any]:
    return {
        "device": f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _conclude(report: dict[str, Any]) -> None:
    """Adds the decision as soon as enough seeds are complete."""
    results = metrics_by_setting(report["runs"])
    if len(results["A"]) >= MIN_SEEDS:
        report["decision"] = {"seeds": len(results["A"]), **asdict(decide(results))}


def _write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
