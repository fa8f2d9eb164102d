"""From what a user names to the files of the three networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import DIT_PRESETS
from ..errors import InputError
from .dit import dit_file

# Where a folder keeps its networks: our own layout first, then that of the release.
VAE_FOLDERS = ("vae", "ltx2_causal_vae_0516")
TEXT_FOLDERS = ("text_encoder",)


@dataclass(frozen=True)
class Components:
    """Paths of transformer weights, VAE and text encoder."""

    model: Path
    vae: Path
    text_encoder: Path


def locate(model: str | Path, vae: str | Path | None = None, text_encoder: str | Path | None = None) -> Components:
    """Finds the three networks. ``model`` is a weight file, or a folder that may hold the other two as well.

    Raises InputError that names what is missing and the option that gives it.
    """
    if str(model) in DIT_PRESETS and not Path(model).exists():
        raise InputError(
            f"{model} names sizes, not weights; give --model the checkpoint file or its folder, "
            "or add --random-weights to measure speed and memory"
        )
    path = Path(model)
    if not path.exists():
        raise InputError(f"--model {model} does not exist; give a checkpoint file or a folder with one")
    folder = path if path.is_dir() else path.parent
    return Components(
        model=dit_file(path),
        vae=_companion(folder, vae, VAE_FOLDERS, "--vae", "the causal LTX-2 VAE"),
        text_encoder=_companion(folder, text_encoder, TEXT_FOLDERS, "--text-encoder", "Gemma-2-2b-it"),
    )


def _companion(folder: Path, given: str | Path | None, names: tuple[str, ...], option: str, what: str) -> Path:
    if given is not None:
        if not Path(given).exists():
            raise InputError(f"{option} {given} does not exist; give the path of {what}")
        return Path(given)
    for place in (folder, folder.parent):
        for name in names:
            if (place / name).is_dir():
                return place / name
    raise InputError(f"{folder} holds no {' or '.join(names)}; give {option} the path of {what}")
