"""The hybrid diffusion transformer: gated delta rule and softmax blocks, functional in its state.

Knows tensors in and tensors out. Knows nothing of chunk plans, windows or buffers: ``sana_core/streaming`` decides what is
kept between chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.gdn import Implementation
from ..config import DiTConfig
from .attention import AttentionLayout, CrossAttention, GDNAttention, Memory, SoftmaxAttention
from .embeddings import CaptionEmbedder, RMSNorm, TimestepEmbedder
from .mix_ffn import MixFFN
from .rope import Rotary, rotary

LAYER_NORM_EPS = 1e-6
CAPTION_NORM_EPS = 1e-5
MASKED_LOGIT = -10000.0


class BlockState(NamedTuple):
    """What one block carries over a chunk border.

    memory: GDN block (kv [B, h, D, D], z [B, h, D]) float32; softmax block (keys, values), each [B, h, N, D].
    frame: last frame before the temporal convolution [B, 1, S, C].
    """

    memory: Memory
    frame: torch.Tensor


@dataclass(frozen=True)
class PromptContext:
    """A prompt as the blocks read it: keys and values [B, h, L, D] per block, and a logit bias [B, 1, 1, L] or None."""

    keys_values: tuple[Memory, ...]
    bias: torch.Tensor | None


class DiTBlock(nn.Module):
    """Self-attention, cross-attention, MixFFN; the first and the last modulated by the timestep."""

    def __init__(self, config: DiTConfig, index: int, layout: AttentionLayout, operations: Any, **factory: Any) -> None:
        super().__init__()
        attention = SoftmaxAttention if config.is_softmax(index) else GDNAttention
        self.scale_shift_table = nn.Parameter(torch.zeros(6, config.hidden_size, **factory))
        self.attn = attention(config, layout, operations, **factory)
        self.cross_attn = CrossAttention(config, operations, **factory)
        self.mlp = MixFFN(config, operations, **factory)

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        prompt: Memory,
        bias: torch.Tensor | None,
        positions: Rotary,
        grid: tuple[int, int],
        state: BlockState | None,
    ) -> tuple[torch.Tensor, BlockState]:
        """x [B, T, S, C], modulation [B, 6, C]."""
        rows = (self.scale_shift_table.to(x) + modulation).unbind(1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (row[:, None, None] for row in rows)
        attended, memory = self.attn(modulate(x, shift_a, scale_a), positions, state.memory if state else None)
        x = x + gate_a * attended
        x = x + self.cross_attn(x.flatten(1, 2), prompt, bias).view_as(x)
        mixed, frame = self.mlp(modulate(x, shift_m, scale_m), grid, state.frame if state else None)
        return x + gate_m * mixed, BlockState(memory, frame)


class FinalLayer(nn.Module):
    """Modulated norm and projection to velocity."""

    def __init__(self, config: DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.hidden_size, **factory))
        self.linear = operations.Linear(config.hidden_size, config.in_channels, bias=True, **factory)

    def forward(self, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.scale_shift_table.to(x) + tau[:, None]).unbind(1)
        return self.linear(modulate(x, shift[:, None, None], scale[:, None, None]))


class VideoEmbedder(nn.Module):
    """Noisy and source latents, concatenated over channels, to tokens; under the release's name ``x_embedder.proj``."""

    def __init__(self, config: DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        channels = config.in_channels + config.source_channels
        self.proj = operations.Linear(channels, config.hidden_size, bias=True, **factory)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, channels, T, H, W] -> [B, T, S, C]."""
        return self.proj(latents.movedim(1, -1).flatten(2, 3))


class SanaStreamingDiT(nn.Module):
    """The 2B network of the release and its smaller kin (``docs/model.md``).

    Args:
        config: sizes.
        layout: ``fused`` or ``split`` self-attention projections; the numbers are the same.
        operations: namespace that makes Linear and Conv2d; torch.nn, or one that offloads or quantizes.
        device, dtype: where and in what parameters are made. ``dtype`` is also what the network computes in.
    """

    fingerprint: str = ""

    def __init__(
        self,
        config: DiTConfig,
        *,
        layout: AttentionLayout = "fused",
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = config.hidden_size
        self.config = config
        self.layout = layout
        self.dtype = dtype
        self.x_embedder = VideoEmbedder(config, operations, **factory)
        self.t_embedder = TimestepEmbedder(width, operations, **factory)
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(width, 6 * width, bias=True, **factory))
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, operations, **factory)
        self.attention_y_norm = RMSNorm(width, CAPTION_NORM_EPS, **factory)
        self.blocks = nn.ModuleList(
            DiTBlock(config, index, layout, operations, **factory) for index in range(config.depth)
        )
        self.final_layer = FinalLayer(config, operations, **factory)

    def prompt_context(self, embeds: torch.Tensor, mask: torch.Tensor | None = None) -> PromptContext:
        """Text features [B, L, caption_channels] and mask [B, L] (1 = real token, None = all) as the blocks read them.

        A mask with fewer rows than the batch is repeated. Columns that no row uses are left out: their weight would be
        exactly zero. A row without any real token attends evenly to all of them, as in the release.
        """
        embeds = embeds.to(self.dtype)
        bias = None
        if mask is not None:
            real = mask.bool().to(embeds.device)
            real = real.repeat(embeds.shape[0] // real.shape[0], 1)
            if real.any(1).all():
                used = real.any(0)
                embeds, real = embeds[:, used], real[:, used]
            if not real.all():
                bias = torch.zeros(real.shape, dtype=self.dtype, device=embeds.device)
                bias = bias.masked_fill(~real, MASKED_LOGIT)[:, None, None]
        features = self.attention_y_norm(self.y_embedder(embeds))
        attentions = (cast(DiTBlock, block).cross_attn for block in self.blocks)
        return PromptContext(tuple(attention.project_prompt(features) for attention in attentions), bias)

    def use_kernels(self, implementation: Implementation) -> None:
        """Picks the implementation of the gated delta rule for every block."""
        for module in self.modules():
            if isinstance(module, GDNAttention):
                module.kernels = implementation

    def positions(self, start_frame: int, num_frames: int, height: int, width: int, device: torch.device) -> Rotary:
        """Rotary factors of a chunk; the same for all its passes."""
        return rotary(start_frame, num_frames, height, width, self.config.head_dim, device)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        source: torch.Tensor,
        prompt: PromptContext,
        state: Sequence[BlockState] | None = None,
        positions: Rotary | None = None,
    ) -> tuple[torch.Tensor, list[BlockState]]:
        """Velocity [B, in_channels, T, H, W] in the network's dtype, and each block's state after these frames.

        Args:
            x: noisy latents [B, in_channels, T, H, W].
            timestep: [B], 0 to 1000; truncated to an integer.
            source: clean latents of the source for the same frames [B, source_channels, T, H, W].
            prompt: from :meth:`prompt_context`, same batch.
            state: what each block reads of earlier chunks; None at the start of a stream and for a whole clip.
            positions: from :meth:`positions`; None means that the frames count from 0.

        The returned state of a softmax block holds keys and values of these frames alone. Nothing passed in is changed.
        """
        num_frames, height, width = x.shape[2:]
        if positions is None:
            positions = self.positions(0, num_frames, height, width, x.device)
        hidden_states = self.x_embedder(torch.cat([x, source], 1).to(self.dtype))
        tau = self.t_embedder(timestep, self.dtype)
        modulation = self.t_block(tau).unflatten(-1, (6, -1))
        new_state = []
        for index, block in enumerate(self.blocks):
            hidden_states, block_state = block(
                hidden_states,
                modulation,
                prompt.keys_values[index],
                prompt.bias,
                positions,
                (height, width),
                state[index] if state is not None else None,
            )
            new_state.append(block_state)
        velocity = self.final_layer(hidden_states, tau)
        return velocity.unflatten(2, (height, width)).movedim(-1, 1), new_state


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm without weights, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) * (1 + scale) + shift
