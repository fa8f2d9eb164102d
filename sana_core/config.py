"""Sizes of the networks, and the named presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from .errors import CheckpointError

Variant = Literal["streaming", "bidirectional"]


def softmax_layer_indices(depth: int, ratio: float) -> tuple[int, ...]:
    """Indices of the softmax blocks when the share ``ratio`` of ``depth`` blocks is softmax (``docs/model.md``)."""
    return spread_layers(depth, max(1, math.floor(depth * ratio)) if ratio else 0)


def spread_layers(depth: int, count: int) -> tuple[int, ...]:
    """Indices of ``count`` blocks spread evenly over ``depth``, by the release's rule; none for 0."""
    step = depth / max(1, count)
    return tuple(math.floor((j + 1) * step) - 1 for j in range(count))


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the hybrid diffusion transformer. Defaults are those of the released 2B networks.

    ``variant`` says what the weights were trained for, and with it how the release stores the q and k weights of softmax
    blocks; the arithmetic of one call is the same. Sizes that make no network raise CheckpointError.
    """

    variant: Variant = "streaming"
    depth: int = 20
    hidden_size: int = 2240
    num_heads: int = 20
    in_channels: int = 128
    source_channels: int = 128
    caption_channels: int = 2304
    max_text_tokens: int = 300
    mlp_ratio: float = 3.0
    softmax_layers: tuple[int, ...] = softmax_layer_indices(20, 0.25)
    # Side of the square grid of the release's unused pos_embed buffer; only its listed shape depends on it.
    pos_embed_size: int = 22

    def __post_init__(self) -> None:
        self._require("variant", self.variant in get_args(Variant), f"one of {', '.join(get_args(Variant))}")
        for field in dataclasses.fields(self):
            if isinstance(field.default, int):
                self._require(field.name, getattr(self, field.name) > 0, "positive")
        fits = self.hidden_size % (2 * self.num_heads) == 0
        self._require("num_heads", fits, f"such that hidden_size {self.hidden_size} is heads of an even width")
        fits = math.isfinite(self.hidden_size * self.mlp_ratio) and self.mlp_width > 0
        self._require("mlp_ratio", fits, f"such that hidden_size {self.hidden_size} times it is 1 or more channels")
        fits = set(self.softmax_layers) <= set(range(self.depth))
        self._require("softmax_layers", fits, f"made of numbers from 0 to {self.depth - 1}, the last of the blocks")

    def _require(self, key: str, accepted: bool, need: str) -> None:
        if not accepted:
            raise CheckpointError(f"DiT config has {key} = {getattr(self, key)!r}; it must be {need}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Channels after the gate of the MixFFN; its first layer makes twice as many."""
        # The ratio may be a rounded quotient of two widths.
        return round(self.hidden_size * self.mlp_ratio)

    def is_softmax(self, block: int) -> bool:
        return block in self.softmax_layers

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiTConfig:
        """The config of a ``config.json``; raises CheckpointError that names key and value for anything else."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(defaults)):
            raise CheckpointError(f"DiT config has unknown keys {unknown}; known are {sorted(defaults)}")
        return cls(**{key: _typed("DiT", key, value, defaults[key]) for key, value in values.items()})


# What a sampler of the VAE multiplies or divides (frames, rows, columns) by, by its name in the config.
SAMPLER_STRIDES: dict[str, tuple[int, int, int]] = {
    "spatial": (1, 2, 2),
    "temporal": (2, 1, 1),
    "spatiotemporal": (2, 2, 2),
}


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the LTX-2 video VAE, named as in its ``config.json``. Defaults are those of the public LTX-2 VAE.

    Decoder lists are read in reverse: the last entry is the mid block or the first up block. Sizes that make no network
    raise CheckpointError. Source: ``docs/model.md``.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    layers_per_block: tuple[int, ...] = (4, 6, 6, 2, 2)
    downsample_type: tuple[str, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    decoder_block_out_channels: tuple[int, ...] = (256, 512, 1024)
    decoder_layers_per_block: tuple[int, ...] = (5, 5, 5, 5)
    decoder_upsample_type: tuple[str, ...] = ("spatiotemporal", "spatiotemporal", "spatiotemporal")
    upsample_residual: tuple[bool, ...] = (True, True, True)
    upsample_factor: tuple[int, ...] = (2, 2, 2)
    patch_size: int = 4
    scaling_factor: float = 1.0
    encoder_causal: bool = True
    decoder_causal: bool = False
    encoder_spatial_padding_mode: str = "zeros"
    decoder_spatial_padding_mode: str = "reflect"

    # Switches of the file format with the only value whose network is built here.
    _FIXED: ClassVar[dict[str, Any]] = {
        "spatio_temporal_scaling": True,
        "decoder_spatio_temporal_scaling": True,
        "decoder_inject_noise": False,
        "timestep_conditioning": False,
        "patch_size_t": 1,
    }
    # Keys that say nothing about the network, or only what other keys already say.
    _IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "down_block_types",
            "gradient_checkpointing",
            "resnet_norm_eps",
            "spatial_compression_ratio",
            "temporal_compression_ratio",
        }
    )

    def __post_init__(self) -> None:
        for key in (
            "latent_channels",
            "patch_size",
            "scaling_factor",
            "block_out_channels",
            "decoder_block_out_channels",
        ):
            value = getattr(self, key)
            self._require(key, value and min(value if isinstance(value, tuple) else (value,)) > 0, "positive")
        down, up = len(self.block_out_channels), len(self.decoder_block_out_channels)
        lengths = {"layers_per_block": down + 1, "downsample_type": down, "decoder_layers_per_block": up + 1}
        lengths |= dict.fromkeys(("decoder_upsample_type", "upsample_residual", "upsample_factor"), up)
        for key, length in lengths.items():
            self._require(key, len(getattr(self, key)) == length, f"a list of {length}")
        for key in ("downsample_type", "decoder_upsample_type"):
            self._require(key, set(getattr(self, key)) <= set(SAMPLER_STRIDES), f"made of {', '.join(SAMPLER_STRIDES)}")
        for key in ("encoder_spatial_padding_mode", "decoder_spatial_padding_mode"):
            self._require(key, getattr(self, key) in ("zeros", "reflect"), "zeros or reflect")
        for key in ("in_channels", "out_channels"):
            self._require(key, getattr(self, key) == 3, "3, for red, green and blue")
        self._require("encoder_causal", self.encoder_causal, "true, because a stream has no later frames to look at")
        self._check_widths()
        self._check_strides()

    def _check_widths(self) -> None:
        """Samplers regroup channels evenly, and residual blocks keep the width they get."""
        width = self.latent_channels
        for kind, target in zip(self.downsample_type, self.block_out_channels, strict=True):
            volume = math.prod(SAMPLER_STRIDES[kind])
            fits = target % volume == 0 and width * volume % target == 0
            self._require(
                "block_out_channels", fits, f"a multiple of {volume} that divides {width * volume} where {target} is"
            )
            width = target
        width = self.decoder_block_out_channels[-1]
        levels = zip(
            self.decoder_block_out_channels,
            self.decoder_upsample_type,
            self.upsample_factor,
            self.upsample_residual,
            strict=True,
        )
        for source, kind, factor, residual in reversed(list(levels)):
            volume = math.prod(SAMPLER_STRIDES[kind])
            self._require("upsample_factor", factor > 0 and volume % factor == 0, f"a divisor of {volume} for {kind}")
            unit = volume if residual else factor
            fits = source == width and source % unit == 0
            self._require("decoder_block_out_channels", fits, f"{width}, a multiple of {unit}, where {source} is")
            width = source // factor

    def _check_strides(self) -> None:
        for name, axis in (("frames", 0), ("rows", 1)):
            down, up = (
                math.prod(SAMPLER_STRIDES[kind][axis] for kind in kinds)
                for kinds in (self.downsample_type, self.decoder_upsample_type)
            )
            self._require(
                "decoder_upsample_type", down == up, f"such that {name} grow {down}-fold, as the encoder shrinks them"
            )

    def _require(self, key: str, accepted: object, need: str) -> None:
        if not accepted:
            raise CheckpointError(f"VAE config has {key} = {getattr(self, key)!r}; it must be {need}")

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent row or column."""
        return self.patch_size * math.prod(SAMPLER_STRIDES[kind][1] for kind in self.downsample_type)

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame, the first one excepted."""
        return math.prod(SAMPLER_STRIDES[kind][0] for kind in self.downsample_type)

    def to_dict(self) -> dict[str, Any]:
        """The keys of a ``config.json`` that diffusers' AutoencoderKLLTX2Video and :meth:`from_dict` read."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }
        # diffusers lists this one in the order of use, unlike every other decoder list.
        values["upsample_type"] = values.pop("decoder_upsample_type")[::-1]
        down, up = len(self.block_out_channels), len(self.decoder_block_out_channels)
        lengths = {
            "spatio_temporal_scaling": down,
            "decoder_spatio_temporal_scaling": up,
            "decoder_inject_noise": up + 1,
        }
        values |= {key: [value] * lengths[key] if key in lengths else value for key, value in self._FIXED.items()}
        return {
            "_class_name": "AutoencoderKLLTX2Video",
            "down_block_types": ["LTX2VideoDownBlock3D"] * down,
            "spatial_compression_ratio": self.spatial_factor,
            "temporal_compression_ratio": self.temporal_factor,
            **values,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VAEConfig:
        """The config of a ``config.json`` of diffusers or of the release.

        ``decoder_upsample_type`` is in the order of the other decoder lists, diffusers' ``upsample_type`` in the
        opposite one; without either every decoder block upsamples frames, rows and columns. ``decoder_causal`` must be
        present: the weights do not tell the two kinds of decoder apart. Raises CheckpointError that names key and value
        for anything that this network does not do.
        """
        settings = {key: value for key, value in values.items() if not key.startswith("_") and key not in cls._IGNORED}
        for key, only in cls._FIXED.items():
            found = settings.pop(key, only)
            if any(item != only for item in (found if isinstance(found, list | tuple) else [found])):
                raise CheckpointError(
                    f"VAE config has {key} = {found!r}; the network built here needs {json.dumps(only)}"
                )
        if "decoder_causal" not in settings:
            raise CheckpointError(
                "VAE config lacks decoder_causal; add true for a causal decoder, false for the public LTX-2 VAE"
            )
        upsample = cls._upsample_types(settings)
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        # An option of a later format may be passed over only where it is switched off.
        if unknown := {key: value for key, value in settings.items() if key not in fields and value}:
            raise CheckpointError(f"VAE config has unknown settings {unknown}; known are {', '.join(fields)}")
        known = {key: _typed("VAE", key, value, fields[key]) for key, value in settings.items() if key in fields}
        blocks = len(known.get("decoder_block_out_channels", cls.decoder_block_out_channels))
        return cls(**known, decoder_upsample_type=upsample or ("spatiotemporal",) * blocks)

    @staticmethod
    def _upsample_types(settings: dict[str, Any]) -> tuple[str, ...] | None:
        """Takes both spellings out of ``settings`` and gives the one in the order of the other decoder lists."""
        ours, diffusers = settings.pop("decoder_upsample_type", None), settings.pop("upsample_type", None)
        default = VAEConfig.decoder_upsample_type
        ours = None if ours is None else _typed("VAE", "decoder_upsample_type", ours, default)
        diffusers = None if diffusers is None else _typed("VAE", "upsample_type", diffusers, default)[::-1]
        if ours and diffusers and ours != diffusers:
            raise CheckpointError(
                f"VAE config has decoder_upsample_type = {ours} but upsample_type = {diffusers[::-1]}; remove one"
            )
        return ours or diffusers


def _typed(network: str, key: str, value: Any, like: Any) -> Any:
    """``value`` from JSON as the type of ``like``: a scalar or a tuple of scalars."""
    if isinstance(like, tuple):
        if isinstance(value, list | tuple):
            return tuple(_typed(network, key, item, like[0]) for item in value)
        raise CheckpointError(f"{network} config has {key} = {value!r}; it must be a list")
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        raise CheckpointError(f"{network} config has {key} = {value!r}; it must be of type {type(like).__name__}")
    return value


DIT_PRESETS: dict[str, DiTConfig] = {
    "streaming-2b": DiTConfig(variant="streaming"),
    "bidirectional-2b": DiTConfig(variant="bidirectional"),
}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a CheckpointError that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values
