"""Pictures of latents while a node works on them, by the preview method that the user has set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch

from ...sana_core.video.latent_preview import LatentRGB

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# ComfyUI's small decoder of LTX-2's latents: begin of its file's name in models/vae_approx.
TINY_DECODER = "taeltx_2"


def preview_method() -> str:
    """``none``, ``auto``, ``latent2rgb`` or ``taesd``: the page's setting for this prompt, else ``--preview-method``."""
    try:
        from comfy.cli_args import args

        return str(args.preview_method.value)
    except (ImportError, AttributeError):
        return "auto"


class LatentPreview:
    """Draws latents roughly: with ``taesd`` by ComfyUI's small decoder of LTX-2 where its file is there, else linearly.

    The linear map is ``look``, or ComfyUI's own for LTX-2 where none is known. Latents of other spaces have ``look`` alone.
    With ``none`` there is nothing to draw by. A small decoder may send other networks away: load yours again after each
    picture, or set ``may_load`` to False.
    """

    def __init__(self, look: LatentRGB | None, device: torch.device, *, is_ltx2: bool, may_load: bool = True) -> None:
        method = preview_method()
        self._look = None if method == "none" else look
        self._previewer: Any = None
        if is_ltx2 and ((method == "taesd" and may_load) or (look is None and method != "none")):
            previewer = _ltx2_previewer(device, may_load)
            self._previewer = previewer if look is None or hasattr(previewer, "taesd") else None

    @property
    def loads(self) -> bool:
        """Whether drawing brings a network of its own to a device."""
        return hasattr(self._previewer, "taesd")

    def picture(self, latents: torch.Tensor) -> Image | None:
        """The last latent frame of [1, C, T, h, w]; None where there is nothing to draw it by."""
        last = latents[:, :, -1:]
        if self._previewer is not None:
            try:
                image: Image = self._previewer.decode_latent_to_preview_image("JPEG", last)[1]
                return image
            except comfy.model_management.InterruptProcessingException:
                raise
            except Exception as error:
                # A file of another network, or no memory for it: no reason to end the run.
                logger.warning("SANA-Streaming: no preview by ComfyUI's decoder: %s", error)
                self._previewer = None
        if self._look is None:
            return None
        from PIL.Image import fromarray

        return fromarray(self._look.picture(last[0, :, 0]).numpy())


def _ltx2_previewer(device: torch.device, may_load: bool) -> Any:
    """ComfyUI's own previewer of LTX-2's latents; None where this ComfyUI has none, or its file cannot be read."""
    try:
        import latent_preview
        from comfy.latent_formats import LTXAV

        space = LTXAV()
        if may_load and TINY_DECODER in latent_preview.VIDEO_TAES:
            space.taesd_decoder_name = TINY_DECODER
        return latent_preview.get_previewer(device, space)
    except Exception as error:
        logger.warning("SANA-Streaming: no preview by ComfyUI's decoder: %s", error)
        return None
