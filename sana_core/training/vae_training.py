"""Training of a causal VAE on clips: encode, add noise, decode as a stream would, compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..models.causal_vae import CausalVAE
from ..weights.random_init import randomize
from ..weights.vae import load_vae, save_vae
from .clips import ClipSource, crop_clips, open_clips
from .config import VAETrainingConfig, dtype_of, identity
from .edited_clips import EditedClips
from .passes import normal_like
from .trainer import Trainer, seeded
from .vae_init import calibrate, pca_init, to_video

VAE_FOLDER, EDITED_FOLDER = "vae", "edited"


# Mean squared changes in [-1, 1] units below which a clip counts as calm, and below which steps are not told apart.
_STILL, _FAINT = 2e-3, 1e-4


def vae_losses(
    vae: CausalVAE,
    video: Tensor,
    *,
    generator: torch.Generator,
    latent_noise: float,
    kl_weight: float,
    change_weight: float = 0.0,
    border_weight: float = 0.0,
) -> dict[str, Tensor]:
    """``loss``, to be minimised, and its parts, for clips [B, 3, 1 + 8k, H, W] in [-1, 1].

    ``mse``, ``change`` and ``border`` are those of `decoder_losses`. ``kl`` is the divergence from the prior of a
    posterior of fixed width, up to a constant: half the mean square of the latents.
    """
    latents, _ = vae.encode(video)
    kl = latents.square().mean() / 2
    losses = decoder_losses(
        vae,
        latents,
        video,
        generator=generator,
        latent_noise=latent_noise,
        change_weight=change_weight,
        border_weight=border_weight,
    )
    return {**losses, "loss": losses["loss"] + kl_weight * kl, "kl": kl}


def decoder_losses(
    vae: CausalVAE,
    latents: Tensor,
    video: Tensor,
    *,
    generator: torch.Generator,
    latent_noise: float,
    change_weight: float = 0.0,
    border_weight: float = 0.0,
) -> dict[str, Tensor]:
    """``loss`` and its parts for latents [B, C, 1 + k, h, w] that should decode to ``video`` [B, 3, 1 + 8k, H, W].

    ``mse`` is the mean square over pixels after noise of deviation ``latent_noise`` was added to the latents. ``change`` is the
    mean square of the error's change from each frame to the next, over that of the clip itself, so that a flicker in
    a calm clip weighs as much as it disturbs. ``border`` is `border_excess` over the clip's own, at least 0.
    """
    if latent_noise:
        latents = latents + latent_noise * normal_like(latents, generator)
    decoded, _ = vae.decode(latents)
    error = decoded - video
    mse = error.square().mean()
    changes, own = (x.diff(dim=2).square().mean((1, 2, 3, 4)) for x in (error, video))
    change = (changes / (own + _STILL)).mean()
    factor = vae.config.temporal_factor
    border = (border_excess(decoded, factor) - border_excess(video, factor)).clamp_min(0).mean()
    loss = mse + change_weight * change + border_weight * border
    return {"loss": loss, "mse": mse, "change": change, "border": border}


def border_excess(video: Tensor, factor: int) -> Tensor:
    """How much more clips [B, 3, 1 + factor k, H, W] change onto the first frames of latent frames than elsewhere, [B].

    The logarithm of the ratio of mean squared steps: 0 where they are alike.
    """
    steps = video.diff(dim=2).square().mean((1, 3, 4))
    onto_first = torch.arange(steps.shape[1], device=video.device) % factor == 0
    across, inside = steps[:, onto_first].mean(1), steps[:, ~onto_first].mean(1)
    return ((across + _FAINT) / (inside + _FAINT)).log()


def train_vae(
    config: VAETrainingConfig,
    folder: Path,
    device: torch.device,
    *,
    log: Callable[[str], None] = print,
) -> Path:
    """Trains in ``folder``, or goes on there, and returns the folder of the VAE, which every checkpoint renews.

    Raises InputError for data that cannot be used, and for a folder with a run of other settings.
    """
    seed, batch = config.trainer.seed, config.batch
    clips = None if config.data is None else open_clips(config.data, config.size, device)
    first = first_clips(config, clips) if config.decoder_of is None and clips else []
    vae = start_vae(config, first).to(device)
    edited = None if config.edited is None else _open_edited(config, vae, folder, device, log)
    trained = {name: value for name, value in vae.named_parameters() if value.requires_grad}
    trainer = Trainer(folder, trained, config.trainer, identity=identity(config), log=log)

    def losses(step: int) -> Mapping[str, Tensor]:
        numbers = range(step * batch, (step + 1) * batch)
        options = {name: getattr(config, name) for name in ("latent_noise", "change_weight", "border_weight")}
        generator = seeded(seed, step)
        if edited is not None:
            drawn = [edited.clip(number, config.size.frames, config.crop) for number in numbers]
            video = torch.cat([to_video(clip.frames.to(device)) for clip in drawn])
            latents = torch.stack([clip.latents for clip in drawn]).to(device)
            return decoder_losses(vae, latents, video, generator=generator, **options)
        assert clips is not None
        video = torch.cat([to_video(_clip(clips, config, number).to(device)) for number in numbers])
        return vae_losses(vae, video, generator=generator, kl_weight=config.kl_weight, **options)

    def save() -> None:
        with trainer.averaged():
            finished = copy.deepcopy(vae)
        if config.decoder_of is None:
            calibrate(finished, (clip.to(device) for clip in first))
        save_vae(finished.to(dtype_of(config.save_dtype)), folder / VAE_FOLDER)

    trainer.run(losses, on_save=save)
    return folder / VAE_FOLDER


def _open_edited(
    config: VAETrainingConfig, vae: CausalVAE, folder: Path, device: torch.device, log: Callable[[str], None]
) -> EditedClips:
    assert config.edited is not None and config.size.height is not None and config.size.width is not None
    size, seed = (config.size.height, config.size.width), config.trainer.seed
    return EditedClips(config.edited, vae, folder / EDITED_FOLDER, *size, seed=seed, device=device, log=log)


def first_clips(config: VAETrainingConfig, clips: ClipSource) -> list[Tensor]:
    """What a run starts from and what its latent statistics are taken from: uint8 [F, H, W, 3] each, on the CPU."""
    return [_clip(clips, config, number).cpu() for number in range(config.init_clips)]


def start_vae(config: VAETrainingConfig, first: list[Tensor]) -> CausalVAE:
    """The VAE before its first step, float32 on the CPU, the same each time; a new one's latents are about of unit size."""
    if config.decoder_of is not None:
        vae = load_vae(config.decoder_of, dtype=torch.float32)
        vae.decoder.requires_grad_(True)
        return vae
    vae = CausalVAE(config.sizes())
    randomize(vae, config.trainer.seed)
    if config.init == "pca":
        pca_init(vae, first)
    else:
        calibrate(vae, first)
    return vae


def _clip(clips: ClipSource, config: VAETrainingConfig, number: int) -> Tensor:
    seed = config.trainer.seed
    return crop_clips([clips.clip(seed, number)], config.crop, seed, number)[0]
