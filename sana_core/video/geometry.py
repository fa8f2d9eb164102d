"""Pixel geometry and ranges: uint8 frames and ComfyUI images in, the model's [-1, 1] in the middle, uint8 and images out.

Every rule works on each frame alone, so a stream cut anywhere gives the same numbers. Source: `docs/model.md`, pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

# Sizes (height, width) that the release was trained for, by their label: height over width, rounded. The streaming network
# saw 704 x 1280 alone.
BUCKETS = {
    0.5: (672, 1344),
    0.57: (704, 1280),
    0.68: (800, 1152),
    0.78: (832, 1088),
    1.0: (960, 960),
    1.13: (1024, 896),
    1.29: (1088, 832),
    1.46: (1152, 800),
    1.67: (1248, 736),
    1.75: (1280, 704),
    2.0: (1344, 672),
}


@dataclass(frozen=True)
class FillAndCrop:
    """Scale a frame to ``scaled_height`` x ``scaled_width``, then cut the target out at (``top``, ``left``)."""

    scaled_height: int
    scaled_width: int
    top: int
    left: int


def fill_and_crop(height: int, width: int, target_height: int, target_width: int) -> FillAndCrop:
    """The smallest scaling of ``height`` x ``width`` that covers the target, and the centre crop; all in pixels.

    Exact in Python floats: sizes are rounded half to even, an odd surplus pixel stays at the bottom or right.
    Raises InputError where a size is not positive.
    """
    if min(height, width, target_height, target_width) < 1:
        raise InputError(
            f"cannot fit a frame of {width}x{height} into {target_width}x{target_height}: every size must be at least 1"
        )
    height_ratio, width_ratio = target_height / height, target_width / width
    if height_ratio > width_ratio:
        scaled_width = round(width * height_ratio)
        return FillAndCrop(target_height, scaled_width, top=0, left=int((scaled_width - target_width) / 2))
    scaled_height = round(height * width_ratio)
    return FillAndCrop(scaled_height, target_width, top=int((scaled_height - target_height) / 2), left=0)


def bucket_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the bucket of :data:`BUCKETS` whose label is closest to ``height`` / ``width``.

    Raises InputError where a size is not positive.
    """
    ratio = _aspect(height, width)
    return BUCKETS[min(BUCKETS, key=lambda label: abs(label - ratio))]


def similar_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """(height, width) of about ``area`` pixels and the shape ``height`` / ``width``, in multiples of ``multiple``.

    For networks with no buckets of their own. Both are at least two multiples. Raises InputError where a size is not
    positive.
    """
    ratio = _aspect(height, width)
    sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
    high, wide = (max(2, round(side / multiple)) * multiple for side in sides)
    return high, wide


def _aspect(height: int, width: int) -> float:
    if min(height, width) < 1:
        raise InputError(f"a frame of {width}x{height} has no shape: every size must be at least 1")
    return height / width


def resize_and_crop(frames: Tensor, target_height: int, target_width: int, antialias: bool = False) -> Tensor:
    """Frames scaled to fill the target, centre-cropped and mapped to [-1, 1].

    Args:
        frames: [F, H, W, 3], uint8 (video) or floating point in 0..1 (a ComfyUI IMAGE).
        antialias: where a frame is made smaller, average over what each pixel covers. The release does not: fine detail
            of 4K flickers.

    Returns:
        float32 [F, 3, target_height, target_width] on the frames' device. Bilinear on the 0..1 values, corners not
        aligned. Each frame is computed by itself: any split of a clip gives the same bits.

    Raises InputError for another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise InputError(f"frames of shape {tuple(frames.shape)} are not video: expected [frames, height, width, 3]")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise InputError(f"frames of type {frames.dtype} are not video: expected uint8, or floating point in 0..1")
    num_frames, height, width, _ = frames.shape
    fit = fill_and_crop(height, width, target_height, target_width)
    pixels = torch.empty(num_frames, 3, target_height, target_width, device=frames.device)
    for frame, out in zip(frames, pixels, strict=True):
        planes = frame.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        if frame.dtype == torch.uint8:
            planes = planes / 255
        if (fit.scaled_height, fit.scaled_width) != (height, width):
            size = (fit.scaled_height, fit.scaled_width)
            planes = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[
                0
            ]
        cropped = planes[:, fit.top : fit.top + target_height, fit.left : fit.left + target_width]
        torch.sub(cropped, 0.5, out=out).div_(0.5)
    return pixels


def resize_frame(frame: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] at another size; bilinear and antialiased, the same frame where it has that size."""
    if tuple(frame.shape[:2]) == (height, width):
        return frame
    planes = frame.permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp_(0, 255).to(torch.uint8).contiguous()


def floor_size(size: int, multiple: int) -> int:
    """The largest multiple of ``multiple`` that is not above ``size``. Raises InputError where that would be 0."""
    if size < multiple:
        raise InputError(f"a size of {size} pixels is too small: at least {multiple} are needed")
    return size // multiple * multiple


def pixels_to_uint8(pixels: Tensor) -> Tensor:
    """[F, 3, H, W] in [-1, 1] to uint8 [F, H, W, 3]: clamped, and truncated rather than rounded (0.0 gives 127)."""
    levels = (127.5 * pixels.float() + 127.5).clamp_(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pixels_to_image(pixels: Tensor) -> Tensor:
    """[F, 3, H, W] in [-1, 1] to float32 [F, H, W, 3] in 0..1, a ComfyUI IMAGE."""
    return ((pixels.float() + 1) / 2).clamp_(0, 1).permute(0, 2, 3, 1).contiguous()
