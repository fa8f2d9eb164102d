"""Fused operators as nodes in the graphs of torch.compile, which do not look inside."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

# A package may be loaded twice in one process, under two names, and one may be a path.
_LIBRARY = "sana_" + re.sub(r"\W", "_", __name__, flags=re.ASCII)


def operator(
    name: str, schema: str, run: Callable[..., Any], results_without_values: Callable[..., Any]
) -> Callable[..., Any]:
    """``run`` as an operator of torch without gradients; ``results_without_values`` gives shapes for fake tensors."""
    made = torch.library.custom_op(f"{_LIBRARY}::{name}", run, mutates_args=(), schema=schema)
    made.register_fake(results_without_values)
    return made
