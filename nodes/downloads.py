"""Published files that are not on this machine: offered by the loaders, fetched when such a loader is run.

A workflow that was saved with such an entry goes on with the file once it is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from ..sana_core.errors import InputError
from ..sana_core.weights.file_names import INDEX_SUFFIX, TORCH_SUFFIXES
from ..sana_core.weights.hub import BUNDLES, Component, download, in_units, plan_download, remaining, resolve_cached
from . import comfy_host

# Part of saved workflows, as the names in BUNDLES are.
PREFIX = "download: "
# Without these a text encoder that was downloaded half would be taken for a whole one.
_TEXT_FILES = ("config.json", "tokenizer.json")
_MEGABYTE = 1_000_000


def download_names(component: Component, folders: tuple[str, ...]) -> list[str]:
    """Combo entries for what belongs to a loader and is in none of its folders."""
    names = [name for name, (_, kind) in BUNDLES.items() if kind == component]
    return [PREFIX + name for name in names if _on_disk(name, folders) is None]


def is_download(file: str) -> bool:
    return file.startswith(PREFIX)


def check_download(file: str, folders: tuple[str, ...]) -> None:
    """InputError for an entry that is none, and for one that nothing can be fetched for."""
    name = _name(file)
    if _on_disk(name, folders) is None and _is_offline() and resolve_cached(*BUNDLES[name]) is None:
        raise InputError(
            f"{name} is not on this machine, and HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or put the files "
            f"of {BUNDLES[name][0]} into models/{folders[0]}"
        )


def downloaded(file: str, folders: tuple[str, ...], show: Callable[[str], None]) -> Path:
    """The file or folder that an entry stands for, fetched into ``models/sana_streaming`` where it is nowhere yet.

    ``show`` is told how far it has come, and Stop ends it. Raises InputError as the hub's functions do.
    """
    name = _name(file)
    check_download(file, folders)
    found = _on_disk(name, folders)
    if found is not None:
        return found
    if _is_offline() and (cached := resolve_cached(*BUNDLES[name])) is not None:
        return cached
    plan = plan_download(name)
    if not remaining(plan):
        # In the hub's cache, from another program.
        return download(plan)
    report = comfy_host.ProgressReport(plan.total_bytes // _MEGABYTE)
    shown = -1

    def on_progress(path: str, done: int, total: int) -> None:
        nonlocal shown
        comfy_host.check_interrupt()
        percent = 100 * done // max(1, total)
        if percent > shown:
            shown = percent
            report.reached(done // _MEGABYTE)
            show(f"downloading {name}: {in_units(done)} of {in_units(total)}, {path}")

    return download(plan, to=comfy_host.own_folder(), on_progress=on_progress)


def _name(file: str) -> str:
    name = file.removeprefix(PREFIX)
    if name not in BUNDLES:
        raise InputError(
            f"{file!r} is nothing to download; choose one of {', '.join(PREFIX + known for known in BUNDLES)}"
        )
    return name


def _is_offline() -> bool:
    # The library itself takes a second to import, too long for a list of names.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _on_disk(name: str, folders: tuple[str, ...]) -> Path | None:
    """Where the files are, in a model folder under the name that they were published with or downloaded to."""
    address, component = BUNDLES[name]
    published = address.path.split("/")[-1] or address.repo.split("/")[-1]
    below = [address.path] if address.path else ["text_encoder"]
    # What is published as "vae" is called so by many others.
    places = [comfy_host.own_folder() / place for place in below]
    if published != "vae":
        places += [root / published for kind in folders for root in comfy_host.roots(kind)]
    if component == "model":
        named = [file for file in comfy_host.files_in(*folders) if Path(file).name == published]
        places += [comfy_host.resolve(file, "model file", *folders) for file in named]
    return next((place for place in places if _is_whole(place, component)), None)


def _is_whole(place: Path, component: Component) -> bool:
    if component == "model":
        return place.is_file()
    if component == "text-encoder" and not all((place / file).is_file() for file in _TEXT_FILES):
        return False
    indices = list(place.glob(f"*{INDEX_SUFFIX}"))
    for index in indices:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all((place / shard).is_file() for shard in shards):
            return False
    weights = [file for ending in (".safetensors", *TORCH_SUFFIXES) for file in place.glob(f"*{ending}")]
    return bool(weights) and (component == "text-encoder" or (place / "config.json").is_file())
