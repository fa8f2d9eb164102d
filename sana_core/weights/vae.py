"""Reading and writing the video VAE: a folder in diffusers' layout, or one safetensors file that carries its config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..config import VAEConfig, read_json
from ..errors import CheckpointError, InputError
from ..models.causal_vae import CausalVAE
from .checkpoint import check_dtypes, check_keys, config_inside, fingerprint, read_safetensors, shapes

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

DecoderChoice = Literal["auto", "causal"]


def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    operations: Any = nn,
    decoder: DecoderChoice = "auto",
) -> CausalVAE:
    """The VAE at ``path`` on ``device`` in ``dtype``, for inference: its parameters need no gradients.

    ``path`` is a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, itself or in its ``vae``
    subfolder, or a safetensors file with its config in the metadata key ``config`` or in a ``config.json`` beside it.
    ``decoder="causal"`` decodes as a stream whatever the config says: for causal weights whose config is lost.
    Weights may be stored in float32, float16 or bfloat16.

    Raises CheckpointError for files that are missing, damaged, without config or not this network: keys and shapes must
    be exactly those that the config asks for. Raises InputError for another ``decoder``.
    """
    if decoder not in ("auto", "causal"):
        raise InputError(f"decoder is {decoder!r}; choose auto (as the config says) or causal")
    weights = _weights_file(Path(path))
    state, metadata = read_safetensors(weights)
    config = VAEConfig.from_dict(_read_config(weights, metadata))
    if decoder == "causal":
        config = dataclasses.replace(config, decoder_causal=True)
    vae = CausalVAE(config, operations=operations, device="meta", dtype=dtype)
    check_keys(shapes(vae.state_dict()), shapes(state), weights)
    check_dtypes(state, weights)
    vae.load_state_dict({key: value.to(device, dtype) for key, value in state.items()}, assign=True)
    vae.fingerprint = fingerprint(state)
    return vae.requires_grad_(False).eval()


def save_vae(vae: CausalVAE, folder: str | Path) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors`` in the dtype of the VAE; makes the folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().contiguous() for key, value in vae.state_dict().items()}
    # The weights in use may be mapped from the very file that is replaced.
    unfinished = folder / f"{WEIGHTS_NAME}.part"
    save_file(state, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(vae.config.to_dict(), indent=2) + "\n", encoding="utf-8")


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    candidates = [path / WEIGHTS_NAME, path / "vae" / WEIGHTS_NAME]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{path} has no VAE weights; looked for {' and '.join(map(str, candidates))}: "
        "download the whole folder or name a .safetensors file"
    )


def _read_config(weights: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The config inside the file, since one beside it may belong to another file; else the one beside it."""
    beside, config = weights.with_name(CONFIG_NAME), config_inside(metadata, weights)
    if config is None:
        if not beside.is_file():
            raise CheckpointError(
                f"{weights} comes without {CONFIG_NAME}; looked for the metadata key 'config' in the file and for "
                f"{beside}: copy the {CONFIG_NAME} it was published with there"
            )
        return read_json(beside)
    nested = config.get("vae", config)
    if not isinstance(nested, dict):
        raise CheckpointError(f"{weights} has metadata 'config' without the settings of a VAE; use a VAE file")
    return nested
