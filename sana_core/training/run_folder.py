"""The folder of a training run: its checkpoint, the one before that, and the losses of every step.

Knows files and what makes a run the same run. Knows no network and no optimizer: a checkpoint is named tensors and a step.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, InputError
from ..weights.safetensors_file import write_safetensors

CHECKPOINT_FILE = "checkpoint.safetensors"
PREVIOUS_FILE = "checkpoint.previous.safetensors"
# A checkpoint while it is written; no reader looks for it.
UNFINISHED_FILE = "checkpoint.unfinished"
LOSSES_FILE = "losses.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps: tensors on the CPU, and where they were read."""

    path: Path
    step: int
    identity: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class RunFolder:
    """Reads and writes the files of one run; the folder is made if it is not there, InputError where it cannot be.

    identity: what must be equal for a run to go on, as JSON. log: takes a line about what is done.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], log: Callable[[str], None]) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made a folder ({error.strerror}); choose another one") from error
        self.path = path
        self._checkpoint, self._previous = path / CHECKPOINT_FILE, path / PREVIOUS_FILE
        self._losses = path / LOSSES_FILE
        # As JSON gives it back: tuples are lists there.
        self._identity = json.loads(json.dumps(dict(identity)))
        self._log = log
        self._newest_is_whole = True

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there is none of any kind.

        CheckpointError when none can be read; InputError when it is of a run of another identity.
        """
        if not self._checkpoint.exists() and not self._previous.exists():
            return None
        try:
            found = _read(self._checkpoint)
        except CheckpointError as error:
            self._newest_is_whole = False
            found = self._load_previous(error)
            self._log(f"warning: {error}; going on from {self._previous.name}, made after {found.step} steps")
        differing = _differences(found.identity, self._identity)
        if differing:
            raise InputError(
                f"{self.path} holds a run of other settings: {'; '.join(differing)}; "
                f"use another folder, or delete {CHECKPOINT_FILE} and {PREVIOUS_FILE} there to start anew"
            )
        return found

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes the checkpoint after ``step`` steps; the one that was there becomes the previous one.

        Killed at any moment, the folder holds a whole checkpoint if it held one. OSError of one line when it cannot be
        written, with both files as they were.
        """
        identity = json.dumps(self._identity)
        metadata = {"step": str(step), "identity": identity, "crc32": _checksum(step, identity, tensors)}
        unfinished = self.path / UNFINISHED_FILE
        try:
            with unfinished.open("wb") as file:
                write_safetensors(file, tensors, metadata)
                file.flush()
                os.fsync(file.fileno())
            # A damaged file must not take the place of the whole one that the run went on from.
            if self._newest_is_whole and self._checkpoint.exists():
                self._checkpoint.replace(self._previous)
            unfinished.replace(self._checkpoint)
        except OSError as error:
            raise _failed(self._checkpoint, error) from error
        finally:
            unfinished.unlink(missing_ok=True)
        self._newest_is_whole = True

    def append_losses(self, record: Mapping[str, Any]) -> None:
        """Adds the line of one step. OSError of one line when it cannot be written."""
        try:
            with self._losses.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise _failed(self._losses, error) from error

    def cut_losses(self, step: int) -> None:
        """Drops the lines of ``step`` and later steps, which will be run again, and a line that a kill cut short."""
        if not self._losses.exists():
            return
        kept = 0
        with self._losses.open("r+b") as file:
            for line in file:
                if not _is_before(line, step):
                    break
                kept += len(line)
            file.truncate(kept)

    def _load_previous(self, newest: CheckpointError) -> Checkpoint:
        try:
            return _read(self._previous)
        except CheckpointError as error:
            raise CheckpointError(f"{newest}, and {error}; delete what is there of both to start anew") from error


def _read(path: Path) -> Checkpoint:
    """A whole checkpoint, its tensors copied out of the file. CheckpointError, without a remedy, for anything else."""
    from ..weights.checkpoint import read_safetensors

    if not path.exists():
        raise CheckpointError(f"{path} is not there")
    try:
        mapped, metadata = read_safetensors(path)
        # A mapped file could not be replaced on Windows.
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        step, identity = int(metadata["step"]), metadata["identity"]
        if metadata["crc32"] != _checksum(step, identity, tensors):
            raise CheckpointError("its checksum does not match")
        return Checkpoint(path, step, json.loads(identity), tensors)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or not a training checkpoint") from error


def _checksum(step: int, identity: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of everything in a checkpoint: safetensors notices a file cut short, but not bytes that changed."""
    checksum = zlib.crc32(f"{step} {identity}".encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(name.encode(), checksum)
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _failed(path: Path, error: OSError) -> OSError:
    """The same error, of one line that says what is left."""
    reason = error.strerror or str(error)
    return OSError(
        error.errno or errno.EIO,
        f"cannot write {path} ({reason}); checkpoints already made are intact: make room, and start the run again",
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """``key is A there, B here`` for each key that differs; keys of nested mappings are joined by dots."""
    old, new = _flat(there), _flat(here)
    return [
        f"{key} is {_shown(old, key)} there, {_shown(new, key)} here"
        for key in {**old, **new}
        if _shown(old, key) != _shown(new, key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "missing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _is_before(line: bytes, step: int) -> bool:
    """Whether this is the whole line of a step before ``step``."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        return False
