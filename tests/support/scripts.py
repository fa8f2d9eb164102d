"""Runs scripts of this folder in processes of their own: triton reads TRITON_INTERPRET once, when a kernel is made."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def rows(name: str, **environment: str) -> list[dict[str, Any]]:
    """The JSON objects that a script prints, one a line; one thread."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(name)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def interpreted_rows(name: str) -> dict[str, dict[str, Any]]:
    """:func:`rows` under triton's interpreter, by their names. Skips where the interpreter does not work."""
    by_name = {row["name"]: row for row in rows(name, TRITON_INTERPRET="1")}
    if "trouble" in by_name:
        pytest.skip(f"triton's interpreter does not work here: {by_name['trouble']['reason']}")
    return by_name
