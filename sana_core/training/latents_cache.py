"""What is encoded or generated once and used again and again, kept in a folder.

Knows numbers, files and tensors; not how they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .clips import shuffled

Kept = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and values that JSON has."""


class KeptTensors:
    """``samples`` things in random order, again and again; each is made when it is first needed.

    Files are safetensors, one per thing, and appear complete or not at all. ``made_by`` tells apart what different settings
    made; a file of others, or one that cannot be read, is made again.
    """

    def __init__(self, folder: Path, samples: int, seed: int, made_by: str, make: Callable[[int], Kept]) -> None:
        self._folder = folder
        self._samples = samples
        self._seed = seed
        self._made_by = made_by
        self._make = make

    def get(self, number: int) -> Kept:
        """A pure function of ``number``: what was written and read again, on the CPU."""
        place = shuffled(self._seed, number, self._samples)
        path = self._folder / f"{place:06}.safetensors"
        if (kept := self._read(path)) is None:
            self._write(path, *self._make(place))
            kept = self._read(path)
        assert kept is not None
        return kept

    def _read(self, path: Path) -> Kept | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["values"])
                if values.pop("made_by") != self._made_by:
                    return None
                names = file.keys()
                return {name: file.get_tensor(name) for name in names}, values
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def _write(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        on_cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
        data = save(on_cpu, {"values": json.dumps({"made_by": self._made_by, **values})})
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


class EncodedPair(NamedTuple):
    """Latents [C, T, h, w] of source and target, and the instructions there and, if there is one, back."""

    source: Tensor
    target: Tensor
    prompt: str
    reverse_prompt: str | None


class LatentsCache:
    """Encoded pairs in a folder, their latents in float16."""

    def __init__(
        self, folder: Path, samples: int, seed: int, made_by: str, encode: Callable[[int], EncodedPair]
    ) -> None:
        self._encode = encode
        self._kept = KeptTensors(folder, samples, seed, made_by, self._make)

    def pair(self, number: int) -> EncodedPair:
        """A pure function of ``number``; latents are float32 on the CPU."""
        tensors, values = self._kept.get(number)
        source, target = (tensors[name].float() for name in ("source", "target"))
        return EncodedPair(source, target, values["prompt"], values["reverse_prompt"])

    def _make(self, number: int) -> Kept:
        pair = self._encode(number)
        tensors = {"source": pair.source.to(torch.float16), "target": pair.target.to(torch.float16)}
        return tensors, {"prompt": pair.prompt, "reverse_prompt": pair.reverse_prompt}
