"""Precision plans: which unit takes which format, as a small readable JSON object, and the named presets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import DiTConfig, read_json
from ..errors import InputError
from ..models.attention import AttentionLayout
from .formats import FORMATS
from .units import FUSED_KINDS, KINDS, Unit, units

FILE_FORMAT = "sana-streaming-precision"
FILE_VERSION = 1
# What a unit has that a plan says nothing of.
UNQUANTIZED = "bf16"
# The published policy gives blocks 6 to 19 of 20 a feed-forward part of 4 bit (docs/precision.md).
_PAPER_FIRST_DEEP, _PAPER_DEPTH = 6, 20
_PAPER_4_BIT = ("self.q", "self.k", "cross.o", "ffn.temporal")
_PAPER_4_BIT_DEEP = ("ffn.in", "ffn.out")
_PAPER_UNQUANTIZED = ("self.gate",)


@dataclass(frozen=True)
class Plan:
    """Formats of units.

    formats: unit name -> name in `FORMATS`; units that are not listed keep the network's dtype.
    model: fingerprint of the network that it was measured on; empty for a preset, which fits any.
    input_amax: unit name -> largest absolute value seen in its input, for formats with a stored activation scale.
    device, measurements: where the plan came from, and what was measured there (any JSON object).
    made_up: the units of input_amax whose value is from made-up latents. Its last bits differ between devices, so it is no
        part of what the plan is.
    """

    name: str
    formats: Mapping[str, str]
    model: str = ""
    input_amax: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    measurements: Mapping[str, Any] = field(default_factory=dict)
    made_up: frozenset[str] = frozenset()

    def format_of(self, unit: Unit) -> str:
        return self.formats.get(unit.name, UNQUANTIZED)

    def layout(self, config: DiTConfig) -> AttentionLayout:
        """``fused`` where q, k, v and gate of each block have one format, which is then one matrix product."""
        return "fused" if all(self._uniform(block) for block in range(config.depth)) else "split"

    def _uniform(self, block: int) -> bool:
        return len({self.formats.get(f"blocks.{block}.{kind}", UNQUANTIZED) for kind in FUSED_KINDS}) == 1

    def digest(self) -> str:
        """Short hash of what the plan does, not of where it came from."""
        does = sorted((name, kind) for name, kind in self.formats.items() if kind != UNQUANTIZED)
        amax = sorted((name, value) for name, value in self.input_amax.items() if name not in self.made_up)
        return hashlib.sha256(json.dumps([does, amax]).encode()).hexdigest()[:16]

    def lacking_amax(self) -> list[str]:
        """Units whose format has an input scale, and whose inputs the plan says nothing of."""
        return [name for name, kind in self.formats.items() if FORMATS[kind].unit and name not in self.input_amax]

    def with_amax(self, amax: Mapping[str, float], *, made_up: bool = False) -> Plan:
        """The plan with ``amax`` for the units of :meth:`lacking_amax`, which stay without where it is no positive number.

        Itself where there is none to add. ``made_up``: the values are from made-up latents.
        """
        added = {name: amax[name] for name in self.lacking_amax() if _is_amax(amax.get(name))}
        if not added:
            return self
        marked = self.made_up | added.keys() if made_up else self.made_up
        return dataclasses.replace(self, input_amax=added | dict(self.input_amax), made_up=marked)

    def check(self, config: DiTConfig, *fingerprints: str) -> None:
        """InputError unless the plan is of this network: its units, known formats, and its fingerprint where both say one.

        ``fingerprints``: of the network, and of the same without its LoRAs.
        """
        known = {unit.name for unit in units(config)}
        for names in (self.formats, self.input_amax):
            if astray := [name for name in names if name not in known]:
                raise InputError(
                    f"plan {self.name} names the unit {astray[0]}, which a network of {config.depth} blocks does not have; "
                    f"its units are blocks.0 to blocks.{config.depth - 1} with {', '.join(KINDS)}"
                )
        _check_formats(self.name, self.formats)
        if self.model and fingerprints and all(fingerprints) and self.model not in fingerprints:
            raise InputError(
                f"plan {self.name} was measured on the network {self.model}, not on this one ({fingerprints[0]}); take a "
                "preset, or profile this network"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: formats and amax by kind of unit, then by ranges of blocks with the same value."""
        values = dataclasses.asdict(self)
        values["formats"] = _by_kind(self.formats)
        values["input_amax"] = _by_kind(self.input_amax)
        values["made_up"] = _by_kind(dict.fromkeys(sorted(self.made_up), True))
        return {"format": FILE_FORMAT, "version": FILE_VERSION} | {
            k: v for k, v in values.items() if v or k == "formats"
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | Path = "plan") -> Plan:
        """The inverse of :meth:`to_dict`; InputError that names what is wrong in ``source``."""
        if values.get("format") != FILE_FORMAT:
            raise InputError(
                f"{source} is no precision plan: its format is {values.get('format')!r}, not {FILE_FORMAT!r}"
            )
        if values.get("version") != FILE_VERSION:
            raise InputError(
                f"{source} is a precision plan of version {values.get('version')!r}; this release reads {FILE_VERSION}"
            )
        rest = {key: value for key, value in values.items() if key not in ("format", "version")}
        types = {
            "name": str,
            "formats": dict,
            "model": str,
            "input_amax": dict,
            "device": str,
            "measurements": dict,
            "made_up": dict,
        }
        for key, value in rest.items():
            if key not in types or not isinstance(value, types[key]):
                raise InputError(f"{source} has {key} = {value!r}; a plan has {', '.join(types)}")
        if not {"name", "formats"} <= rest.keys():
            raise InputError(f"{source} is an incomplete precision plan: it needs name and formats")
        rest["formats"] = _by_unit(
            rest["formats"], source, lambda value: isinstance(value, str), "the name of a format"
        )
        rest["input_amax"] = _by_unit(rest.get("input_amax", {}), source, _is_amax, "a positive number")
        rest["made_up"] = frozenset(_by_unit(rest.get("made_up", {}), source, lambda value: value is True, "true"))
        _check_formats(str(source), rest["formats"])
        return cls(**rest)


def read_plan(path: str | Path) -> Plan:
    """The plan in a JSON file; InputError when it is none."""
    return Plan.from_dict(read_json(Path(path)), path)


def preset_names() -> tuple[str, ...]:
    return tuple(PRESETS)


def preset(name: str, config: DiTConfig) -> Plan:
    """A named plan for a network of any depth: bf16, fp8, int8 or paper-mpq."""
    if name not in PRESETS:
        raise InputError(f"no precision preset is called {name}; there are {', '.join(PRESETS)}")
    chosen = ((unit, PRESETS[name](unit, config)) for unit in units(config))
    return Plan(name, {unit.name: kind for unit, kind in chosen if kind != UNQUANTIZED})


def choose_plan(text: str | Path, config: DiTConfig) -> Plan:
    """A preset by its name, else the plan in the JSON file of that name. InputError when it is neither."""
    found = check_choice(text)
    return preset(str(text), config) if found is None else found


def check_choice(text: str | Path) -> Plan | None:
    """The plan in the JSON file of that name, None for the name of a preset. InputError when it is neither."""
    if str(text) in PRESETS:
        return None
    if not Path(text).is_file():
        raise InputError(f"precision {text} is neither a preset ({', '.join(PRESETS)}) nor the file of a plan")
    return read_plan(text)


def _paper(unit: Unit, config: DiTConfig) -> str:
    deep = unit.block >= round(_PAPER_FIRST_DEEP / _PAPER_DEPTH * config.depth)
    if unit.kind in _PAPER_UNQUANTIZED:
        return UNQUANTIZED
    return "nvfp4" if unit.kind in _PAPER_4_BIT or (deep and unit.kind in _PAPER_4_BIT_DEEP) else "fp8"


# Format of a unit in a network. paper-mpq is the published policy, its block ranges scaled by depth.
PRESETS: dict[str, Callable[[Unit, DiTConfig], str]] = {
    "bf16": lambda unit, config: UNQUANTIZED,
    "fp8": lambda unit, config: "fp8",
    "int8": lambda unit, config: "int8",
    "paper-mpq": _paper,
}


def _check_formats(source: str, formats: Mapping[str, str]) -> None:
    for name, kind in formats.items():
        if kind not in FORMATS:
            raise InputError(f"{source} gives {name} the format {kind}; there are {', '.join(FORMATS)}")


def _is_amax(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _by_kind(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"blocks.0.ffn.in": x, "blocks.1.ffn.in": x} as {"ffn.in": {"0-1": x}}."""
    per_kind: dict[str, dict[int, Any]] = {}
    for name, value in values.items():
        _, block, kind = name.split(".", 2)
        per_kind.setdefault(kind, {})[int(block)] = value
    order = {kind: place for place, kind in enumerate(KINDS)}
    kinds = sorted(per_kind, key=lambda kind: order.get(kind, len(order)))
    return {kind: dict(_ranges(sorted(per_kind[kind].items()))) for kind in kinds}


def _ranges(values: Iterable[tuple[int, Any]]) -> Iterable[tuple[str, Any]]:
    runs: list[list[Any]] = []
    for block, value in values:
        if runs and runs[-1][1] == block - 1 and runs[-1][2] == value:
            runs[-1][1] = block
        else:
            runs.append([block, block, value])
    return ((f"{first}-{last}" if first != last else f"{first}", value) for first, last, value in runs)


def _by_unit(values: Mapping[str, Any], source: str | Path, fits: Callable[[Any], bool], wanted: str) -> dict[str, Any]:
    """The inverse of :func:`_by_kind`; ``wanted`` says what fits."""
    found: dict[str, Any] = {}
    for kind, per_range in values.items():
        for text, value in per_range.items() if isinstance(per_range, dict) else [("", None)]:
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
            blocks = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
            names = [f"blocks.{block}.{kind}" for block in blocks]
            if not names or not found.keys().isdisjoint(names):
                raise InputError(
                    f'{source} has {kind}: {per_range!r}; give each block once, as in {{"0-5": VALUE, "6": VALUE}}'
                )
            if not fits(value):
                raise InputError(f"{source} has {value!r} for {kind} in blocks {text}; give {wanted}")
            found |= dict.fromkeys(names, value)
    return found
