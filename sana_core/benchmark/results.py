"""The results of one device in one JSON file, brought up to date after every row.

A file belongs to one device, one version of torch and triton, and one seed; what was measured elsewhere is not written into it.
"""

from __future__ import annotations

import json
import platform
import re
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .sizes import Bench

FORMAT = 1
HEADER: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "device": str,
    "torch": str,
    "triton": (str, type(None)),
    "python": str,
    "dtype": str,
    "seed": int,
    "date": str,
    "rows": dict,
}
# What must be equal for rows to stand in one file.
IDENTITY = ("format", "device", "torch", "triton", "dtype", "seed")
RECORD: dict[str, type | tuple[type, ...]] = {
    "row": str,
    "size": str,
    "group": str,
    "what": str,
    "formula": str,
    "date": str,
    "frames": int,
    "bytes": int,
    "flops": int,
    "steps": list,
    "floor_ms": float,
    "bound": str,
    "ceilings": dict,
    "timings": dict,
    "skipped": dict,
}
TIMING: dict[str, type | tuple[type, ...]] = {
    "median_ms": float,
    "iqr_ms": float,
    "repeats": int,
    "of_floor": float,
    "baseline": bool,
    "speedup": dict,
    "details": dict,
}


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with its architecture and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU {_processor()}{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """The processor's own name and a space, as Linux gives it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return f"{found[1].strip()} " if found else ""


def device_slug(device: torch.device) -> str:
    """Name of the folder of a device's results; one for all CPUs."""
    return "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def header(device: torch.device) -> dict[str, str]:
    """Device, versions and date, as every benchmark's result begins."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": today(),
    }


def today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def triton_version() -> str | None:
    """None where triton is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


class Results:
    """Rows by ``name@size``, in memory and, where there is a path, in the file after each :meth:`add`."""

    def __init__(self, values: dict[str, Any], path: Path | None) -> None:
        self.values, self.path = values, path

    @classmethod
    def open(cls, bench: Bench, path: Path | None, replace: bool = False) -> Results:
        """Those of the file, to be gone on with, or none yet. InputError for a file of another device or version."""
        fresh: dict[str, Any] = {
            "format": FORMAT,
            **header(bench.device),
            "triton": triton_version(),
            "dtype": str(bench.dtype).removeprefix("torch."),
            "seed": bench.seed,
            "rows": {},
        }
        if path is None or replace or not path.exists():
            return cls(fresh, path)
        kept = read_results(path)
        for key in IDENTITY:
            if kept[key] != fresh[key]:
                raise InputError(
                    f"{path} holds rows of {key} {kept[key]}, this run is of {key} {fresh[key]}; "
                    "name another file, or give --replace to start it anew"
                )
        return cls({**fresh, "rows": kept["rows"]}, path)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = self.values["rows"]
        return rows

    def add(self, *records: dict[str, Any]) -> None:
        """Keeps rows, in place of earlier ones of their name and size. The file is never half written."""
        self.rows.update({f"{record['row']}@{record['size']}": record for record in records})
        if self.path is not None:
            partial = self.path.with_name(self.path.name + ".part")
            partial.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8", newline="\n")
            partial.replace(self.path)


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file. InputError for one that cannot be read, or is not of this kind."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as results of a benchmark ({error}); name another file") from error
    check_results(values, str(path))
    return values


def check_results(values: Any, name: str) -> None:
    """InputError, with what is wrong, unless ``values`` are results of a benchmark; ``name`` says whose."""
    _check_fields(values, HEADER, name)
    if values["format"] != FORMAT:
        raise InputError(f"{name}: format is {values['format']}, known is {FORMAT}; measure it anew")
    for key, record in values["rows"].items():
        _check_fields(record, RECORD, f"{name}: row {key}")
        if key != f"{record['row']}@{record['size']}":
            raise InputError(f"{name}: row {key} says it is {record['row']}@{record['size']}; measure it anew")
        for variant, timing in record["timings"].items():
            _check_fields(timing, TIMING, f"{name}: row {key}, {variant}")


def _check_fields(values: Any, fields: dict[str, type | tuple[type, ...]], name: str) -> None:
    if not isinstance(values, dict) or values.keys() != fields.keys():
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{name} has {found}, results have {sorted(fields)}; measure it anew")
    for key, kind in fields.items():
        if not isinstance(values[key], kind):
            raise InputError(f"{name}: {key} is {values[key]!r}, of the wrong type; measure it anew")
