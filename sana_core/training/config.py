"""What can be set in the configs of ``train`` and ``train-vae`` (``docs/training.md``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from ..config import DIT_PRESETS, DiTConfig, VAEConfig
from ..errors import InputError
from ..weights import nano
from ..weights.vae import load_vae
from .config_reader import limited, named, read_settings
from .reverse import CRR_WEIGHT
from .trainer import TrainerOptions

FrozenDtype = Literal["auto", "float32", "bfloat16"]
SavedDtype = Literal["float16", "bfloat16", "float32"]
# Linears of a block that a LoRA can be put on, by their official names.
LORA_TARGETS = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.output_gate",
    "attn.proj",
    "cross_attn.q_linear",
    "cross_attn.kv_linear",
    "cross_attn.proj",
    "mlp.inverted_conv.conv",
    "mlp.point_conv.conv",
    "mlp.t_conv",
)


def _built_in(part: str) -> dict[str, Any]:
    """Metadata of a path for which the name of the built-in model may stand, meaning that part of it."""
    return named({nano.NAME: lambda: nano.nano_folder() / part})


@dataclass(frozen=True)
class ModelSettings:
    """The transformer to start from: weights in ``path``, or a preset's or ``new`` sizes, whose weights ``init`` makes.

    ``keep`` is the network that keeps the video as it is, ``random`` one whose blocks begin as small random changes.
    """

    short: ClassVar[str] = "path"

    path: Path | None = field(default=None, metadata=_built_in("dit"))
    preset: Literal["streaming-2b", "bidirectional-2b"] | None = None
    new: Mapping[str, Any] | None = None
    init: Literal["keep", "random"] = "keep"

    def __post_init__(self) -> None:
        given = [name for name in ("path", "preset", "new") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(f"{' and '.join(given) or 'nothing'} given; give one of path, preset, new")
        if self.path is not None and not self.path.exists():
            raise InputError(f"{self.path} does not exist; give a checkpoint file, a folder with one, or {nano.NAME}")
        self.sizes()

    def sizes(self) -> DiTConfig | None:
        """Sizes of a network of random weights; None where weights are given."""
        if self.new is not None:
            return DiTConfig.from_dict(self.new)
        return DIT_PRESETS[self.preset] if self.preset else None


@dataclass(frozen=True)
class PairsData:
    """``pairs``: a folder with manifest.jsonl. ``builtin``: scenes, photographs and clips that are at hand."""

    pairs: Path | None = None
    builtin: Literal["scenes"] | None = None

    def __post_init__(self) -> None:
        if (self.pairs is None) == (self.builtin is None):
            raise InputError("give either pairs, a folder with manifest.jsonl, or builtin: scenes")


@dataclass(frozen=True)
class VideoData:
    """``videos``: files, or folders of them. ``builtin``: as for pairs, sources and edits alike."""

    videos: tuple[Path, ...] = ()
    builtin: Literal["scenes"] | None = None

    def __post_init__(self) -> None:
        if bool(self.videos) == (self.builtin is not None):
            raise InputError("give either videos, files or folders of them, or builtin: scenes")


@dataclass(frozen=True)
class ClipSize:
    """Pixels and frames of the clips; ``bucket`` takes the released size that is nearest to each pair's shape."""

    height: int | None = limited(1, default=None)
    width: int | None = limited(1, default=None)
    frames: int = limited(1, default=81)
    bucket: bool = False

    def __post_init__(self) -> None:
        fixed = self.height is not None and self.width is not None
        if fixed == self.bucket or (self.height is None) != (self.width is None):
            raise InputError("give height and width, or bucket: true")


@dataclass(frozen=True)
class LoraSettings:
    """``alpha`` is ``rank`` if left out; ``targets`` are ends of names in each block, as in :data:`LORA_TARGETS`."""

    rank: int = limited(1)
    alpha: float | None = limited(1e-6, default=None)
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise InputError(f"targets has {target!r}; accepted are {', '.join(LORA_TARGETS)}")

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True)
class LatentsCache:
    """So many distinct samples are encoded, once, and used again and again under fresh noise."""

    samples: int = limited(1)


@dataclass(frozen=True)
class EditedData:
    """Built-in clips of ``frames`` frames, ``samples`` of them, edited by the transformer ``model`` with its prompts."""

    model: Path = field(metadata=_built_in("dit"))
    text_encoder: Path = field(metadata=_built_in("text_encoder"))
    frames: int = limited(1, default=97)
    samples: int = limited(1, default=100)


@dataclass(frozen=True)
class EditTrainingConfig:
    """A run of ``train``.

    batch: clips per step.
    crop: side in pixels of a square cut out of each clip before it is encoded; null for whole clips.
    lora: null trains the whole network.
    latents: null encodes clips afresh for each step.
    most_gap: up to so many latent frames are left out after a clip's first chunk, to teach streams that are longer.
    most_laps: up to so many times a clip's later chunks go through the state before they are trained on.
    autocast: what matrix products of the trained part compute in; weights and their updates stay float32.
    dtype: of the parts that are not trained; auto is float32 on the CPU and bfloat16 elsewhere.
    save_dtype: of the file that a run ends with.
    """

    model: ModelSettings
    vae: Path = field(metadata=_built_in("vae"))
    text_encoder: Path = field(metadata=_built_in("text_encoder"))
    data: PairsData
    size: ClipSize
    trainer: TrainerOptions
    batch: int = limited(1, default=1)
    crop: int | None = limited(1, default=None)
    lora: LoraSettings | None = None
    crr_weight: float = limited(0, default=CRR_WEIGHT)
    most_gap: int = limited(0, default=0)
    most_laps: int = limited(0, default=0)
    latents: LatentsCache | None = None
    autocast: Literal["float32", "bfloat16"] = "float32"
    dtype: FrozenDtype = "auto"
    save_dtype: SavedDtype = "float16"

    def __post_init__(self) -> None:
        if self.size.bucket and (self.batch > 1 or self.data.builtin):
            raise InputError("bucket: true gives clips of several sizes; use batch: 1 and pairs, or height and width")
        _check_crop(self.crop, self.size)


@dataclass(frozen=True)
class VAETrainingConfig:
    """A run of ``train-vae``.

    vae: keys of the config.json of a new VAE.
    decoder_of: a VAE, in place of a new one, whose decoder is trained further; its latents stay what they are.
    init: principal components of the first ``init_clips`` clips, or random weights.
    latent_noise: deviation of noise on the latents, in their units.
    kl_weight: of the mean square of the latents, halved: the divergence of a posterior of fixed width from the prior.
    change_weight: of the error of the change from frame to frame, relative to the clip's own change.
    border_weight: of the excess of change where a latent frame begins, which shows as a flicker.
    edited: latents to train a decoder on in place of those of ``data``: edits of a transformer.
    """

    size: ClipSize
    trainer: TrainerOptions
    data: VideoData | None = None
    edited: EditedData | None = None
    vae: Mapping[str, Any] | None = None
    decoder_of: Path | None = field(default=None, metadata=_built_in("vae"))
    init: Literal["pca", "random"] = "pca"
    init_clips: int = limited(1, default=16)
    batch: int = limited(1, default=1)
    crop: int | None = limited(1, default=None)
    latent_noise: float = limited(0, default=0.0)
    kl_weight: float = limited(0, default=0.0)
    change_weight: float = limited(0, default=0.0)
    border_weight: float = limited(0, default=0.0)
    save_dtype: SavedDtype = "float16"

    def __post_init__(self) -> None:
        if (self.vae is None) == (self.decoder_of is None):
            raise InputError("give either vae, the sizes of a new one, or decoder_of, the folder of one")
        if (self.data is None) == (self.edited is None):
            raise InputError(
                "give either data, clips to encode, or edited, a transformer whose edits a decoder learns from"
            )
        if self.edited is not None and self.decoder_of is None:
            raise InputError(
                "edited is given without decoder_of; only the decoder of a finished VAE can learn from edits"
            )
        if self.size.bucket:
            raise InputError("size.bucket is true; a VAE is trained on one size: give height and width")
        factor = self.sizes().temporal_factor
        if (self.size.frames - 1) % factor:
            raise InputError(f"size.frames is {self.size.frames}; it must be 1 + {factor}k")
        if self.edited is not None:
            self._check_edited(self.edited, factor)
        check_multiple(self.crop, self.size, self.sizes().spatial_factor)
        _check_crop(self.crop, self.size)

    def _check_edited(self, edited: EditedData, factor: int) -> None:
        if (edited.frames - 1) % factor or edited.frames < self.size.frames:
            raise InputError(
                f"edited.frames is {edited.frames}; it must be 1 + {factor}k and not less than size.frames, {self.size.frames}"
            )

    def sizes(self) -> VAEConfig:
        if self.decoder_of is not None:
            return load_vae(self.decoder_of).config
        return VAEConfig.from_dict({"decoder_causal": True, **(self.vae or {})})


def read_edit_training(path: str | Path, steps: int | None = None) -> EditTrainingConfig:
    """The config of ``train``; ``steps`` takes the place of the file's. Raises InputError."""
    config = read_settings(path, EditTrainingConfig)
    return dataclasses.replace(config, trainer=_with_steps(config.trainer, steps))


def read_vae_training(path: str | Path, steps: int | None = None) -> VAETrainingConfig:
    """The config of ``train-vae``; ``steps`` takes the place of the file's. Raises InputError."""
    config = read_settings(path, VAETrainingConfig)
    return dataclasses.replace(config, trainer=_with_steps(config.trainer, steps))


def identity(config: EditTrainingConfig | VAETrainingConfig) -> dict[str, Any]:
    """What must be the same for a run to go on, as JSON: all but the trainer's options and the dtype of the result.

    Defaults are left out, so that runs survive new options.
    """
    kept = [
        setting.name
        for setting in dataclasses.fields(config)
        if setting.name not in ("trainer", "save_dtype") and getattr(config, setting.name) != setting.default
    ]
    values = dataclasses.asdict(config)
    plain: dict[str, Any] = _plain({name: values[name] for name in kept} | {"seed": config.trainer.seed})
    return plain


def frozen_dtype(name: FrozenDtype, device: torch.device) -> torch.dtype:
    """What a part that is not trained computes in."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return dtype_of(name)


def dtype_of(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def check_multiple(crop: int | None, size: ClipSize, factor: int) -> None:
    """InputError unless a VAE of this spatial factor can take the clips."""
    sides = {"size.height": size.height, "size.width": size.width} if crop is None else {"crop": crop}
    for name, side in sides.items():
        if side is not None and side % factor:
            raise InputError(f"{name} is {side}; it must be a multiple of {factor}, the pixels of one latent")


def _check_crop(crop: int | None, size: ClipSize) -> None:
    smallest = min(size.height or 0, size.width or 0) or None
    if crop is not None and smallest is not None and crop > smallest:
        raise InputError(f"crop is {crop}; it must be {smallest} or less, as clips are {size.width}x{size.height}")


def _with_steps(options: TrainerOptions, steps: int | None) -> TrainerOptions:
    if steps is None:
        return options
    if steps < 1:
        raise InputError(f"--steps {steps} trains nothing; use 1 or more")
    return dataclasses.replace(options, steps=steps)


def _plain(value: Any) -> Any:
    """Made of what JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value
