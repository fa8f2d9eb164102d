"""Reading the video VAE from any of its layouts, and writing it as a folder in diffusers'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..config import VAEConfig, read_json
from ..errors import CheckpointError, InputError
from ..models.causal_vae import CausalVAE
from .checkpoint import INDEX_SUFFIX, check_dtypes, check_keys, config_inside, fingerprint, read_checkpoint, shapes
from .safetensors_file import save_safetensors
from .vae_layouts import (
    check_names,
    check_sizes,
    diffusers_names,
    infer_config,
    is_original,
    original_settings,
    vae_keys,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{Path(WEIGHTS_NAME).stem}{INDEX_SUFFIX}"

DecoderChoice = Literal["auto", "causal", "chunk_tile"]


def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    operations: Any = nn,
    decoder: DecoderChoice = "auto",
) -> CausalVAE:
    """The VAE at ``path`` on ``device`` in ``dtype``, for inference: its parameters need no gradients.

    ``path`` is a folder of diffusers' layout (``config.json`` and ``diffusion_pytorch_model.safetensors``, or the index of a
    sharded one), itself or in its ``vae`` subfolder, or a weight file: with diffusers' names and its config in the metadata
    key ``config`` or in a ``config.json`` beside it; with the names of LTX-2's own files; or a whole LTX-2 checkpoint, of
    which only the tensors under ``vae.`` are read. Weights may be stored in float32, float16 or bfloat16.

    ``decoder`` says how streams are decoded. ``auto`` does what the config says (LTX-2's own files: not causally);
    ``causal`` and ``chunk_tile`` (overlapping tiles, frames come late) do so whatever it says, and let a file without
    config be read by its shapes: nothing in the weights tells the two kinds apart.

    Raises CheckpointError for files that are missing, damaged, without config, of LTX-2.3 or later, or not this network:
    keys and shapes must be exactly those that the config asks for. Raises InputError for another ``decoder``.
    """
    state, config = read_vae(path, decoder)
    vae = CausalVAE(config, operations=operations, device="meta", dtype=dtype)
    vae.load_state_dict({key: value.to(device, dtype) for key, value in state.items()}, assign=True)
    vae.fingerprint = fingerprint(state)
    return vae.arrange().requires_grad_(False).eval()


def read_vae(path: str | Path, decoder: DecoderChoice = "auto") -> tuple[dict[str, torch.Tensor], VAEConfig]:
    """(state dict with diffusers' names, config) of what :func:`load_vae` takes; strict, raises what it raises."""
    if decoder not in get_args(DecoderChoice):
        raise InputError(
            f"decoder is {decoder!r}; choose auto (as the config says), causal, or chunk_tile for one that is not causal"
        )
    weights = vae_file(path)
    state, metadata = _read_weights(weights)
    check_names(state, weights)
    original = is_original(state)
    if original:
        state = {name: state[key] for key, name in diffusers_names(state).items()}
    config = _find_config(weights, metadata, shapes(state), original, decoder)
    check_keys(shapes(CausalVAE(config, device="meta").state_dict()), shapes(state), weights)
    check_dtypes(state, weights)
    return state, config


def save_vae(vae: CausalVAE, folder: str | Path) -> None:
    """Writes ``config.json`` and ``diffusion_pytorch_model.safetensors`` in the dtype of the VAE; makes the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / WEIGHTS_NAME, vae.state_dict(), {"format": "pt"})
    (folder / CONFIG_NAME).write_text(json.dumps(vae.config.to_dict(), indent=2) + "\n", encoding="utf-8")


def vae_file(path: str | Path) -> Path:
    """The weight file, or index of shards, that ``path`` names: itself, or the one in the folder or in its ``vae``."""
    path = Path(path)
    if not path.is_dir():
        return path
    candidates = [folder / name for folder in (path, path / "vae") for name in (WEIGHTS_NAME, INDEX_NAME)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{path} has no VAE weights; looked for {' and '.join(map(str, candidates))}: "
        "download the whole folder or name a .safetensors file"
    )


def _read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors of the VAE without prefix, metadata); nothing else of a whole checkpoint is read."""
    if path.suffix != ".safetensors":
        state, metadata = read_checkpoint(path)
        return {name: state[key] for key, name in vae_keys(state).items()}, metadata
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of the VAE's weight file or folder")
    try:
        with safe_open(path, framework="pt") as file:
            names = vae_keys(file.keys())
            return {name: file.get_tensor(key) for key, name in names.items()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def _find_config(
    weights: Path,
    metadata: Mapping[str, str],
    found: Mapping[str, tuple[int, ...]],
    original: bool,
    decoder: DecoderChoice,
) -> VAEConfig:
    """The config that goes with tensors of the shapes ``found``, checked to be of a VAE that the model knows."""
    values = _read_config(weights, metadata, beside=not original)
    forced = {} if decoder == "auto" else {"decoder_causal": decoder == "causal"}
    written_out = values is not None and (not original or "block_out_channels" in values)
    if values is not None and written_out:
        config = VAEConfig.from_dict({**values, **forced})
    elif original or forced:
        config = infer_config(found, weights, **{**original_settings(values or {}), **forced})
    else:
        raise CheckpointError(
            f"{weights} comes without {CONFIG_NAME}; looked for the metadata key 'config' in the file and for "
            f"{weights.with_name(CONFIG_NAME)}: copy the {CONFIG_NAME} it was published with there, or say which decoder it "
            "has, causal or chunk_tile (the public LTX-2 VAE)"
        )
    check_sizes(config, weights, decoder=not written_out)
    return config


def _read_config(weights: Path, metadata: Mapping[str, str], beside: bool) -> dict[str, Any] | None:
    """The config inside the file, else, where wanted, the one beside it, which may belong to another file; None for none."""
    config = config_inside(metadata, weights)
    if config is None:
        path = weights.with_name(CONFIG_NAME)
        return read_json(path) if beside and path.is_file() else None
    nested = config.get("vae", config)
    if not isinstance(nested, dict):
        raise CheckpointError(f"{weights} has metadata 'config' without the settings of a VAE; use a VAE file")
    return nested
