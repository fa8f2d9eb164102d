"""``toy``: write a bundle of random weights."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    from ..weights.toy import make_toy_bundle

    folder = make_toy_bundle(options.folder, options.seed)
    print(f"wrote a toy bundle of random weights to {folder}; use it as --model {folder}")
    return 0
