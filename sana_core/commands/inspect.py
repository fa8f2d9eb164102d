"""``inspect``: sizes, parameter count and keys of a transformer or a VAE; settings and counters of a saved stream."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import DIT_PRESETS
from ..errors import InputError

if TYPE_CHECKING:
    from ..weights.vae import DecoderChoice

_COUNTED = ("parameters", "buffers", "bytes")


def run(options: argparse.Namespace) -> int:
    described = describe_named(options.model, options.decoder)
    try:
        print(json.dumps(described, indent=2) if options.json else as_text(described), flush=True)
    except BrokenPipeError:
        # The reader, say ``head``, has what it wanted. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def describe_named(name: str, decoder: DecoderChoice) -> dict[str, Any]:
    """What there is to say of a preset, of weights, or of a saved stream. InputError where ``name`` is none of them."""
    from ..weights import nano
    from ..weights.checkpoint import shapes
    from ..weights.convert import read_network, weights_file
    from ..weights.dit import official_shapes
    from ..weights.locate import model_path

    if name in DIT_PRESETS:
        preset = DIT_PRESETS[name]
        return describe(preset.to_dict(), official_shapes(preset))
    path = model_path(name)
    if not path.exists():
        known = ", ".join((nano.NAME, *DIT_PRESETS))
        raise InputError(
            f"{name} does not exist; give {known}, or the path of a transformer, a VAE or a saved stream, or hf://..."
        )
    if name == nano.NAME:
        nano.check_manifest()
    if is_stream_state(path):
        return describe_state(path)
    state, config, _ = read_network(weights_file(path, first=True), decoder)
    return describe(config, shapes(state))


def is_stream_state(path: Path) -> bool:
    """Whether ``path`` is a file that ``--save-state`` wrote."""
    from safetensors import SafetensorError, safe_open

    from ..streaming.state import FORMAT

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return FORMAT in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def describe_state(path: Path) -> dict[str, Any]:
    """Settings of a stream, how far it is, and the shape of every tensor that it carries."""
    from ..streaming.state import StreamState

    state = StreamState.load(path)
    settings = state.settings.to_dict()
    options = settings.pop("options") or {}
    return {
        "stream": {**settings, **options},
        "prompt": state.prompt,
        "negative_prompt": state.negative_prompt,
        "prompts_to_come": [list(entry) for entry in state.schedule[state.schedule_place :]],
        "frames_in": state.frames_in,
        "frames_out": state.frames_out,
        "frames_waiting": state.num_waiting,
        "chunks": state.dit.num_chunks if state.dit else 0,
        "finished": state.finished,
        "bytes": state.nbytes,
        "keys": {key: list(value.shape) for key, value in state.tensors().items()},
    }


def describe(config: Mapping[str, Any], keys: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Config, numbers in trained parameters and in the release's unused buffers, and the shape of every key."""
    from ..weights.dit import DEAD_KEYS

    sizes = {key: math.prod(shape) for key, shape in keys.items()}
    buffers = sum(size for key, size in sizes.items() if key in DEAD_KEYS)
    return {
        "config": dict(config),
        "parameters": sum(sizes.values()) - buffers,
        "buffers": buffers,
        "keys": {key: list(shape) for key, shape in keys.items()},
    }


def as_text(described: Mapping[str, Any]) -> str:
    """What is described, for people: single values, then keys and their shapes."""
    described = dict(described)
    keys = described.pop("keys")
    named = {**described.pop("config", {}), **described.pop("stream", {}), **described, "keys": len(keys)}
    wide = max(18, *map(len, named))
    rows = [f"{name:{wide}} {format(value, ',') if name in _COUNTED else value}" for name, value in named.items()]
    width = max(map(len, keys), default=0)
    return "\n".join([*rows, *(f"  {key:{width}}  {shape}" for key, shape in keys.items())])
