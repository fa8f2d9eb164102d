"""Encoded pairs, made afresh for each step or kept in a folder and used again.

Knows numbers, files and latents; not how a pair is encoded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .clips import shuffled


class EncodedPair(NamedTuple):
    """Latents [C, T, h, w] of source and target, and the instructions there and, if there is one, back."""

    source: Tensor
    target: Tensor
    prompt: str
    reverse_prompt: str | None


class LatentsCache:
    """The first ``samples`` pairs in random order, again and again; each is encoded when it is first needed.

    Files are float16 safetensors, one per pair, and appear complete or not at all. ``made_by`` tells apart what different
    settings made; a file of others, or one that cannot be read, is made again.
    """

    def __init__(
        self, folder: Path, samples: int, seed: int, made_by: str, encode: Callable[[int], EncodedPair]
    ) -> None:
        self._folder = folder
        self._samples = samples
        self._seed = seed
        self._made_by = made_by
        self._encode = encode

    def pair(self, number: int) -> EncodedPair:
        """A pure function of ``number``; latents are float32 on the CPU."""
        place = shuffled(self._seed, number, self._samples)
        path = self._folder / f"{place:06}.safetensors"
        if (kept := self._read(path)) is None:
            self._write(path, self._encode(place))
            kept = self._read(path)
        assert kept is not None
        return kept

    def _read(self, path: Path) -> EncodedPair | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["pair"])
                if values["made_by"] != self._made_by:
                    return None
                source, target = (file.get_tensor(name).float() for name in ("source", "target"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return EncodedPair(source, target, values["prompt"], values["reverse_prompt"])

    def _write(self, path: Path, pair: EncodedPair) -> None:
        from safetensors.torch import save

        values = {"made_by": self._made_by, "prompt": pair.prompt, "reverse_prompt": pair.reverse_prompt}
        tensors = {
            name: latents.to("cpu", torch.float16).contiguous()
            for name, latents in (("source", pair.source), ("target", pair.target))
        }
        data = save(tensors, {"pair": json.dumps(values)})
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
