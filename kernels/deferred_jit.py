"""Triton kernels in modules that import without triton."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


class DeferredJit:
    """Decorator for the kernels of one module: plain functions until :meth:`load`, triton's from then on.

    Kernels refer to ``triton.language`` as ``tl`` and to each other by name, both looked up in ``scope``, the module's globals.
    Arguments called as in ``sizes`` are plain integers: kernels are not compiled anew for 1 or for multiples of 16.
    """

    def __init__(self, scope: dict[str, Any], sizes: tuple[str, ...] = ()) -> None:
        self._scope = scope
        self._sizes = sizes
        self._pending: list[Callable[..., Any]] = []

    def __call__(self, function: Callable[..., Any]) -> Any:
        self._pending.append(function)
        return function

    def load(self) -> None:
        """Imports triton and turns the functions into kernels, once. ImportError where triton is not to be had."""
        if not self._pending:
            return
        triton = importlib.import_module("triton")
        self._scope["tl"] = importlib.import_module("triton.language")
        for function in self._pending:
            self._scope[function.__name__] = triton.jit(function, do_not_specialize=self._sizes)
        self._pending = []
