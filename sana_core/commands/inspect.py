"""``inspect``: sizes, parameter count and keys of a transformer."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from ..config import DIT_PRESETS, DiTConfig


def run(options: argparse.Namespace) -> int:
    from ..weights.checkpoint import shapes
    from ..weights.dit import official_shapes, read_dit

    if options.model in DIT_PRESETS:
        config = DIT_PRESETS[options.model]
        keys: Mapping[str, tuple[int, ...]] = official_shapes(config)
    else:
        state, config = read_dit(options.model)
        keys = shapes(state)
    described = describe(config, keys)
    if options.json:
        print(json.dumps(described, indent=2))
        return 0
    for name, value in described["config"].items():
        print(f"{name:18} {value}")
    print(f"{'parameters':18} {described['parameters']:,}")
    print(f"{'buffers':18} {described['buffers']:,}")
    print(f"{'keys':18} {len(keys)}")
    width = max(map(len, keys))
    for key, shape in described["keys"].items():
        print(f"  {key:{width}}  {shape}")
    return 0


def describe(config: DiTConfig, keys: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Config, numbers in trained parameters and in the release's unused buffers, and the shape of every key."""
    from ..weights.dit import DEAD_KEYS

    sizes = {key: math.prod(shape) for key, shape in keys.items()}
    buffers = sum(size for key, size in sizes.items() if key in DEAD_KEYS)
    return {
        "config": config.to_dict(),
        "parameters": sum(sizes.values()) - buffers,
        "buffers": buffers,
        "keys": {key: list(shape) for key, shape in keys.items()},
    }
