"""``inspect``: sizes, parameter count and keys of a transformer or a VAE."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..config import DIT_PRESETS


def run(options: argparse.Namespace) -> int:
    from ..weights.checkpoint import shapes
    from ..weights.convert import read_network, weights_file
    from ..weights.dit import official_shapes
    from ..weights.locate import model_path

    if options.model in DIT_PRESETS:
        preset = DIT_PRESETS[options.model]
        config: Mapping[str, Any] = preset.to_dict()
        keys: Mapping[str, tuple[int, ...]] = official_shapes(preset)
    else:
        state, config, _ = read_network(weights_file(model_path(options.model), first=True), options.decoder)
        keys = shapes(state)
    described = describe(config, keys)
    try:
        print(json.dumps(described, indent=2) if options.json else as_text(described), flush=True)
    except BrokenPipeError:
        # The reader, say ``head``, has what it wanted. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


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
    """What :func:`describe` gives, for people."""
    wide = max(18, *map(len, described["config"]))
    rows = [f"{name:{wide}} {value}" for name, value in described["config"].items()]
    rows += [f"{name:{wide}} {described[name]:,}" for name in ("parameters", "buffers")]
    rows.append(f"{'keys':{wide}} {len(described['keys'])}")
    width = max(map(len, described["keys"]))
    rows += [f"  {key:{width}}  {shape}" for key, shape in described["keys"].items()]
    return "\n".join(rows)
