"""From what a user names to the files of the three networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import DIT_PRESETS
from ..errors import InputError
from . import nano
from .dit import dit_file
from .hub import BUNDLES, Component, resolve_cached, resolve_uri
from .hub_address import parse_uri
from .hub_address import path_or_address as path_or_address

# Where a folder keeps its networks: our own layout first, then that of the release.
VAE_FOLDERS = ("vae", "ltx2_causal_vae_0516")
TEXT_FOLDERS = ("text_encoder",)
# The published files that stand for a network that is nowhere named, best first: a stream decodes three times as fast with the
# causal VAE, and the public one, that of the release's configs, will do.
_DEFAULTS: dict[Component, tuple[str, ...]] = {"vae": ("causal-vae", "vae"), "text-encoder": ("text-encoder",)}
_SHORT_DEFAULTS = {**_DEFAULTS, "vae": ("vae", "causal-vae")}


@dataclass(frozen=True)
class Components:
    """Paths of transformer weights, VAE and text encoder."""

    model: Path
    vae: Path
    text_encoder: Path


def model_path(model: str | Path) -> Path:
    """The path that ``model`` names: the folder of the built-in model for `nano.NAME`, else what :func:`resolve_uri` gives.

    An ``hf://`` address is fetched if it is not in the cache.
    """
    return nano.nano_folder() if str(model) == nano.NAME else resolve_uri(model, "model")


def locate(
    model: str | Path,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    *,
    download: bool = False,
) -> Components:
    """Finds the three networks. ``model`` is a weight file, a folder that may hold the other two as well, `nano.NAME`, or the
    name of a published model.

    Each may be an ``hf://`` address; what is not in the hub's cache is then fetched, of a folder only what is read. With the
    name of a published model, networks that are not given and not beside it are the published ones in the hub's cache.
    ``download`` fetches those that are not there, with any model; without it only ``hf://`` addresses ask the hub anything.

    Raises InputError that names what is missing and the option or command that gives it.
    """
    published = str(model) in DIT_PRESETS and not Path(model).exists()
    # Before anything is fetched.
    built_in = nano.nano_folder() if str(model) == nano.NAME else model
    if not published:
        names = ", ".join((nano.NAME, *DIT_PRESETS))
        _check_given("--model", built_in, f"a checkpoint file, a folder with one, or one of the names {names}")
    _check_given("--vae", vae, "the path of the causal LTX-2 VAE")
    _check_given("--text-encoder", text_encoder, "the path of Gemma-2-2b-it")
    path = _published(str(model), "model", download) if published else resolve_uri(built_in, "model")
    folder = path if path.is_dir() else path.parent

    def companion(given: str | Path | None, names: tuple[str, ...], component: Component, what: str) -> Path:
        found = resolve_uri(given, component) if given is not None else _beside(folder, names)
        if found is None and (published or download):
            found = _published(str(model), component, download)
        if found is None:
            raise InputError(
                f"{folder.absolute()} holds no {' or '.join(names)}; give --{component} the path of {what}"
            )
        return found

    return Components(
        model=dit_file(path),
        vae=companion(vae, VAE_FOLDERS, "vae", "the causal LTX-2 VAE"),
        text_encoder=companion(text_encoder, TEXT_FOLDERS, "text-encoder", "Gemma-2-2b-it"),
    )


def _published(model: str, component: Component, download: bool) -> Path:
    """The network that belongs to ``model``, a name of a published one: from the hub's cache, or fetched."""
    short = model in DIT_PRESETS and DIT_PRESETS[model].variant == "bidirectional"
    defaults = _SHORT_DEFAULTS if short else _DEFAULTS
    names = defaults.get(component, (model,))
    here = next((name for name in names if resolve_cached(*BUNDLES[name]) is not None), None)
    if download:
        return resolve_uri(str(BUNDLES[here or names[0]][0]), component)
    if here is not None and (found := resolve_cached(*BUNDLES[here])) is not None:
        return found
    what = f"{model} is" if names[0] == model else f"{model} needs {names[0]}, which is"
    wanted = " ".join((model, *(choices[0] for choices in defaults.values())))
    raise InputError(
        f"{what} not on this machine: run python -m sana_streaming download {wanted}, or add --download, or give "
        f"--{component} a path (edit --random-weights measures speed and memory without files)"
    )


def _check_given(option: str, given: str | Path | None, what: str) -> None:
    if given is not None and parse_uri(str(given)) is None and not Path(given).exists():
        raise InputError(f"{option} {given} does not exist; give {what}")


def _beside(folder: Path, names: tuple[str, ...]) -> Path | None:
    places = (place / name for place in (folder, folder.parent) for name in names)
    return next((place for place in places if place.is_dir()), None)
