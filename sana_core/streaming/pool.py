"""Memory for the tensors of many streams, in pages that are used again.

Knows shapes and bytes; does not know what is kept in them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch

Slot = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of one tensor of a page."""

# Tensors of a page begin at multiples of this many bytes, as allocations of their own would.
ALIGNMENT = 512


class Page:
    """Zeroed tensors of the given slots, in one allocation that goes back to its pool when nobody holds the page any more.

    Views of ``tensors`` that outlive the page may then be written to by another holder.
    """

    def __init__(self, slots: Sequence[Slot], storage: torch.Tensor) -> None:
        self.slots = tuple(slots)
        self.storage = storage
        self.tensors = []
        start = 0
        for (shape, dtype), size in zip(slots, _sizes(slots), strict=True):
            count = math.prod(shape) * dtype.itemsize
            self.tensors.append(storage[start : start + count].view(dtype).view(shape))
            start += size


class StatePool:
    """Hands out pages and takes them back: streams that come and go one after another share one.

    What was ever handed out stays reserved until :meth:`trim`.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.device], list[torch.Tensor]] = {}
        self._reserved = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all pages, in use or free."""
        return self._reserved

    def take(self, slots: Sequence[Slot], device: torch.device) -> Page:
        """A page of zeros."""
        size = sum(_sizes(slots))
        free = self._free.get((size, device))
        if free:
            storage = free.pop().zero_()
        else:
            storage = torch.zeros(size, dtype=torch.uint8, device=device)
            self._reserved += size
        page = Page(slots, storage)
        weakref.finalize(page, self._take_back, storage).atexit = False
        return page

    def trim(self) -> None:
        """Lets go of the pages that nobody holds."""
        self._reserved -= sum(len(storage) for free in self._free.values() for storage in free)
        self._free.clear()

    def _take_back(self, storage: torch.Tensor) -> None:
        self._free.setdefault((len(storage), storage.device), []).append(storage)


def _sizes(slots: Sequence[Slot]) -> list[int]:
    """Bytes that each slot takes, with what keeps the next one aligned."""
    return [-(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape, dtype in slots]
