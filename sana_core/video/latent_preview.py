"""A rough picture of latents without decoding them: a linear map to RGB, fitted to a chunk whose frames are known.

Knows no VAE: it is told latents and the frames that they were made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels of the picture for each latent pixel.
SCALE = 8
# Weight of keeping the map small, for chunks with fewer latent pixels than channels; relative to the latents' own size.
_RIDGE = 1e-3


@dataclass(frozen=True)
class LatentRGB:
    """RGB in 0 to 1 is ``latents @ weights + bias``: [C, 3] and [3], on the CPU."""

    weights: Tensor
    bias: Tensor

    def picture(self, latents: Tensor) -> Tensor:
        """uint8 [8h, 8w, 3] of one latent frame [C, h, w] on any device. Raises ValueError for other channels."""
        if latents.ndim != 3 or len(latents) != len(self.weights):
            raise ValueError(f"a latent frame is [{len(self.weights)}, h, w], not {tuple(latents.shape)}")
        rgb = latents.permute(1, 2, 0).float().cpu() @ self.weights + self.bias
        large = F.interpolate(rgb.permute(2, 0, 1)[None], scale_factor=SCALE, mode="bilinear", align_corners=False)
        return (255 * large[0].permute(1, 2, 0)).round_().clamp_(0, 255).to(torch.uint8).contiguous()


def shrunk(pixels: Tensor, factor: int) -> Tensor:
    """Frames [F, 3, H, W] in [-1, 1] averaged over squares of ``factor`` pixels, as RGB in 0 to 1, on the CPU."""
    return ((F.avg_pool2d(pixels.float(), factor) + 1) / 2).cpu()


def fit_latent_rgb(latents: Tensor, frames: Tensor, factor: int, *, begins: bool) -> LatentRGB:
    """The map that explains ``frames`` best, by ridge regression.

    latents: [1, C, T, h, w] of one chunk. frames: [F, 3, h, w], RGB in 0 to 1 as :func:`shrunk` gives them, that the chunk was
    made of; those that it was padded with may be missing. factor: frames that a latent frame stands for. begins: the stream
    begins with this chunk, whose first latent frame stands for one frame. Raises ValueError for other sizes.
    """
    count, grid = latents.shape[2], latents.shape[3:]
    head = 1 if begins else 0
    if not 0 < len(frames) <= head + factor * (count - head) or frames.shape[2:] != grid:
        raise ValueError(f"{tuple(frames.shape)} are not the frames of latents {tuple(latents.shape)}")
    shown = [part for part in (frames[:head], *frames[head:].split(factor)) if len(part)]
    wanted = torch.stack([part.mean(0) for part in shown]).permute(0, 2, 3, 1).reshape(-1, 3).double()
    given = latents[0, :, : len(shown)].permute(1, 2, 3, 0).reshape(-1, latents.shape[1]).double().cpu()
    mean, centre = given.mean(0), wanted.mean(0)
    centred = given - mean
    products = centred.T @ centred
    ridge = _RIDGE * products.diagonal().mean().clamp(min=1e-12)
    weights = torch.linalg.solve(products + ridge * torch.eye(len(products)).double(), centred.T @ (wanted - centre))
    return LatentRGB(weights.float(), (centre - mean @ weights).float())
