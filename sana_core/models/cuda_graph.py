"""Recording a call as a CUDA graph, such that one which cannot be recorded leaves thread and allocator as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def record(call: Callable[[], T], stream: torch.cuda.Stream, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of ``call``, and the tensors in which each replay leaves its results.

    The call runs once before, which compiles kernels and chooses algorithms. ``stream``: of the current GPU, used by nobody
    else. ``pool``: the memory pool of other graphs recorded on that stream, None for one of its own. RuntimeError for a call
    that cannot be recorded.
    """
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    pool = pool or torch.cuda.graph_pool_handle()
    # torch.cuda.graph restores the stream only after a capture that ended well, so that is done around it. Other threads may
    # take pinned memory and use the GPU meanwhile.
    with (
        _released_if_failed(graph, pool),
        _chosen_algorithms(),
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        result = call()
    return graph, result


@contextmanager
def _released_if_failed(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Ends what a capture that failed leaves begun: as long as one is under way, the allocator waits for no other stream."""
    try:
        yield
    except RuntimeError:
        if _has_ended(graph):
            # The call failed, not the capture: the graph gives the pool back itself.
            raise
        device = torch.cuda.current_device()
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            # Nothing to end where it failed before or after the capture itself.
            with suppress(RuntimeError, AttributeError):
                getattr(torch._C, name)(device, pool)
        raise


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


@contextmanager
def _chosen_algorithms() -> Iterator[None]:
    """cuDNN times no algorithms, which it cannot during a capture, whatever the process has set."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
