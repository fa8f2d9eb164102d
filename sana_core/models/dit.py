"""The hybrid diffusion transformer: gated delta rule and softmax blocks, functional in its state.

Knows tensors in and tensors out. Knows nothing of chunk plans, windows or buffers: ``sana_core/streaming`` decides what is
kept between chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ...kernels.dispatch import Implementation
from ...kernels.norms import add_norm_modulate, gated_residual, norm_modulate
from ..config import DiTConfig
from .attention import AttentionLayout, CrossAttention, GDNAttention, Memory, SoftmaxAttention, Window
from .embeddings import CaptionEmbedder, RMSNorm, TimestepEmbedder
from .mix_ffn import MixFFN
from .rope import Rotary, rotary

LAYER_NORM_EPS = 1e-6
CAPTION_NORM_EPS = 1e-5
MASKED_LOGIT = -10000.0


class BlockState(NamedTuple):
    """What one block carries over a chunk border.

    memory: GDN block (kv [B, h, D, D], z [B, h, D]) float32; softmax block (keys, values), each [B, h, N, D], or a Window of
        them to read.
    frame: last frame before the temporal convolution [B, 1, S, C].
    """

    memory: Memory | Window
    frame: torch.Tensor

    @property
    def tensors(self) -> Memory:
        """Both tensors of the memory, those of a Window with the room behind it."""
        return self.memory[0], self.memory[1]


class Modulation(NamedTuple):
    """What a timestep does to the network: shift, scale and gate rows of each block and of the final layer.

    blocks: [depth, B, 6, C]. final: [B, 2, C].
    """

    blocks: torch.Tensor
    final: torch.Tensor


@dataclass(frozen=True)
class PromptContext:
    """A prompt as the blocks read it: keys and values [B, h, L, D] per block, and a logit bias [B, 1, 1, L] or None."""

    keys_values: tuple[Memory, ...]
    bias: torch.Tensor | None


class DiTBlock(nn.Module):
    """Self-attention, cross-attention, MixFFN; the first and the last modulated by the timestep."""

    kernels: Implementation = "auto"

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
        """x [B, T, S, C], modulation [B, 6, C], this block's."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (row[:, None, None] for row in modulation.unbind(1))
        u = norm_modulate(x, shift_a, scale_a, eps=LAYER_NORM_EPS, implementation=self.kernels)
        attended, memory = self.attn(u, positions, state.memory if state else None)
        x = gated_residual(x, gate_a, attended, implementation=self.kernels)
        crossed = self.cross_attn(x.flatten(1, 2), prompt, bias).view_as(x)
        x, u = add_norm_modulate(x, crossed, shift_m, scale_m, eps=LAYER_NORM_EPS, implementation=self.kernels)
        mixed, frame = self.mlp(u, grid, state.frame if state else None)
        return gated_residual(x, gate_m, mixed, implementation=self.kernels), BlockState(memory, frame)


class FinalLayer(nn.Module):
    """Modulated norm and projection to velocity."""

    kernels: Implementation = "auto"

    def __init__(self, config: DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.hidden_size, **factory))
        self.linear = operations.Linear(config.hidden_size, config.in_channels, bias=True, **factory)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """x [B, T, S, C], modulation [B, 2, C]."""
        shift, scale = modulation.unbind(1)
        shift, scale = shift[:, None, None], scale[:, None, None]
        return self.linear(norm_modulate(x, shift, scale, eps=LAYER_NORM_EPS, implementation=self.kernels))


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
        """Picks the implementation of every operator that has several."""
        for module in self.modules():
            if hasattr(module, "kernels"):
                setattr(module, "kernels", implementation)  # noqa: B010 - modules declare it one by one

    def compile_blocks(self) -> None:
        """Has torch.compile make each block faster; its first calls at a new shape take long. Parameters keep their names."""
        for block in self.blocks:
            block.compile(dynamic=False)

    def modulation(self, timestep: torch.Tensor) -> Modulation:
        """Of timesteps [B], 0 to 1000, truncated to integers; the same for all chunks."""
        tau = self.t_embedder(timestep, self.dtype)
        rows = self.t_block(tau).unflatten(-1, (6, -1))
        tables = torch.stack([cast(DiTBlock, block).scale_shift_table.to(tau) for block in self.blocks])
        return Modulation(tables[:, None] + rows, self.final_layer.scale_shift_table.to(tau) + tau[:, None])

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

        The returned state of a softmax block holds keys and values of these frames alone. Nothing passed in is changed
        but the room in a Window, which the returned keys and values are then views of.
        """
        if positions is None:
            num_frames, height, width = x.shape[2:]
            positions = self.positions(0, num_frames, height, width, x.device)
        return self.velocity(x, self.modulation(timestep), source, prompt, state, positions)

    def velocity(
        self,
        x: torch.Tensor,
        modulation: Modulation,
        source: torch.Tensor,
        prompt: PromptContext,
        state: Sequence[BlockState] | None,
        positions: Rotary,
    ) -> tuple[torch.Tensor, list[BlockState]]:
        """:meth:`forward` with the timestep's part done: nothing here waits for the device."""
        grid = (x.shape[3], x.shape[4])
        hidden_states = self.x_embedder(torch.cat([x, source], 1).to(self.dtype))
        new_state = []
        for index, block in enumerate(self.blocks):
            hidden_states, block_state = block(
                hidden_states,
                modulation.blocks[index],
                prompt.keys_values[index],
                prompt.bias,
                positions,
                grid,
                state[index] if state is not None else None,
            )
            new_state.append(block_state)
        velocity = self.final_layer(hidden_states, modulation.final)
        return velocity.unflatten(2, grid).movedim(-1, 1), new_state
