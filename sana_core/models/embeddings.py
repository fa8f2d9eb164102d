"""Timestep and caption embeddings, and the RMSNorm that the whole transformer uses."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.norms import Implementation, rms_norm

TIMESTEP_CHANNELS = 256


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, inside float32, returned in the dtype of x.

    Its weight, like every loose parameter of the transformer, is brought to the data on use: offloading moves layers only.
    ``kernels`` picks the implementation.
    """

    kernels: Implementation = "auto"

    def __init__(
        self, channels: int, eps: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps, self.kernels)


def timestep_features(timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cosines, then sines [B, 256] of the timestep (0 to 1000) truncated to an integer, as the release does."""
    half = TIMESTEP_CHANNELS // 2
    indices = torch.arange(half, dtype=torch.float32, device=timestep.device)
    frequencies = torch.exp(-math.log(10000.0) * indices / half)
    angles = timestep.to(torch.int64).float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1).to(dtype)


class TimestepEmbedder(nn.Module):
    """Timestep [B] to tau [B, C]."""

    def __init__(self, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(TIMESTEP_CHANNELS, hidden_size, **factory),
            nn.SiLU(),
            operations.Linear(hidden_size, hidden_size, **factory),
        )

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(timestep_features(timestep, dtype))


class CaptionProjection(nn.Module):
    """Text features [B, L, caption_channels] to [B, L, C]."""

    def __init__(self, caption_channels: int, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(caption_channels, hidden_size, **factory)
        self.fc2 = operations.Linear(hidden_size, hidden_size, **factory)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Holds the projection under the release's name ``y_embedder.y_proj``."""

    def __init__(self, caption_channels: int, hidden_size: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.y_proj = CaptionProjection(caption_channels, hidden_size, operations, **factory)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.y_proj(features)
