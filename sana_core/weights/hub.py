"""Weights from the Hugging Face hub: ``hf://`` addresses, what to fetch, fetching it, checking what arrived.

Knows the hub's names, the library `huggingface_hub` and the file layouts that the readers want; nothing of networks.
Nothing is fetched except by :func:`download` and by :func:`resolve_uri` of an address. ``HF_ENDPOINT``, ``HF_HOME``,
``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are the library's own and hold here too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from .file_names import INDEX_SUFFIX, TORCH_SUFFIXES
from .hub_address import DEFAULT_REVISION, HubAddress, parse_uri
from .hub_errors import UnreachableError, no_space, not_a_hub, one_line_errors

RECORD_SUFFIX = ".sha256"

Component = Literal["model", "vae", "text-encoder"]
# (file under way, bytes there of all files, bytes of all files)
OnProgress = Callable[[str, int, int], None]

# What an address without a path means for each network: never the whole repository.
_DEFAULT_PATHS: dict[Component, str] = {"model": "dit", "vae": "vae", "text-encoder": ""}
# What the readers of a folder open: weights, configs, tokenizers.
_READ_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", *TORCH_SUFFIXES)
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class HubFile:
    """One file of a repository: path in it, bytes, and the hash that the hub gives: of large files sha256, else git's."""

    path: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class DownloadPlan:
    """The files that :func:`download` fetches and checks, as they were at ``commit``.

    ``address`` names the file or folder that is the result, ``component`` the network it is for, if known.
    """

    address: HubAddress
    commit: str
    files: tuple[HubFile, ...]
    component: Component | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


# The published weights by the names that `download` takes (docs/model.md).
BUNDLES: dict[str, tuple[HubAddress, Component]] = {
    "streaming-2b": (HubAddress("Efficient-Large-Model/SANA-Streaming", "dit/sana_streaming_ar.pth"), "model"),
    "bidirectional-2b": (
        HubAddress("Efficient-Large-Model/SANA-Streaming_bidirectional", "dit/sana_bidirectional_short.pth"),
        "model",
    ),
    "vae": (HubAddress("Lightricks/LTX-2", "vae"), "vae"),
    "causal-vae": (HubAddress("Efficient-Large-Model/SANA-Streaming", "ltx2_causal_vae_0516"), "vae"),
    "text-encoder": (HubAddress("Efficient-Large-Model/gemma-2-2b-it"), "text-encoder"),
}


def resolve_uri(uri: str | Path, component: Component | None = None, on_progress: OnProgress | None = None) -> Path:
    """The local path of ``uri``: itself, or for an ``hf://`` address the file or folder in the hub's cache.

    Fetches what is not there yet. ``component`` says which network it is for, so that of a folder only the files that its
    reader opens are fetched, and of a whole repository only that network. Offline, or when the hub gives no answer, the
    cached files are taken as they are. Raises InputError, as :func:`plan_download` and :func:`download` do.
    """
    address = parse_uri(str(uri))
    if address is None:
        return Path(uri)
    _check_library(address)
    try:
        plan = _plan(address, component)
    except UnreachableError:
        cached = resolve_cached(address, component)
        if cached is None:
            raise
        return cached
    return download(plan, on_progress=on_progress)


def plan_download(name: str) -> DownloadPlan:
    """What to fetch for a name in `BUNDLES` or an ``hf://`` address; asks the hub for names, sizes and hashes only.

    Raises InputError for another name, a repository, revision or path that is not there or not open to this user, a whole
    repository, and a hub that is out of reach or offline.
    """
    address, component = BUNDLES.get(name) or (parse_uri(name), None)
    if address is None:
        raise InputError(f"{name!r} is nothing to download; choose one of {', '.join(BUNDLES)} or an hf:// address")
    _check_library(address)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or use what is there")
    return _plan(address, component)


def check_access(plan: DownloadPlan) -> None:
    """InputError unless the hub would send this user the files of ``plan``; no content is fetched."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    file = plan.files[0]
    with one_line_errors(plan.address.at(file.path)):
        get_hf_file_metadata(hf_hub_url(plan.address.repo, file.path, revision=plan.commit))


def remaining(plan: DownloadPlan, to: str | Path | None = None) -> tuple[HubFile, ...]:
    """The files of ``plan`` that :func:`download` would still fetch: those not there whole and checked."""
    return tuple(file for file in plan.files if _present(plan, file, to) is None)


def download(plan: DownloadPlan, to: str | Path | None = None, on_progress: OnProgress | None = None) -> Path:
    """Fetches what :func:`remaining` lists, into the hub's cache or below ``to``; returns the file or folder planned.

    Below ``to`` files keep their path in the repository, so that ``--model DIR`` finds all three networks; a text encoder
    from a repository's root goes to ``to/text_encoder``. Every file is compared with the hub's hash, removed if it is
    another, and its sha256 is written beside it as ``NAME.sha256`` (``sha256sum -c`` reads it).

    A connection that breaks is taken up where it broke as long as `huggingface_hub` keeps trying. After it gave up, or the
    program ended, files that are whole stay; the broken one goes on at the next call with versions of the library before
    1.0, and starts again with those of today, which never let two processes write to one file.

    ``on_progress`` may raise to stop. Without it the library shows its own bars. Raises InputError for a full disk
    (before the first byte where the free space is known), a lost connection, a refusal, and contents that differ.
    """
    missing = remaining(plan, to)
    _check_space(plan, missing, to)
    done = plan.total_bytes - sum(file.size for file in missing)
    for file in missing:
        path = _fetch(plan, file, to, _meter(file, done, plan.total_bytes, on_progress))
        _verify(plan, file, path)
        done += file.size
        if on_progress is not None:
            on_progress(file.path, done, plan.total_bytes)
    first = _present(plan, plan.files[0], to)
    if first is None:
        raise InputError(f"{plan.address}: {plan.files[0].path} went away while the rest was fetched; run it again")
    # From a file at repository/a/b/file back to what the plan names.
    root = first.parents[plan.files[0].path.count("/")]
    return root / plan.address.path


def _check_library(address: HubAddress) -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"{address}: downloads need a package that is not installed: pip install huggingface_hub")


def _with_path(address: HubAddress, component: Component | None) -> HubAddress:
    if address.path or component is None:
        return address
    return address.at(_DEFAULT_PATHS[component])


def _plan(address: HubAddress, component: Component | None) -> DownloadPlan:
    from huggingface_hub import HfApi, constants

    address = _with_path(address, component)
    if constants.HF_HUB_OFFLINE:
        raise UnreachableError(
            f"{address} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: unset it"
        )
    with one_line_errors(address):
        try:
            info = HfApi().model_info(
                address.repo,
                revision=address.revision or DEFAULT_REVISION,
                files_metadata=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except (KeyError, TypeError) as error:
            raise InputError(not_a_hub(address)) from error
    listed = {
        sibling.rfilename: HubFile(
            sibling.rfilename,
            (sibling.lfs.size if sibling.lfs else sibling.size) or 0,
            sibling.lfs.sha256 if sibling.lfs else None,
            sibling.blob_id,
        )
        for sibling in info.siblings or ()
    }
    if info.sha is None:
        raise InputError(not_a_hub(address))
    names = _select(address, listed, component)
    if not names:
        inside = ", ".join(sorted(listed)[:10]) + (", ..." if len(listed) > 10 else "")
        raise InputError(
            f"{address}: there is no such file or folder in the repository; it holds {inside or 'no files'}"
        )
    return DownloadPlan(address, info.sha, tuple(listed[name] for name in names), component)


def _select(address: HubAddress, listed: Iterable[str], component: Component | None) -> list[str]:
    """The names among ``listed`` that ``address`` means, with what their reader wants beside them."""
    names, path = sorted(listed), address.path
    if path in names:
        folder = path[: path.rfind("/") + 1]
        beside = [f"{folder}config.json"] if path.endswith((".safetensors", INDEX_SUFFIX)) else []
        stem = path.removesuffix(INDEX_SUFFIX)
        shards = [name for name in names if stem != path and name.startswith(stem) and name.endswith(".safetensors")]
        return [path, *(name for name in beside if name in names), *shards]
    if not path and component != "text-encoder":
        raise InputError(f"{address} is a whole repository; add the path of the file or folder that is meant")
    below = [name for name in names if name.startswith(f"{path}/") or (not path and "/" not in name)]
    if component is None:
        return below
    below = [name for name in below if name.endswith(_READ_SUFFIXES)]
    if any(name.endswith(".safetensors") for name in below):
        below = [name for name in below if not name.endswith(TORCH_SUFFIXES)]
    return below


def resolve_cached(address: HubAddress, component: Component | None) -> Path | None:
    """What ``address`` means among the files of the hub's cache, None where it means none of them; asks nobody."""
    _check_library(address)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    address = _with_path(address, component)
    try:
        snapshot = Path(
            snapshot_download(address.repo, revision=address.revision or None, allow_patterns=[], local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    names = _select(address, files, component)
    # A download that was stopped may have come as far as the small files.
    useful = (".safetensors", *TORCH_SUFFIXES) if component else ""
    return snapshot / address.path if any(name.endswith(useful) for name in names) else None


def _local(plan: DownloadPlan, file: HubFile, to: str | Path | None) -> Path | None:
    """Where ``file`` is, whatever it holds; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    if to is not None:
        path = _folder(plan, to) / file.path
        return path if path.is_file() else None
    cached = try_to_load_from_cache(plan.address.repo, file.path, revision=plan.commit)
    return Path(cached) if isinstance(cached, str) else None


def _present(plan: DownloadPlan, file: HubFile, to: str | Path | None) -> Path | None:
    """Where ``file`` is, whole and checked; None where it is not."""
    path = _local(plan, file, to)
    if path is None or path.stat().st_size != file.size:
        return None
    return path if _recorded(file, path) or _matches(file, path) else None


def _folder(plan: DownloadPlan, to: str | Path) -> Path:
    return Path(to) / "text_encoder" if plan.component == "text-encoder" and not plan.address.path else Path(to)


def destination(plan: DownloadPlan, to: str | Path | None = None) -> Path:
    """The folder that the files of ``plan`` keep their paths below, in the hub's cache or below ``to``."""
    if to is not None:
        return _folder(plan, to)
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = repo_folder_name(repo_id=plan.address.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / repository / "snapshots" / plan.commit


def storage(to: str | Path | None = None) -> Path:
    """The folder that downloads go to, which may not be there yet: ``to``, else the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE if to is None else to).absolute()


def free_bytes(folder: Path) -> int:
    """The free space where ``folder`` is, or will be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _record(path: Path) -> Path:
    return path.with_name(path.name + RECORD_SUFFIX)


def _recorded(file: HubFile, path: Path) -> bool:
    """Whether the sha256 written beside ``path`` is the hub's, and the file has not changed since."""
    record = _record(path)
    if file.sha256 is None or not record.is_file() or record.stat().st_mtime < path.stat().st_mtime:
        return False
    return record.read_text(encoding="utf-8").split(" ")[0] == file.sha256


def _matches(file: HubFile, path: Path) -> bool:
    """Whether the contents of ``path`` have the hub's hash; if so, their sha256 is written beside them."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha256.update(block)
            if file.sha256 is None:
                git.update(block)
    digest = sha256.hexdigest()
    if file.sha256 not in (None, digest) or (file.sha256 is None and file.blob_id not in (None, git.hexdigest())):
        return False
    # A cache that several users share may be read-only: it is then hashed each time.
    with contextlib.suppress(PermissionError):
        _record(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return True


def _verify(plan: DownloadPlan, file: HubFile, path: Path) -> None:
    if path.stat().st_size == file.size and _matches(file, path):
        return
    from huggingface_hub import constants

    for wrong in (_record(path), path.resolve(), path):
        wrong.unlink(missing_ok=True)
    raise InputError(
        f"{plan.address.at(file.path)}: what {constants.ENDPOINT} sent is not the file that it lists (sha256 or size differ) "
        "and was removed; download it again, and if it happens again use another HF_ENDPOINT or network"
    )


def _fetch(plan: DownloadPlan, file: HubFile, to: str | Path | None, meter: type | None) -> Path:
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {} if to is None else {"local_dir": _folder(plan, to)}
    # What is there is not the file, though the library may take it for it.
    options["force_download"] = _local(plan, file, to) is not None
    # Early versions of the library show their own bars only.
    if meter is not None and "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        options["tqdm_class"] = meter
    # By branch, not by commit, since only then the cache notes what the branch is: offline it is found by that name.
    revision = plan.address.revision or DEFAULT_REVISION
    with one_line_errors(plan.address.at(file.path)):
        path = Path(hf_hub_download(plan.address.repo, file.path, revision=revision, **options))
    if to is None and plan.commit not in path.parts:
        raise InputError(f"{plan.address}: the repository changed while it was downloaded; download it again")
    return path


def _meter(file: HubFile, done: int, total: int, on_progress: OnProgress | None) -> type | None:
    """A progress bar that draws nothing and reports to ``on_progress``."""
    if on_progress is None:
        return None
    from tqdm import tqdm

    report = on_progress

    class Meter(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.here = int(options.get("initial") or 0)
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            self.here += int(n or 0)
            report(file.path, done + min(self.here, file.size), total)

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which the library counts apart where it joins files from pieces."""

    return Meter


def _check_space(plan: DownloadPlan, missing: Iterable[HubFile], to: str | Path | None) -> None:
    needed = sum(file.size for file in missing)
    if needed > (free := free_bytes(storage(to))):
        raise InputError(no_space(plan.address, f" {in_units(needed)} there, {in_units(free)} are free"))


def in_units(size: int) -> str:
    """Bytes for people, decimal: ``4.52 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"
