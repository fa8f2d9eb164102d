"""A complete toy: transformer, VAE and text encoder of random weights in one folder, small enough for any laptop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import Variant
from .dit import save_dit
from .random_init import random_dit, random_vae, toy_configs
from .toy_text import make_toy_text_encoder
from .vae import save_vae

CAPTION_CHANNELS = 64


def make_toy_bundle(folder: str | Path, seed: int = 0, variant: Variant = "streaming") -> Path:
    """Writes ``dit/``, ``vae/`` and ``text_encoder/`` into ``folder`` (about 15 MB); the same bytes for the same seed.

    ``variant`` is the transformer's: what the released one was trained for.

    The classes and loaders are those of the released networks; the weights are random, so the picture is noise.
    """
    folder = Path(folder)
    configs = toy_configs(CAPTION_CHANNELS)
    save_dit(random_dit(replace(configs["dit"], variant=variant), seed), folder / "dit")
    save_vae(random_vae(configs["vae"], seed), folder / "vae")
    make_toy_text_encoder(folder / "text_encoder", seed=seed, hidden_size=CAPTION_CHANNELS)
    return folder
