"""While a node runs: Stop, progress, pictures and words on it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

PREVIEW_SIZE = 512
# What Stop raises; no Exception where ComfyUI is newer than 0.12.
Interrupted = comfy.model_management.InterruptProcessingException


def check_interrupt() -> None:
    """Raises ComfyUI's own exception when the user pressed Stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def show_text(node: type[io.ComfyNode], text: str, log: bool = True) -> None:
    """Writes ``text`` on the node, whose schema has ``hidden=[NODE_ID]``, and into the log."""
    if log:
        logger.info("SANA-Streaming: %s", text)
    number = getattr(node.hidden, "unique_id", None)
    if number is None:
        return
    # Only a running server has it.
    from server import PromptServer

    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send is not None:
        send(text, number)


class ProgressReport:
    """ComfyUI's progress bar with a preview of finished frames; honours Stop at every step."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._bar = comfy.utils.ProgressBar(max(1, total))

    def step(self) -> None:
        """One unit of work is about to begin."""
        check_interrupt()
        self._bar.update_absolute(self.done)
        self.done += 1

    def reached(self, done: int) -> None:
        """So much of the work is done."""
        check_interrupt()
        self.done = done
        self._bar.update_absolute(done)

    def preview(self, frame: torch.Tensor) -> None:
        """Shows a finished frame, uint8 [H, W, 3]."""
        from PIL.Image import fromarray

        self.show(fromarray(frame.cpu().numpy()))

    def show(self, picture: Image) -> None:
        self._bar.update_absolute(self.done, preview=("JPEG", picture, _preview_size()))


def _preview_size() -> int:
    """Pixels of a preview's longer side: ``--preview-size``."""
    try:
        from comfy.cli_args import args

        return int(args.preview_size)
    except (ImportError, AttributeError):
        return PREVIEW_SIZE
