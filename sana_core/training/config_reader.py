"""A YAML file as a frozen dataclass, strictly: every key is known, every value has its type and lies in its range.

Knows files, types and ranges; what the settings mean is in ``config.py``. Whatever is wrong is one InputError that names
file, key, value and what is accepted.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import InputError

Settings = TypeVar("Settings")

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Limits:
    """Range of a number, both ends included; put into a field's metadata by :func:`limited`."""

    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f" from {self.least:g} to {self.most:g}" if self.most < math.inf else f", {self.least:g} or more"


def limited(least: float, most: float = math.inf, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose number must lie in ``least`` to ``most``; required without a default."""
    return dataclasses.field(default=default, metadata={"limits": Limits(least, most)})


def named(names: Mapping[str, Callable[[], Path]]) -> dict[str, Any]:
    """Metadata of a dataclass field for which ``names`` of paths may stand."""
    return {"names": names}


def read_settings(path: str | Path, kind: type[Settings]) -> Settings:
    """The settings in a YAML file. Paths in it are relative to its folder. Raises InputError.

    ``kind`` is a dataclass of scalars, paths, Literals, optional values, tuples and dataclasses. Where a nested dataclass
    has ``short``, the name of a field, a bare scalar stands for that field.
    """
    path = Path(path)
    values = _load(path)
    return _Reader(path).settings(values, kind, "")


def _load(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML would drop one without a word."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise InputError(f"{path}: key {key} is there {keys.count(key)} times; keep one of them")
            return super().construct_mapping(node, deep)

    if not path.is_file():
        raise InputError(f"{path} is not there or not a file; give a training config in YAML")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it there") from error


@dataclass(frozen=True)
class _Reader:
    file: Path

    def settings(self, values: Any, kind: type[Settings], place: str) -> Settings:
        """A dataclass from a mapping; ``place`` is the key of the mapping in the file, empty at the top."""
        short = getattr(kind, "short", None)
        if short and not isinstance(values, Mapping):
            values = {short: values}
        if not isinstance(values, Mapping):
            raise self._refusal(place or "the file", values, "a list of keys with their values")
        fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        for key in values:
            if key not in fields:
                raise InputError(f"{self.file}: unknown key {_at(place, key)}; known are {', '.join(fields)}")
        hints = get_type_hints(kind)
        read: dict[str, Any] = {}
        for name, field in fields.items():
            key = _at(place, name)
            names = field.metadata.get("names", {})
            if name in values and isinstance(values[name], str) and values[name] in names:
                read[name] = names[values[name]]()
            elif name in values:
                read[name] = self.value(values[name], hints[name], key, field.metadata.get("limits"))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise InputError(f"{self.file}: {key} is missing; add it")
        try:
            return kind(**read)
        except InputError as error:
            raise InputError(f"{self.file}: {f'{place}: ' if place else ''}{error}") from error

    def value(self, value: Any, hint: Any, key: str, limits: Limits | None) -> Any:
        """``value`` as the type ``hint``."""
        origin, choices = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            inner = next(choice for choice in choices if choice is not type(None))
            return None if value is None else self.value(value, inner, key, limits)
        if origin is Literal:
            if value not in choices:
                raise self._refusal(key, value, f"one of {', '.join(map(str, choices))}")
            return value
        if origin is tuple:
            return self._tuple(value, choices, key, limits)
        if dataclasses.is_dataclass(hint):
            return self.settings(value, hint, key)  # type: ignore[arg-type]
        if origin in (dict, Mapping):
            if not isinstance(value, Mapping):
                raise self._refusal(key, value, "a list of keys with their values")
            return dict(value)
        return self._scalar(value, hint, key, limits)

    def _tuple(self, value: Any, kinds: tuple[Any, ...], key: str, limits: Limits | None) -> tuple[Any, ...]:
        if kinds[-1] is Ellipsis:
            items = value if isinstance(value, list) else [value]
            return tuple(self.value(item, kinds[0], key, limits) for item in items)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise self._refusal(key, value, f"a list of {len(kinds)}")
        return tuple(self.value(item, kind, key, limits) for item, kind in zip(value, kinds, strict=True))

    def _scalar(self, value: Any, kind: type[Any], key: str, limits: Limits | None) -> Any:
        accepted = f"{_NAMES[kind]}{limits or ''}"
        if kind is float:
            value = _number(value)
        fits = type(value) in ((str,) if kind is Path else (kind,)) and value != ""
        if not fits or (limits and value not in limits):
            raise self._refusal(key, value, accepted)
        return self.file.parent / Path(value).expanduser() if kind is Path else value

    def _refusal(self, key: str, value: Any, accepted: str) -> InputError:
        return InputError(f"{self.file}: {key} is {value!r}; it must be {accepted}")


def _number(value: Any) -> Any:
    """A float for a finite number, also one like ``1e-4``, which YAML takes for text; anything else as it is."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return value
        return number if math.isfinite(number) else value
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _at(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)
