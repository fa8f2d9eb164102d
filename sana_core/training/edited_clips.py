"""Edits as a trained transformer makes them, with the true edits beside: what a decoder meets in use."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.causal_vae import CausalVAE
from ..streaming.options import StreamOptions
from ..streaming.sampler import sample_clip
from ..weights.dit import load_dit
from .config import EditedData
from .edit_training import Prompts, check_networks, encode_clip
from .latents_cache import Kept, KeptTensors
from .pairs import BuiltinPairs
from .passes import normal_like
from .trainer import seeded


class EditedClip(NamedTuple):
    """Latents [C, T, h, w] of an edit, and the frames uint8 [1 + 8 (T - 1), H, W, 3] that they should decode to."""

    latents: Tensor
    frames: Tensor


class EditedClips:
    """Drawn clips, each edited once as a stream of four steps and kept in ``folder``.

    Raises InputError for networks that do not fit together.
    """

    def __init__(
        self,
        data: EditedData,
        vae: CausalVAE,
        folder: Path,
        height: int,
        width: int,
        *,
        seed: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self._data, self._vae, self._seed, self._device, self._log = data, vae, seed, device, log
        self._model = load_dit(data.model, device=device, dtype=torch.float32)
        self._prompts = Prompts(data.text_encoder, device)
        check_networks(self._model, vae, self._prompts, "decoder_of", str(data.text_encoder))
        self._pairs = BuiltinPairs(data.frames, height, width, device)
        made_by = json.dumps([vae.fingerprint, self._model.fingerprint, data.frames, height, width, seed])
        self._kept = KeptTensors(folder, data.samples, seed, made_by, self._make)

    def clip(self, number: int, frames: int, crop: int | None) -> EditedClip:
        """``frames`` frames from a latent border on and ``crop`` pixels square, both anywhere; a pure function."""
        tensors, _ = self._kept.get(number)
        latents, pixels = tensors["latents"].float(), tensors["frames"]
        rng = random.Random(f"window {self._seed} {number}")
        time, space = self._vae.config.temporal_factor, self._vae.config.spatial_factor
        length = 1 + (frames - 1) // time
        start = rng.randrange(latents.shape[1] - length + 1)
        top, left = 0, 0
        if crop is not None:
            side = crop // space
            top, left = (rng.randrange(size - side + 1) for size in latents.shape[2:])
            latents = latents[..., top : top + side, left : left + side]
            top, left = top * space, left * space
            pixels = pixels[:, top : top + crop, left : left + crop]
        return EditedClip(latents[:, start : start + length], pixels[start * time : start * time + frames])

    @torch.no_grad()
    def _make(self, number: int) -> Kept:
        pair = self._pairs.sample(self._seed, number)
        source = encode_clip(self._vae, pair.source, self._device)[None]
        noise = normal_like(source, seeded(self._seed, number))
        context = self._prompts.context(self._model, [pair.prompt])
        latents = sample_clip(self._model, context, noise, source, StreamOptions())[0]
        self._log(f"edited clip {number + 1} of {self._data.samples}")
        return {"latents": latents.to(torch.float16), "frames": pair.target}, {}
