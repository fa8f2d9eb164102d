"""ComfyUI's folders and the files in them."""

from __future__ import annotations

import uuid
from pathlib import Path, PureWindowsPath

import folder_paths

from ...sana_core.errors import InputError

OWN_FOLDER = "sana_streaming"


def register_folders() -> None:
    """Adds ``models/sana_streaming`` beside ComfyUI's own folders."""
    folder_paths.add_model_folder_path(OWN_FOLDER, str(Path(folder_paths.models_dir) / OWN_FOLDER))
    folder_paths.folder_names_and_paths[OWN_FOLDER][1].update((".safetensors", ".pth"))


def files_in(*kinds: str) -> list[str]:
    """File names offered by ComfyUI's model folders of these kinds, the first kind first."""
    return list(dict.fromkeys(name for kind in kinds for name in _filenames(kind)))


def _filenames(kind: str) -> list[str]:
    if kind not in folder_paths.folder_names_and_paths:
        return []
    try:
        return folder_paths.get_filename_list(kind)
    except FileNotFoundError:
        # ComfyUI remembers folders that have been removed meanwhile.
        return []


def folders_with(marker: str, *kinds: str) -> list[str]:
    """Sub-folders, as paths relative to ComfyUI's model folders of these kinds, that hold a file ``marker``."""
    found: dict[str, None] = {}
    for kind in kinds:
        for root in roots(kind):
            for file in sorted([*root.glob(f"*/{marker}"), *root.glob(f"*/*/{marker}")]):
                found[file.parent.relative_to(root).as_posix()] = None
    return list(found)


def resolve(name: str, what: str, *kinds: str) -> Path:
    """The path of a file or sub-folder offered by :func:`files_in` or :func:`folders_with`, never one outside."""
    for kind in kinds if _is_inside(name) else ():
        for root in roots(kind):
            if (root / name).exists():
                return root / name
    places = ", ".join(f"models/{kind}" for kind in kinds)
    raise InputError(f"{what} {name!r} is in none of ComfyUI's folders {places}; put it there, or choose another")


def _is_inside(name: str) -> bool:
    """Whether a relative name stays inside the folder that it is relative to."""
    parts = PureWindowsPath(name).parts
    return bool(parts) and ".." not in parts and not PureWindowsPath(name).anchor and not Path(name).is_absolute()


def roots(kind: str) -> list[Path]:
    """ComfyUI's model folders of a kind."""
    if kind not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(kind)]


def own_folder() -> Path:
    """``models/sana_streaming``, the first one where extra_model_paths.yaml names several."""
    return roots(OWN_FOLDER)[0]


# How ComfyUI marks names of files that are not in its input folder.
_IN_OUTPUT, _IN_INPUT = " [output]", " [input]"


def saved_files(suffix: str) -> list[str]:
    """Names of files in ComfyUI's input folder, and in its output folder not deeper than one folder, which are marked."""
    source, target = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    found = [path.relative_to(source).as_posix() for path in sorted(source.rglob(f"*{suffix}"))]
    written = sorted([*target.glob(f"*{suffix}"), *target.glob(f"*/*{suffix}")])
    return found + [path.relative_to(target).as_posix() + _IN_OUTPUT for path in written]


def resolve_saved(name: str, what: str) -> Path:
    """The path of a file offered by :func:`saved_files`, never one outside the two folders."""
    marked = name.endswith(_IN_OUTPUT)
    root = folder_paths.get_output_directory() if marked else folder_paths.get_input_directory()
    plain = name.removesuffix(_IN_OUTPUT if marked else _IN_INPUT)
    path = Path(root) / plain
    if _is_inside(plain) and path.is_file():
        return path
    raise InputError(f"{what} {name!r} is not in ComfyUI's {'output' if marked else 'input'} folder; choose another")


def output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A new numbered name in ComfyUI's output folder, and how a history entry lists it."""
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{number:05}_{suffix}"
    return path, {"filename": path.name, "subfolder": subfolder, "type": "output"}


def output_folder(name: str) -> Path:
    """A folder inside ComfyUI's output folder, made where it lacks."""
    folder = Path(folder_paths.get_output_directory()) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_folder() -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary_video(prefix: str, suffix: str = ".mp4") -> Path:
    """A new name in ComfyUI's temporary folder."""
    # Never the name of an earlier file: ComfyUI may still hand out an output that points there.
    return temporary_folder() / f"{prefix}_{uuid.uuid4().hex[:12]}{suffix}"
