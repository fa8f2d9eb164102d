"""One direction of the video VAE as a CUDA graph: captured once in mid-stream, replayed for every call like it.

It knows fixed shapes and buffers that stay where they are, not what a latent is. A stream's state stays a dict of tensors of
its own: it is copied into the graph's buffers before a replay and out of them after it, so streams share a graph by turns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from .cuda_graph import record
from .vae_layers import Carry, VAEState

logger = logging.getLogger(__name__)

Step: TypeAlias = Callable[[Tensor, Carry], Tensor]
"""A call of one direction, without checks."""


class Recording(Protocol):
    """A function on fixed tensors that can be run again."""

    output: Tensor
    """What the last run gave; the next one writes over it."""

    def replay(self) -> None: ...

    def turn(self) -> AbstractContextManager[None]:
        """One use of the fixed tensors: it begins when the use before it has ended, on whatever CUDA stream that was."""


Capture: TypeAlias = Callable[[Callable[[], Tensor], torch.device], Recording]
"""Records a function that reads and writes fixed tensors only. It may run it before."""


class CudaRecording:
    """A CUDA graph with memory of its own, which goes when the object does."""

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        self._device = device
        self._done = torch.cuda.Event()
        with torch.cuda.device(device):
            self._graph, self.output = record(function, torch.cuda.Stream(device))

    def replay(self) -> None:
        self._graph.replay()

    @contextmanager
    def turn(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._done)
        yield
        self._done.record(stream)


class _InPlace(Carry):
    """A state that stays where it is. Every layer has read what is carried when it writes what is to be."""

    def remember(self, path: str, frames: Tensor) -> None:
        self.new[path] = self.new[path].copy_(frames)


@dataclass
class _Fixed:
    """A recording, the tensors it reads and writes, and the addresses of the weights it was made with."""

    x: Tensor
    state: VAEState
    weights: tuple[int, ...]
    recording: Recording

    def run(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, VAEState]:
        with self.recording.turn():
            self.x.copy_(x)
            for path, buffer in self.state.items():
                buffer.copy_(state[path])
            self.recording.replay()
            return self.recording.output.clone(), {path: buffer.clone() for path, buffer in self.state.items()}


class StepGraph:
    """A step on calls of ``num_frames`` frames in mid-stream, of the size that comes first, from a recording.

    ``capture`` makes the recording; by default CUDA's, and then only of tensors on a GPU.
    """

    def __init__(self, num_frames: int, capture: Capture | None = None) -> None:
        self._num_frames = num_frames
        self._capture = capture
        self._fixed: _Fixed | None = None
        # Recording failed once; it is not tried again.
        self._refused = False
        self._lock = threading.Lock()

    @property
    def captured(self) -> bool:
        """Whether there is a recording."""
        return self._fixed is not None

    def run(
        self, step: Step, weights: Sequence[Tensor], x: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, VAEState] | None:
        """Result and new state of ``step``, the caller's own; None for a call that no recording is for.

        That is a call of another length or size, at the start of a stream, with gradients, or on other devices than the
        ``weights``. The step is the same in all calls and reads nothing but the weights and its arguments. The call that makes
        the recording, the first of its kind or the first after weights have moved, gives what the step itself gives.
        """
        if not self._takes(weights, x, state):
            return None
        # Buffers made in inference mode could not be written outside of it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            addresses = tuple(weight.data_ptr() for weight in weights)
            if self._fixed is None or self._fixed.weights != addresses:
                self._fixed = None
                return self._record(step, addresses, x, state)
            fixed = self._fixed
            if _layout(fixed.x, fixed.state) != _layout(x, state):
                return None
            return fixed.run(x, state)

    def _takes(self, weights: Sequence[Tensor], x: Tensor, state: Mapping[str, Tensor]) -> bool:
        if not state or x.shape[2] != self._num_frames or (self._capture is None and x.device.type != "cuda"):
            return False
        tensors = (x, *state.values(), *weights)
        if any(tensor.device != x.device for tensor in tensors):
            return False
        return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))

    def _record(
        self, step: Step, addresses: tuple[int, ...], x: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, VAEState]:
        carry = Carry(state)
        result = step(x, carry)
        after = carry.new
        if not self._refused and _layout(x, after) == _layout(x, state):
            fixed_x = x.clone()
            buffers = {path: frames.clone() for path, frames in after.items()}
            try:
                recording = (self._capture or CudaRecording)(lambda: step(fixed_x, _InPlace(buffers)), x.device)
            except RuntimeError as error:
                self._refused = True
                logger.warning("the VAE runs without a CUDA graph, which could not be recorded: %s", error)
            else:
                self._fixed = _Fixed(fixed_x, buffers, addresses, recording)
        return result, after


def _layout(x: Tensor, state: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {path: (tensor.shape, tensor.dtype) for path, tensor in {"": x, **state}.items()}
