"""CUDA graphs of the transformer, within one run of a node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

from ..sana_core.streaming.passes import GraphedPasses, Passes
from . import comfy_host
from .sockets import LoadedModel

logger = logging.getLogger(__name__)


def graph_input() -> Any:
    return comfy_host.widget(
        io.Boolean,
        "cuda_graph",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Records the steady pass of the transformer once and replays it: the same frames, sooner where the GPU waits "
        "for Python, and more memory. Only on an NVIDIA GPU that holds the whole model, without a LoRA; else it stays off and "
        "the log says why.",
    )


@contextmanager
def passes_of(model: LoadedModel, recorded: bool) -> Iterator[Passes]:
    """What runs the network, once ComfyUI has loaded it; whatever was recorded is gone afterwards."""
    why = comfy_host.keeps_from_recording(model.patcher) if recorded else None
    if why is not None:
        logger.warning("cuda_graph stays off: %s", why)
    passes = GraphedPasses(model.network) if recorded and why is None else Passes(model.network)
    try:
        yield passes
    finally:
        passes.release()
