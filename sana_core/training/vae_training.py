"""Training of a causal VAE on clips: encode, add noise, decode as a stream would, compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.causal_vae import CausalVAE
from ..weights.random_init import randomize
from ..weights.vae import load_vae, save_vae
from .clips import ClipSource, crop_clips, open_clips
from .config import VAETrainingConfig, dtype_of, identity
from .passes import normal_like
from .trainer import Trainer, seeded
from .vae_init import calibrate, pca_init, to_video

VAE_FOLDER = "vae"


def vae_losses(
    vae: CausalVAE,
    video: Tensor,
    *,
    generator: torch.Generator,
    latent_noise: float,
    kl_weight: float,
    change_weight: float = 0.0,
) -> dict[str, Tensor]:
    """``loss``, to be minimised, and its parts, for clips [B, 3, 1 + 8k, H, W] in [-1, 1].

    ``mse`` is the mean square over pixels after noise of deviation ``latent_noise`` was added to the latents. ``kl`` is the
    divergence from the prior of a posterior of that fixed width, up to a constant: half the mean square of the latents.
    ``change`` is the mean square of the error's change from each frame to the next.
    """
    latents, _ = vae.encode(video)
    kl = latents.square().mean() / 2
    if latent_noise:
        latents = latents + latent_noise * normal_like(latents, generator)
    decoded, _ = vae.decode(latents)
    mse = F.mse_loss(decoded, video)
    change = F.mse_loss(decoded.diff(dim=2), video.diff(dim=2))
    return {"loss": mse + kl_weight * kl + change_weight * change, "mse": mse, "kl": kl, "change": change}


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
    clips = open_clips(config.data, config.size, device)
    first = first_clips(config, clips)
    vae = start_vae(config, first).to(device)
    trained = {name: value for name, value in vae.named_parameters() if value.requires_grad}
    trainer = Trainer(folder, trained, config.trainer, identity=identity(config), log=log)

    def losses(step: int) -> Mapping[str, Tensor]:
        numbers = range(step * batch, (step + 1) * batch)
        video = torch.cat([to_video(_clip(clips, config, number).to(device)) for number in numbers])
        return vae_losses(
            vae,
            video,
            generator=seeded(seed, step),
            latent_noise=config.latent_noise,
            kl_weight=config.kl_weight,
            change_weight=config.change_weight,
        )

    def save() -> None:
        with trainer.averaged():
            finished = copy.deepcopy(vae)
        if config.decoder_of is None:
            calibrate(finished, (clip.to(device) for clip in first))
        save_vae(finished.to(dtype_of(config.save_dtype)), folder / VAE_FOLDER)

    trainer.run(losses, on_save=save)
    return folder / VAE_FOLDER


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
