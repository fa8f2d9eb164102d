"""Measuring a network for a precision plan: latencies, errors, the front of the best plans, and choosing one of them.

Every number goes into a journal as soon as it is there, so a profile that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from ..benchmark.results import device_name, today
from ..config import DiTConfig
from ..errors import InputError
from ..models.dit import SanaStreamingDiT
from ..streaming.options import StreamOptions
from .apply import require_unquantized, trial, twin
from .formats import FORMATS, kitchen_version
from .journal import Journal
from .latency import (
    TARGETS,
    Latency,
    LatencyTable,
    measure_entry,
    measured_source,
    needed,
    plan_latency,
    projected,
    trained_tokens,
)
from .plan import UNQUANTIZED, Plan, preset, preset_names
from .reference import PLACES, CalibrationClip, Reference, clips_digest, noise_power, record
from .report import unit_bytes
from .solve import Problem, Selection, budgets, front, least_error, least_latency, plan_error, problems
from .units import units

Source = Literal["measured", "projected"]
Sizes = Literal["own", "2b"]
QUANTIZED = tuple(name for name in FORMATS if name != UNQUANTIZED)
FRONT_POINTS = 24
# Of a chosen plan, unless told otherwise: no more summed error than this format in all units.
DEFAULT_BAR = "fp8"
AUTO = "auto"


class Progress(NamedTuple):
    """About to do number ``done`` (from 0) of ``total`` in a stage: ``record``, ``latency``, ``error`` or ``check``."""

    stage: str
    done: int
    total: int
    what: str


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class ProfileSettings:
    """What is profiled.

    Attributes:
        formats: that a unit may take, beside staying as it is.
        latency: ``measured`` on the network's device, or ``projected`` from the data sheet of ``target``.
        sizes: latencies at the network's ``own`` sizes, or with each block as one of the 2B network (``2b``): a small
            network's matrices are too small for any format to pay.
        seconds: for each part of a measured latency.
        tokens: M of the latencies, what a chunk has; None: at the size that the network of ``sizes`` is for. Plans for other
            sizes of frames differ, since small products wait for their weights.
    """

    formats: tuple[str, ...] = QUANTIZED
    latency: Source = "measured"
    target: str = "rtx5090"
    sizes: Sizes = "own"
    seconds: float = 0.2
    tokens: int | None = None

    def __post_init__(self) -> None:
        if unknown := [name for name in self.formats if name not in QUANTIZED]:
            raise InputError(f"no format is called {unknown[0]}; there are {', '.join(QUANTIZED)}")
        if not self.formats:
            raise InputError(f"there is no format to choose from; give some of {', '.join(QUANTIZED)}")
        if self.latency not in get_args(Source) or self.sizes not in get_args(Sizes):
            raise InputError(
                f"latency {self.latency} at sizes {self.sizes} is unknown; use {' or '.join(get_args(Source))} at "
                f"{' or '.join(get_args(Sizes))}"
            )
        if self.latency == "projected" and self.target not in TARGETS:
            raise InputError(f"no latencies can be projected for {self.target}; targets are {', '.join(TARGETS)}")

    def network(self, config: DiTConfig) -> DiTConfig:
        """The sizes that latencies are of: as many blocks as ``config`` has."""
        if self.sizes == "own":
            return config
        return replace(DiTConfig(), depth=config.depth, softmax_layers=config.softmax_layers)

    def sizes_of(self, config: DiTConfig) -> Sizes:
        """Whose matrices latencies of a network of ``config`` are of: ``own`` also where it has the sizes of the 2B network."""
        return "own" if self.network(config) == config else "2b"

    def tokens_of(self, config: DiTConfig) -> int:
        """M of the latencies of a profile of a network of ``config``."""
        return self.tokens or trained_tokens(self.network(config))


@dataclass(frozen=True)
class Point:
    """A plan as the solver sees it, and what came of it when it was run from the reference's inputs.

    latency: milliseconds per pass of all units. error: summed noise power. noise: measured noise power, None if it was not
    run. num_bytes: of the units' weights.
    """

    name: str
    formats: Mapping[str, str]
    latency: float
    error: float
    num_bytes: int
    noise: float | None = None

    @property
    def sqnr(self) -> float | None:
        """Measured signal to quantization noise of the velocity in dB."""
        return None if self.noise is None else decibels(self.noise)


@dataclass(frozen=True)
class Profile:
    """All that choosing needs: the network, what was measured of it, and where."""

    config: DiTConfig
    fingerprint: str
    device: str
    clips: int
    settings: ProfileSettings
    table: LatencyTable
    errors: Mapping[str, Mapping[str, float]]
    amax: Mapping[str, float]

    def problems(self) -> list[Problem]:
        return problems(self.settings.network(self.config), self.table, self.errors)

    def point(self, plan: Plan, noise: float | None = None) -> Point:
        """Of any plan whose formats were profiled; InputError for others."""
        latency = plan_latency(plan, self.settings.network(self.config), self.table)
        error = plan_error(plan.formats, self.errors)
        return Point(plan.name, plan.formats, latency, error, unit_bytes(plan, self.config), noise)

    def presets(self) -> list[Point]:
        """Of the named plans whose formats were profiled."""
        found = []
        for name in preset_names():
            plan = preset(name, self.config)
            if {*plan.formats.values()} <= {*self.settings.formats, UNQUANTIZED}:
                found.append(self.point(plan))
        return found

    def uniform(self) -> list[Point]:
        """Of every profiled format in all units."""
        return [self.point(uniform_plan(name, self.config)) for name in self.settings.formats]

    def front(self, count: int = FRONT_POINTS, also: Sequence[Point] = ()) -> list[Point]:
        """The best plans from the fastest to the unquantized one, ``count`` and those as fast as the presets, the uniform
        plans and ``also``: none of these beats the front."""
        marks = [point.latency for point in (*self.presets(), *self.uniform(), *also)]
        found = self.problems()
        return [self._of(selection) for selection in front(found, budgets(found, count, marks))]

    def choose(self, *, max_latency: float | None = None, max_error: float | None = None) -> Point:
        """The plan of least error within a share of the unquantized latency, or the fastest within a summed noise power.

        Without either: the fastest that errs no more than :attr:`bar` in all units. InputError for two budgets, and for one
        that no plan fits.
        """
        if max_latency is not None and max_error is not None:
            raise InputError("give a latency budget or an error budget, not both")
        found = self.problems()
        if max_latency is not None:
            full = plan_latency(Plan(UNQUANTIZED, {}), self.settings.network(self.config), self.table)
            selection = least_error(found, max_latency * full)
            fastest = least_latency(found, math.inf)
            if selection is None:
                assert fastest is not None
                raise InputError(
                    f"no plan takes {max_latency:g} of the unquantized latency; the fastest takes {fastest.latency / full:.3f}"
                )
            return self._of(selection)
        if max_error is None:
            max_error = plan_error(uniform_plan(self.bar, self.config).formats, self.errors)
        selection = least_latency(found, max_error)
        if selection is None:
            raise InputError(f"no plan errs by {max_error:g} or less; use 0 or more")
        return self._of(selection)

    @property
    def bar(self) -> str:
        """The format whose errors are the budget where none is given: fp8, or the first one where fp8 was not profiled."""
        return DEFAULT_BAR if DEFAULT_BAR in self.settings.formats else self.settings.formats[0]

    def _of(self, selection: Selection) -> Point:
        return self.point(Plan(AUTO, selection.formats))

    def plan(self, point: Point, name: str = AUTO) -> Plan:
        """The plan to apply or keep in a file, with input scales and what was measured."""
        measured = {
            "latency_ms": point.latency,
            "unquantized_latency_ms": self.point(Plan(UNQUANTIZED, {})).latency,
            "latency": {**self.table.source, "tokens": self.table.tokens},
            "summed_noise_power": point.error,
            "teacher_forced_sqnr_db": point.sqnr,
            "calibration_clips": self.clips,
        }
        plan = Plan(name, point.formats, self.fingerprint, device=self.device, measurements=measured)
        return plan.with_amax(self.amax)


def decibels(noise: float) -> float:
    """Signal to noise in dB of a relative noise power, at most 200."""
    return min(200.0, -10 * math.log10(max(noise, 1e-20)))


def power(sqnr: float) -> float:
    """The inverse of :func:`decibels`."""
    return float(10 ** (-sqnr / 10))


def uniform_plan(kind: str, config: DiTConfig) -> Plan:
    """Every unit in one format."""
    return Plan(kind, {} if kind == UNQUANTIZED else {unit.name: kind for unit in units(config)})


class Profiler:
    """One network on its clips: measures what the journal lacks.

    ``model`` is not changed; it must not be quantized. Errors are measured in float32, where no rounding but that of the
    formats counts, latencies in the dtype of ``model``. ``places`` are the chunks of each clip to look at. ``tf32`` is for
    networks whose errors do not matter (see :func:`.reference.float32_products`). ``on_progress`` is called before every
    measurement, and stops the profile by raising.
    """

    def __init__(
        self,
        model: SanaStreamingDiT,
        clips: Sequence[CalibrationClip],
        settings: ProfileSettings | None = None,
        *,
        journal: Path | None = None,
        options: StreamOptions | None = None,
        places: Sequence[str] = PLACES,
        tf32: bool = False,
        on_progress: OnProgress = lambda progress: None,
    ) -> None:
        require_unquantized(model)
        if not clips:
            raise InputError("there is no calibration clip; give one or more")
        self.model, self.clips, self.dtype = twin(model, torch.float32, split=True), clips, model.dtype
        self.places, self.tf32 = tuple(places), tf32
        self.settings, self.options = settings or ProfileSettings(), options or StreamOptions()
        self.device = next(model.parameters()).device
        self.on_progress = on_progress
        self.journal = Journal.open(journal, self._identity())
        self._reference: Reference | None = None

    def _identity(self) -> dict[str, Any]:
        """What all errors of a journal have in common; they depend on neither the device nor the latencies."""
        return {
            "model": self.model.fingerprint,
            "config": self.model.config.to_dict(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "clips": clips_digest(self.clips),
            "clip_count": len(self.clips),
            "options": self.options.to_dict(),
            "places": list(self.places),
            "tf32": self.tf32,
            "comfy_kitchen": kitchen_version(),
        }

    def run(self) -> Profile:
        """Everything that is lacking, then the profile."""
        table = self._table()
        amax = self._known_amax()
        errors: dict[str, dict[str, float]] = {}
        pairs = [(unit, kind) for unit in units(self.model.config) for kind in self.settings.formats]
        for number, (unit, kind) in enumerate(pairs):
            plan = Plan("trial", {unit.name: kind}, input_amax=amax)
            name = f"{unit.name}/{kind}"
            found = self._step("error", number, len(pairs), name, lambda plan=plan: self._noise(plan))  # type: ignore[misc]
            errors.setdefault(unit.name, {})[kind] = found["mean"]
        return Profile(
            self.model.config,
            self.model.fingerprint,
            device_name(self.device),
            len(self.clips),
            self.settings,
            table,
            errors,
            amax,
        )

    def check(self, profile: Profile, points: Sequence[Point]) -> list[Point]:
        """The points with the noise that their plans make together: what the sum of errors only predicts."""
        checked = []
        for number, point in enumerate(points):
            plan = Plan(point.name, point.formats, input_amax=profile.amax)
            found = self._step("check", number, len(points), plan.digest(), lambda plan=plan: self._noise(plan))  # type: ignore[misc]
            checked.append(replace(point, noise=found["mean"]))
        return checked

    def floor(self) -> float:
        """Noise power of the unquantized network in bfloat16, which no plan has to stay below."""

        def measure() -> dict[str, Any]:
            return asdict(noise_power(twin(self.model, torch.bfloat16, split=True), self.reference()))

        found: float = self._step("check", 0, 1, "bfloat16", measure)["mean"]
        return found

    def _step(self, stage: str, number: int, total: int, name: str, measure: Callable[[], Any]) -> Any:
        self.on_progress(Progress(stage, number, total, name))
        return self.journal.value(stage, name, measure)

    def _noise(self, plan: Plan) -> dict[str, Any]:
        reference = self.reference()
        with trial(self.model, plan):
            return asdict(noise_power(self.model, reference))

    def reference(self) -> Reference:
        """The unquantized passes, recorded when first needed."""
        if self._reference is None:
            total = len(self.clips)

            def tell(clip: int, chunk: int) -> None:
                self.on_progress(Progress("record", clip, total, f"{self.clips[clip].name}, chunk {chunk}"))

            self._reference = record(self.model, self.clips, self.options, tell, self.places, self.tf32)
        return self._reference

    def _known_amax(self) -> dict[str, float]:
        found: dict[str, float] = self.journal.value(
            "calibration", "input_amax", lambda: self.reference().input_amax(self.model)
        )
        return found

    def _table(self) -> LatencyTable:
        config, settings = self.settings.network(self.model.config), self.settings
        tokens, sizes = settings.tokens_of(self.model.config), settings.sizes_of(self.model.config)
        if settings.latency == "projected":
            table = projected(config, tokens, settings.formats, settings.target)
            return replace(table, source={**table.source, "sizes": sizes})
        source = measured_source(self.device, self.dtype)
        # Latencies of another device, or made with other software, go into a section of their own.
        made_with = [source[name] for name in ("device", "torch", "comfy_kitchen", "dtype")]
        section = " / ".join(["latency", *made_with, f"{settings.seconds:g} s"])
        names = needed(config, tokens, settings.formats)
        found = {}
        for number, name in enumerate(names):
            self.on_progress(Progress("latency", number, len(names), name))
            found[name] = self.journal.value(section, name, lambda name=name: self._latency(name))  # type: ignore[misc]
        entries = {name: Latency(**entry["times"]) for name, entry in found.items()}
        dates = sorted(entry["date"] for entry in found.values())
        source["date"] = " to ".join(dict.fromkeys((dates[0], dates[-1])))
        return LatencyTable(tokens, config.max_text_tokens, entries, {**source, "sizes": sizes})

    def _latency(self, name: str) -> dict[str, Any]:
        times = asdict(measure_entry(name, self.device, self.dtype, self.settings.seconds))
        return {"date": today(), "times": times}
