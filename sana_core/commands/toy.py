"""``toy``: write a bundle of random weights."""

from __future__ import annotations

import argparse

from ..config import Variant
from ..errors import InputError


def run(options: argparse.Namespace) -> int:
    from ..streaming.options import MAX_SEED
    from ..weights.toy import make_toy_bundle

    if not 0 <= options.seed <= MAX_SEED:
        raise InputError(f"--seed {options.seed} is out of range; use 0 to {MAX_SEED}")
    variant: Variant = "bidirectional" if options.mode == "bidirectional_short" else "streaming"
    try:
        folder = make_toy_bundle(options.folder, options.seed, variant)
    except OSError as error:
        raise InputError(f"{options.folder}: cannot write a toy bundle there ({error}); name another folder") from error
    how = f"--mode {options.mode} --model {folder}" if variant == "bidirectional" else f"--model {folder}"
    print(f"wrote a toy bundle of random weights to {folder}; use it as {how}")
    return 0
