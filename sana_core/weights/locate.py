"""From what a user names to the files of the three networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import DIT_PRESETS
from ..errors import InputError
from . import nano
from .dit import dit_file
from .hub import Component, resolve_uri
from .hub_address import SCHEME, parse_uri

# Where a folder keeps its networks: our own layout first, then that of the release.
VAE_FOLDERS = ("vae", "ltx2_causal_vae_0516")
TEXT_FOLDERS = ("text_encoder",)


@dataclass(frozen=True)
class Components:
    """Paths of transformer weights, VAE and text encoder."""

    model: Path
    vae: Path
    text_encoder: Path


def path_or_address(text: str) -> Path | str:
    """A path argument of the command line as it is to be kept: an ``hf://`` address would lose a slash as a Path."""
    return text if text.startswith(SCHEME) else Path(text)


def model_path(model: str | Path) -> Path:
    """The path that ``model`` names: the folder of the built-in model for `nano.NAME`, else what :func:`resolve_uri` gives.

    An ``hf://`` address is fetched if it is not in the cache.
    """
    return nano.nano_folder() if str(model) == nano.NAME else resolve_uri(model, "model")


def locate(model: str | Path, vae: str | Path | None = None, text_encoder: str | Path | None = None) -> Components:
    """Finds the three networks. ``model`` is a weight file, a folder that may hold the other two as well, or `nano.NAME`.

    Each may be an ``hf://`` address; what is not in the hub's cache is then fetched, of a folder only what is read.
    Raises InputError that names what is missing and the option that gives it.
    """
    if str(model) in DIT_PRESETS and not Path(model).exists():
        raise InputError(
            f"{model} names sizes, not weights; give --model the checkpoint file or its folder, "
            "or add --random-weights to measure speed and memory"
        )
    # Before anything is fetched.
    built_in = nano.nano_folder() if str(model) == nano.NAME else model
    _check_given("--model", built_in, "a checkpoint file or a folder with one")
    _check_given("--vae", vae, "the path of the causal LTX-2 VAE")
    _check_given("--text-encoder", text_encoder, "the path of Gemma-2-2b-it")
    path = resolve_uri(built_in, "model")
    folder = path if path.is_dir() else path.parent
    return Components(
        model=dit_file(path),
        vae=_companion(folder, vae, VAE_FOLDERS, "vae", "the causal LTX-2 VAE"),
        text_encoder=_companion(folder, text_encoder, TEXT_FOLDERS, "text-encoder", "Gemma-2-2b-it"),
    )


def _check_given(option: str, given: str | Path | None, what: str) -> None:
    if given is not None and parse_uri(str(given)) is None and not Path(given).exists():
        raise InputError(f"{option} {given} does not exist; give {what}")


def _companion(folder: Path, given: str | Path | None, names: tuple[str, ...], component: Component, what: str) -> Path:
    if given is not None:
        return resolve_uri(given, component)
    for place in (folder, folder.parent):
        for name in names:
            if (place / name).is_dir():
                return place / name
    raise InputError(f"{folder} holds no {' or '.join(names)}; give --{component} the path of {what}")
