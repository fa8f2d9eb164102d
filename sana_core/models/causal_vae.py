"""The causal LTX-2 video VAE: frames to latents and back, whole clips or a stream call by call.

It knows pixels in [-1, 1], the frame law (the first frame alone, then ``temporal_factor`` frames per latent frame) and
the latent statistics. It keeps nothing between calls: the state of a stream goes in and out. Source: ``docs/model.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import SAMPLER_STRIDES, VAEConfig
from ..errors import InputError
from .vae_graph import Capture, StepGraph
from .vae_layers import (
    Carry,
    CausalConv3d,
    ConvFactory,
    DownBlock,
    Downsampler,
    Implementation,
    MidBlock,
    UpBlock,
    VAEState,
)

__all__ = ["CausalVAE", "VAEState"]


class Encoder(nn.Module):
    """[B, 3, F, H, W] -> [B, C+1, T, h, w]: C means and one log-variance for all of them."""

    def __init__(self, config: VAEConfig, conv: ConvFactory) -> None:
        super().__init__()
        self.config = config
        width = config.latent_channels
        self.conv_in = conv(config.in_channels * config.patch_size**2, width)
        self.down_blocks = nn.ModuleList()
        for target, kind, layers in zip(
            config.block_out_channels, config.downsample_type, config.layers_per_block[:-1], strict=True
        ):
            self.down_blocks.append(DownBlock(width, target, SAMPLER_STRIDES[kind], layers, conv))
            width = target
        self.mid_block = MidBlock(width, config.layers_per_block[-1], conv)
        self.conv_out = conv(width, config.latent_channels + 1)

    def forward(self, video: Tensor, carry: Carry) -> Tensor:
        patch = self.config.patch_size
        x = rearrange(video, "n c t (h p) (w q) -> n (c q p) t h w", p=patch, q=patch)
        x = self.conv_in(x, carry)
        for block in self.down_blocks:
            x = block(x, carry)
            if not x.shape[2]:
                # All frames wait in a down-sampler; the layers after it are not called, so their state stays.
                height, width = (size // self.config.spatial_factor for size in video.shape[-2:])
                return x.new_empty(len(x), self.config.latent_channels + 1, 0, height, width)
        return self.conv_out.normed(self.mid_block(x, carry), carry)[0].total()


class Decoder(nn.Module):
    """[B, C, T, h, w] -> [B, 3, F, H, W], not clamped."""

    def __init__(self, config: VAEConfig, conv: ConvFactory) -> None:
        super().__init__()
        self.config = config
        levels = zip(
            config.decoder_block_out_channels,
            config.decoder_upsample_type,
            config.upsample_factor,
            config.upsample_residual,
            config.decoder_layers_per_block[:-1],
            strict=True,
        )
        width = config.decoder_block_out_channels[-1]
        self.conv_in = conv(config.latent_channels, width)
        self.mid_block = MidBlock(width, config.decoder_layers_per_block[-1], conv)
        self.up_blocks = nn.ModuleList()
        for width, kind, factor, residual, layers in reversed(list(levels)):
            self.up_blocks.append(UpBlock(width, SAMPLER_STRIDES[kind], factor, residual, layers, conv))
        last_width = config.decoder_block_out_channels[0] // config.upsample_factor[0]
        self.conv_out = conv(last_width, config.out_channels * config.patch_size**2)

    def forward(self, latents: Tensor, carry: Carry) -> Tensor:
        open_sum = self.mid_block(self.conv_in(latents, carry), carry)
        for block in self.up_blocks:
            open_sum = block(open_sum.total(), carry)
        x = self.conv_out.normed(open_sum, carry)[0].total()
        patch = self.config.patch_size
        return rearrange(x, "n (c q p) t h w -> n c t (h p) (w q)", p=patch, q=patch)


class CausalVAE(nn.Module):
    """The video VAE. Its state dict has the keys of diffusers' AutoencoderKLLTX2Video.

    ``operations`` is the namespace that ``Conv3d`` comes from (``torch.nn``, or ComfyUI's for offloading). Inputs must
    be on the device the convolutions compute on; they are cast to the dtype of the VAE, which results have too.

    A :data:`VAEState` is a plain dict of tensors: empty at the start of a stream, of the same keys after every call and
    of the same bytes after every call that ends at a latent frame. It may be moved or saved tensor by tensor. A call
    never changes the state it is given, so a call that was interrupted can be made again.
    """

    fingerprint: str = ""
    """Identity of the loaded weights; empty for weights that were not loaded."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        config: VAEConfig,
        *,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        conv = partial(CausalConv3d, operations=operations, device=device, dtype=dtype)
        self.encoder = Encoder(config, partial(conv, padding_mode=config.encoder_spatial_padding_mode))
        self.decoder = Decoder(config, partial(conv, padding_mode=config.decoder_spatial_padding_mode))
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels, device=device, dtype=dtype))
        self.register_buffer("latents_std", torch.ones(config.latent_channels, device=device, dtype=dtype))
        self._encoder_keys = _name_layers(self.encoder, "encoder")
        self._decoder_keys = _name_layers(self.decoder, "decoder")
        self._graphs: dict[str, StepGraph] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.latents_mean.dtype

    def use_kernels(self, implementation: Implementation) -> None:
        """Picks the implementation of what stands in front of every convolution; ``auto`` to begin with."""
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.kernels = implementation

    def use_graphs(self, enabled: bool = True, *, num_latents: int = 3, capture: Capture | None = None) -> None:
        """Has :meth:`encode` and :meth:`decode` replay a CUDA graph for calls of ``num_latents`` latent frames in mid-stream.

        Each direction is captured at its first such call, at the size of that call, and then holds the memory of a call and
        one copy of a state; calls of other sizes, first calls and calls on the CPU are made as before. States, results and
        their owners stay what they are. False lets the graphs and their memory go; True again starts anew, which is how to
        change the size. ``capture`` stands in for CUDA's. Raises InputError where the convolutions are not torch.nn's, whose
        weights stay where they are.
        """
        self._graphs = {}
        if not enabled:
            return
        kinds = {type(module.conv) for module in self.modules() if isinstance(module, CausalConv3d)}
        if others := kinds - {nn.Conv3d}:
            raise InputError(
                f"the VAE's convolutions are {others.pop().__qualname__}, which may move weights; CUDA graphs take torch.nn's: "
                "load the VAE without operations or leave graphs off"
            )
        frames = {"encode": num_latents * self.config.temporal_factor, "decode": num_latents}
        self._graphs = {name: StepGraph(count, capture) for name, count in frames.items()}

    @property
    def captured_graphs(self) -> list[str]:
        """Which of ``encode`` and ``decode`` have been captured."""
        return [name for name, graph in self._graphs.items() if graph.captured]

    def _run(self, name: str, x: Tensor, carry: Carry) -> tuple[Tensor, VAEState]:
        """One direction, from its graph where that takes the call."""
        network, step = (self.encoder, self.encode_carried) if name == "encode" else (self.decoder, self.decode_carried)
        if graph := self._graphs.get(name):
            weights = [*network.parameters(), self.latents_mean, self.latents_std]
            if replayed := graph.run(step, weights, x, carry.old):
                return replayed
        return step(x, carry), carry.new

    def arrange(self) -> CausalVAE:
        """Puts weights on a GPU into channels_last_3d memory, which its convolutions want; returns this VAE.

        Results stay as they are. On the CPU nothing is moved: there it does not help.
        """
        if self.latents_mean.device.type == "cuda":
            self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return self

    @property
    def decodes_causally(self) -> bool:
        """Whether :meth:`decode` can be called: the decoder was trained without frames to come."""
        return self.config.decoder_causal

    def encode(self, video: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Normalised latents [B, C, T, h, w] (posterior mode) of the next frames of a stream, and its new state.

        ``video`` is [B, 3, F, H, W] in [-1, 1] with any F >= 1; H and W are multiples of ``spatial_factor``. Frames
        that do not fill a latent frame wait in the state, so T may be 0. Raises InputError for other shapes, or for a
        ``state`` of another kind of stream.
        """
        self._check_video(video)
        carry = Carry(state)
        video = video.to(self.dtype)
        self._check_state(carry.old, self._encoder_keys, video, self.config.patch_size)
        return self._run("encode", video, carry)

    def encode_carried(self, video: Tensor, carry: Carry) -> Tensor:
        """:meth:`encode` of a video in the dtype of the VAE, without checks; ``carry`` is the state."""
        moments = self.encoder(video, carry)
        return self.normalize(moments[:, : self.config.latent_channels]).contiguous()

    def moments(self, video: Tensor) -> Tensor:
        """Raw means, then log-variances, [B, 2C, T, h, w] of a whole clip [B, 3, F, H, W] in [-1, 1].

        Raises InputError as :meth:`encode` does, and where F is not 1 more than a multiple of ``temporal_factor``.
        """
        self._check_video(video)
        factor = self.config.temporal_factor
        if (video.shape[2] - 1) % factor:
            raise InputError(f"clip has {video.shape[2]} frames; whole clips have 1 + {factor}k: pad or trim the clip")
        means, log_variance = self.encoder(video.to(self.dtype), Carry()).split([self.config.latent_channels, 1], dim=1)
        return torch.cat([means, log_variance.expand_as(means)], dim=1)

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Pixels [B, 3, F, H, W] of the next latent frames of a stream, and its new state.

        ``latents`` is [B, C, T, h, w], normalised, T >= 1; pixels are about in [-1, 1], not clamped. The first latent
        frame of a stream gives one frame, every later one ``temporal_factor``. Raises InputError where the decoder is
        not causal, for other shapes, or for a ``state`` of another kind of stream.
        """
        if not self.decodes_causally:
            raise InputError(
                "this VAE has decoder_causal = false and cannot decode frame by frame; decode in overlapping tiles, "
                "or load it with decoder='causal'"
            )
        self.check_latents(latents)
        carry = Carry(state)
        latents = latents.to(self.dtype)
        self._check_state(carry.old, self._decoder_keys, latents, 1)
        return self._run("decode", latents, carry)

    def decode_carried(self, latents: Tensor, carry: Carry) -> Tensor:
        """:meth:`decode` of latents in the dtype of the VAE, without checks; ``carry`` is the state."""
        return self.decoder(self.denormalize(latents), carry)

    def decode_noncausal(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] of a whole clip of normalised latents [B, C, T, h, w].

        Each frame sees later ones too. Raises InputError as :meth:`decode` does for other shapes.
        """
        self.check_latents(latents)
        return self.decoder(self.denormalize(latents.to(self.dtype)), Carry(causal=False))

    def normalize(self, means: Tensor) -> Tensor:
        """Encoder means [B, C, T, h, w] in the units of the diffusion model."""
        mean, std = self._statistics(means)
        return (means - mean) * self.config.scaling_factor / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`: what the decoder network takes."""
        mean, std = self._statistics(latents)
        return latents * std / self.config.scaling_factor + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (values.to(like).view(-1, 1, 1, 1) for values in (self.latents_mean, self.latents_std))
        return mean, std

    @property
    def _min_latent_rows(self) -> int:
        """Reflecting an edge takes the row beside it."""
        return 2 if self.config.decoder_spatial_padding_mode == "reflect" else 1

    def _check_video(self, video: Tensor) -> None:
        channels, factor = self.config.in_channels, self.config.spatial_factor
        if video.ndim != 5 or video.shape[1] != channels or not video.shape[2]:
            raise InputError(f"video has shape {tuple(video.shape)}; it must be [B, {channels}, F, H, W] with F >= 1")
        height, width = video.shape[-2:]
        smallest = self._min_latent_rows * factor
        if height % factor or width % factor or min(height, width) < smallest:
            raise InputError(
                f"video is {width} x {height} pixels; both sides must be multiples of {factor} "
                f"and at least {smallest}: resize or crop it"
            )

    def check_latents(self, latents: Tensor) -> None:
        """InputError unless ``latents`` have a shape [B, C, T, h, w] that can be decoded."""
        channels, rows = self.config.latent_channels, self._min_latent_rows
        if latents.ndim != 5 or latents.shape[1] != channels or not latents.shape[2] or min(latents.shape[-2:]) < rows:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; they must be [B, {channels}, T, h, w] "
                f"with T >= 1 and h, w >= {rows}"
            )

    def _check_state(self, state: Mapping[str, Tensor], keys: list[str], x: Tensor, patch: int) -> None:
        """The state must come from the same direction of a stream of this batch, size, dtype and device."""
        if not state:
            return
        if state.keys() != set(keys):
            raise InputError(
                f"state has {len(state)} entries that are not the {len(keys)} of the {keys[0].split('.')[0]}; "
                "give the state of this stream's last call, or none to start a stream"
            )
        got, need = _describe(state[keys[0]], patch), _describe(x, 1)
        if got != need:
            raise InputError(f"state is of a stream of {got}, the input of {need}; move the state or start a stream")


def _describe(x: Tensor, scale: int) -> str:
    batch, _, _, height, width = x.shape
    return f"batch {batch}, {width * scale} x {height * scale}, {x.dtype}, {x.device}"


def _name_layers(network: nn.Module, prefix: str) -> list[str]:
    """Tells each layer with state its path, and lists the keys of the state, the first layer's first."""
    keys: list[str | None] = []
    for name, layer in network.named_modules(prefix=prefix):
        if isinstance(layer, CausalConv3d | Downsampler):
            layer.path = name
            keys.append(name if isinstance(layer, CausalConv3d) else layer.pending_key)
    return [key for key in keys if key is not None]
