"""The layouts that LTX-2 VAE weights come in, told apart and brought to one: the key names of diffusers.

Knows names and shapes, not tensors. Source: ``docs/model.md``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import SAMPLER_STRIDES, VAEConfig
from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

# The VAE inside a whole LTX-2 checkpoint.
VAE_PREFIX = "vae."
REMEDY = "use the VAE of LTX-2: the folder vae of Lightricks/LTX-2, or an LTX-2 19B checkpoint"

_STATISTICS = "per_channel_statistics."
_STATISTICS_NAMES = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
_NUMBERED = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(.+)")
# Decoder of LTX-2.5, which is another kind of network.
_DIFFUSION_DECODER = "decoder.conv_in_x_t."

_KIND_BY_VOLUME = {math.prod(stride): kind for kind, stride in SAMPLER_STRIDES.items()}
# Settings of the original layout's config that the shapes do not tell, by their name here.
_ORIGINAL_SETTINGS = {
    "causal_decoder": "decoder_causal",
    "encoder_spatial_padding_mode": "encoder_spatial_padding_mode",
    "decoder_spatial_padding_mode": "decoder_spatial_padding_mode",
    "scaling_factor": "scaling_factor",
}
_ENCODER_SIZES = ("block_out_channels", "layers_per_block", "downsample_type", "patch_size", "scaling_factor")
_DECODER_SIZES = ("decoder_block_out_channels", "decoder_layers_per_block", "decoder_upsample_type", "upsample_factor")
_PADDING = ("encoder_spatial_padding_mode", "decoder_spatial_padding_mode")


def vae_keys(keys: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name without prefix, of the keys that are the video VAE's; all keys of a VAE file."""
    inside = {key: key.removeprefix(VAE_PREFIX) for key in keys if key.startswith(VAE_PREFIX)}
    return inside or {key: key for key in keys}


def is_original(keys: Iterable[str]) -> bool:
    """Whether the names are those of LTX-2's own files, which number residual blocks and samplers together."""
    return any(".res_blocks." in key for key in keys)


def diffusers_names(keys: Iterable[str]) -> dict[str, str]:
    """Original name -> diffusers' name. Statistics that the VAE does not read are left out; other names are kept."""
    keys = list(keys)
    numbers = [int(match[2]) for key in keys if (match := _NUMBERED.match(key)) and key.startswith("encoder.")]
    # Samplers have odd numbers, so the mid block has the even one after the last of them.
    mid = 2 * math.ceil(max(numbers, default=0) / 2)
    names = {key: _diffusers_name(key, mid) for key in keys}
    return {key: name for key, name in names.items() if name is not None}


def _diffusers_name(key: str, mid: int) -> str | None:
    if key.startswith(_STATISTICS):
        return _STATISTICS_NAMES.get(key.removeprefix(_STATISTICS))
    match = _NUMBERED.match(key)
    if match is None:
        return key
    side, number, rest = match[1], int(match[2]), match[3]
    sampler = "downsamplers" if side == "encoder.down" else "upsamplers"
    if number % 2:
        return f"{side}_blocks.{number // 2}.{sampler}.0.{rest}"
    rest = re.sub(r"^res_blocks\.", "resnets.", rest)
    if number == (mid if side == "encoder.down" else 0):
        return f"{side.split('.')[0]}.mid_block.{rest}"
    return f"{side}_blocks.{number // 2 - (side == 'decoder.up')}.{rest}"


def original_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an original config says beyond the shapes, under this package's names; the public LTX-2 VAE's where silent.

    Raises CheckpointError for a value that none of the settings takes.
    """
    known = {name: config.get(key, getattr(VAEConfig, name)) for key, name in _ORIGINAL_SETTINGS.items()}
    checked = VAEConfig.from_dict(known)
    return {name: getattr(checked, name) for name in known}


def infer_config(shapes: Shapes, source: object, **settings: Any) -> VAEConfig:
    """The config of a network with tensors of these ``shapes``, under diffusers' names.

    ``settings`` are those that shapes do not tell: causality, padding, scaling. Raises CheckpointError that names
    ``source`` where the tensors are not those of such a network.
    """
    reader = _ShapeReader(shapes, source)
    down = reader.widths("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.conv_out")
    up = reader.widths("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.conv_out")
    down_volumes = [width // made for (_, made), (width, _) in itertools.pairwise(down)]
    up_volumes = [made // width for (_, made), (width, _) in itertools.pairwise(up)]
    # The lists of the decoder begin at its end.
    return reader.config(
        latent_channels=reader.shape("encoder.conv_out")[0] - 1,
        patch_size=math.isqrt(reader.shape("encoder.conv_in")[1] // VAEConfig.in_channels),
        block_out_channels=tuple(width for width, _ in down[1:]),
        layers_per_block=reader.layers("encoder.down_blocks", len(down) - 1, "encoder.mid_block"),
        downsample_type=reader.kinds(down_volumes),
        decoder_block_out_channels=tuple(width for width, _ in up[:-1])[::-1],
        decoder_layers_per_block=reader.layers("decoder.up_blocks", len(up) - 1, "decoder.mid_block", first=True)[::-1],
        decoder_upsample_type=reader.kinds(up_volumes)[::-1],
        upsample_factor=tuple(before // after for (before, _), (after, _) in itertools.pairwise(up))[::-1],
        upsample_residual=(True,) * (len(up) - 1),
        **settings,
    )


class _ShapeReader:
    """Sizes out of shapes; whatever does not fit is a CheckpointError that names the file."""

    def __init__(self, shapes: Shapes, source: object) -> None:
        self.shapes, self.source = shapes, source

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of the weight of a convolution, [Cout, Cin, 3, 3, 3]."""
        shape = self.shapes.get(f"{layer}.conv.weight")
        if shape is None or len(shape) != 5 or 0 in shape:
            found = "is missing" if shape is None else f"has shape {tuple(shape)}"
            raise CheckpointError(f"{self.source} is not a video VAE of LTX-2: {layer}.conv.weight {found}; {REMEDY}")
        return shape

    def widths(self, sampler: str, last: str) -> list[tuple[int, int]]:
        """(input, output) channels of the samplers in their order, and of the last convolution."""
        count = next(i for i in itertools.count() if f"{sampler.format(i)}.conv.weight" not in self.shapes)
        shapes = [self.shape(sampler.format(i)) for i in range(count)] + [self.shape(last)]
        return [(shape[1], shape[0]) for shape in shapes]

    def layers(self, blocks: str, count: int, mid: str, first: bool = False) -> tuple[int, ...]:
        """Residual blocks of each block, with the mid block last, or ``first``."""
        names = [f"{blocks}.{i}" for i in range(count)]
        names = [mid, *names] if first else [*names, mid]
        found = ({m[1] for key in self.shapes if (m := re.match(rf"{name}\.resnets\.(\d+)\.", key))} for name in names)
        return tuple(len(numbers) for numbers in found)

    def kinds(self, volumes: list[int]) -> tuple[str, ...]:
        """Names of samplers that merge or split so many positions."""
        if not set(volumes) <= set(_KIND_BY_VOLUME):
            raise CheckpointError(
                f"{self.source} is not a video VAE of LTX-2: its samplers merge {volumes} positions, "
                f"not {', '.join(map(str, sorted(_KIND_BY_VOLUME)))}; {REMEDY}"
            )
        return tuple(_KIND_BY_VOLUME[volume] for volume in volumes)

    def config(self, **values: Any) -> VAEConfig:
        try:
            return VAEConfig(**values)
        except CheckpointError as error:
            raise CheckpointError(f"{self.source} is not a video VAE of LTX-2: {error}; {REMEDY}") from error


def check_names(keys: Iterable[str], source: object) -> None:
    """CheckpointError for a file without a video VAE, and for the VAE of LTX-2.5, whose decoder is a diffusion model."""
    keys = list(keys)
    if not any(key.startswith(("encoder.", "decoder.")) for key in keys):
        raise CheckpointError(f"{source} holds no video VAE: none of its {len(keys)} tensors is of one; {REMEDY}")
    if marks := [key for key in keys if key.startswith(_DIFFUSION_DECODER)]:
        raise CheckpointError(f"{source} holds the VAE of a later LTX model ({marks[0]}), not of LTX-2; {REMEDY}")


def check_sizes(config: VAEConfig, source: object, decoder: bool) -> None:
    """CheckpointError for a VAE with latents of LTX-2's size that is not LTX-2's: later models have others.

    Its encoder must be LTX-2's, and with ``decoder`` its decoder too, where only the shapes tell how that one works.
    """
    public = VAEConfig()
    sizes = [(c.latent_channels, c.spatial_factor, c.temporal_factor) for c in (config, public)]
    if sizes[0] != sizes[1]:
        return
    for key in _ENCODER_SIZES + (_DECODER_SIZES + _PADDING if decoder else _PADDING[:1]):
        got, wanted = getattr(config, key), getattr(public, key)
        if got != wanted:
            raise CheckpointError(
                f"{source} is not the VAE of LTX-2: {key} is {got}, LTX-2 has {wanted}; the VAEs of LTX-2.3 and later make "
                f"latents that the model does not know: {REMEDY}"
            )
