"""``toy``: write a bundle of random weights."""

from __future__ import annotations

import argparse

from ..errors import InputError


def run(options: argparse.Namespace) -> int:
    from safetensors import SafetensorError

    from ..streaming.options import MAX_SEED
    from ..weights.toy import make_toy_bundle

    if not 0 <= options.seed <= MAX_SEED:
        raise InputError(f"--seed {options.seed} is out of range; use 0 to {MAX_SEED}")
    try:
        folder = make_toy_bundle(options.folder, options.seed)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{options.folder}: cannot write a toy bundle there ({error}); name another folder") from error
    print(f"wrote a toy bundle of random weights to {folder}; use it as --model {folder}")
    return 0
