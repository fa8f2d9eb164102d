"""Plans beside each other: bytes, noise of single passes, free runs of the held-out clips, and the time of a real pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.editor import StreamEditor
from ..training.data.sources import Sample
from .apply import trial, twin
from .free_running import compare, outputs, running, under_plan
from .journal import Journal
from .pass_time import pass_times
from .plan import UNQUANTIZED, Plan
from .reference import Reference, noise_power
from .report import unit_bytes

# The row of the unquantized network with other rounding: what likeness can be expected of a free run at best.
FLOOR = "rounding"
OnStep = Callable[[str, str, int], None]


def compare_plans(
    editor: StreamEditor,
    plans: Mapping[str, Plan],
    reference: Reference,
    samples: Sequence[Sample],
    *,
    journal: Journal,
    on_step: OnStep = lambda plan, stage, number: None,
    seconds: float = 2.0,
) -> dict[str, dict[str, Any]]:
    """A row of numbers by the name of the plan, the unquantized network first and its other rounding second.

    ``reference`` is of the unquantized network in float32. ``on_step`` is told (plan, stage, number) before each pass over a
    sample, and stops by raising; what is in ``journal`` is not run again. Numbers are those of the formats on any device
    (simulated); times are those of this one.
    """
    work = _Comparison(editor, reference, samples, journal, on_step)
    plans = {UNQUANTIZED: Plan(UNQUANTIZED, {}), **plans}
    rows = {UNQUANTIZED: work.unquantized(), FLOOR: work.floor()}
    rows |= {name: work.row(name, plan) for name, plan in plans.items() if name != UNQUANTIZED}
    times = journal.value(
        "compare", "pass_times " + " ".join(p.digest() for p in plans.values()), lambda: work.times(plans, seconds)
    )
    return {name: {**row, **times.get(name, {})} for name, row in rows.items()}


class _Comparison:
    def __init__(
        self,
        editor: StreamEditor,
        reference: Reference,
        samples: Sequence[Sample],
        journal: Journal,
        on_step: OnStep,
    ) -> None:
        self.editor, self.reference, self.samples = editor, reference, samples
        self.journal, self.on_step = journal, on_step
        self.model = editor.model
        self.exact = twin(self.model, torch.float32, split=True)
        self._frames: list[Tensor] | None = None

    def row(self, name: str, plan: Plan) -> dict[str, Any]:
        plan = self._with_amax(plan)

        def measure() -> dict[str, Any]:
            self.on_step(name, "passes", 0)
            with trial(self.exact, plan):
                noise = noise_power(self.exact, self.reference)
            copy = twin(self.model, split=True)
            frames = under_plan(self.editor, copy, plan, self.samples, self._telling(name))
            return self._result(unit_bytes(plan, self.model.config), noise.mean, frames)

        found: dict[str, Any] = self.journal.value("compare", plan.digest(), measure)
        return found

    def unquantized(self) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            return self._result(unit_bytes(Plan(UNQUANTIZED, {}), self.model.config), 0.0, self._unquantized_frames())

        found: dict[str, Any] = self.journal.value("compare", UNQUANTIZED, measure)
        return found

    def floor(self) -> dict[str, Any]:
        """The unquantized network in bfloat16, or where that is its dtype with plain operators instead of fused ones."""

        def measure() -> dict[str, Any]:
            copy = twin(self.model, torch.bfloat16, split=True)
            if self.model.dtype == torch.bfloat16:
                copy.use_kernels("eager")
            self.on_step(FLOOR, "passes", 0)
            noise = noise_power(copy, self.reference)
            with running(self.editor, copy):
                frames = outputs(self.editor, self.samples, self._telling(FLOOR))
            return self._result(unit_bytes(Plan(UNQUANTIZED, {}), self.model.config), noise.mean, frames)

        found: dict[str, Any] = self.journal.value("compare", FLOOR, measure)
        return found

    def times(self, plans: Mapping[str, Plan], seconds: float) -> dict[str, Any]:
        self.on_step("all", "times", 0)
        plans = {name: self._with_amax(plan) for name, plan in plans.items()}
        found = pass_times(self.model, plans, self.reference, seconds)
        return {name: {"pass": dataclasses.asdict(time)} for name, time in found.items()}

    def _result(self, num_bytes: int, noise: float, frames: Sequence[Tensor]) -> dict[str, Any]:
        free = compare(self.samples, frames, self._unquantized_frames())
        return {"unit_bytes": num_bytes, "noise_power": noise, "free_run": dataclasses.asdict(free)}

    def _unquantized_frames(self) -> list[Tensor]:
        if self._frames is None:
            self._frames = outputs(self.editor, self.samples, self._telling(UNQUANTIZED))
        return self._frames

    def _telling(self, name: str) -> Callable[[int], None]:
        return lambda number: self.on_step(name, "free run", number)

    def _with_amax(self, plan: Plan) -> Plan:
        """With an input scale for every unit that takes one, of the reference's passes."""
        if not plan.lacking_amax():
            return plan
        found = self.journal.value("calibration", "input_amax", lambda: self.reference.input_amax(self.exact))
        return plan.with_amax(found)
