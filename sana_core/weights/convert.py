"""Any weight file of the transformer or the VAE into one safetensors file that says what it is.

The only reader that lets a pickle build numpy arrays, since training files hold a random state beside their weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import read_json
from ..errors import CheckpointError, InputError
from ..paths import check_distinct, check_target
from .checkpoint import INDEX_SUFFIX, STORED_DTYPES, read_checkpoint
from .dit import checked_config, dit_file
from .vae import DecoderChoice, read_vae, vae_file

# (file under way, bytes read or written of all, bytes of all)
OnProgress = Callable[[str, int, int], None]

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_VAE_KEYS = ("encoder.", "decoder.", "vae.encoder.", "vae.decoder.")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` wrote: ``variant`` is streaming, bidirectional or vae; ``sha256`` is the source's."""

    target: Path
    source: Path
    variant: str
    sha256: str
    num_tensors: int
    dtypes: tuple[torch.dtype, ...]
    num_bytes: int


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    *,
    decoder: DecoderChoice = "auto",
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Writes the weights of ``source`` to the safetensors file ``target``, which is replaced when it is whole.

    ``source`` is what :func:`load_dit` or :func:`load_vae` reads, or a training file with numpy arrays beside its weights.
    The target holds the release's keys (of a VAE diffusers') in ``dtype``, or each tensor as it is stored, and the metadata
    ``format`` pt, ``source`` (its file name), ``sha256`` (of the source; of shards one after another, by name),
    ``variant`` and ``config`` (JSON). Equal sources give equal files. Memory holds one tensor at a time.

    ``decoder`` settles a VAE file without config, see :func:`load_vae`. ``on_progress`` may raise to stop; then, and on any
    error, the target stays as it was.

    Raises InputError for a target that cannot be written, is one of the source's files or does not fit on the disk, and
    CheckpointError for a source that is neither network or not wholly one, or has values that ``dtype`` cannot hold.
    """
    if dtype not in (None, *STORED_DTYPES):
        raise InputError(f"dtype {dtype} cannot be stored; choose float32, float16 or bfloat16, or none to keep it")
    target, file = Path(target), _weights_file(Path(source))
    if target.suffix != ".safetensors":
        raise InputError(
            f"{target} is not named as a safetensors file; call it {target.with_suffix('.safetensors').name}"
        )
    check_target(target)
    state, config, variant = _read(file, decoder)
    parts = _parts(file)
    for part in parts:
        check_distinct({"the target": target, "the source": part})
    stored = {key: _stored_as(value, dtype) for key, value in state.items()}
    written = sum(value.numel() * stored[key].itemsize for key, value in state.items())
    if written > (free := shutil.disk_usage(target.parent).free):
        raise InputError(f"{target}: {written:,} bytes are to be written, {free:,} are free; choose another disk")
    count = _Count(sum(part.stat().st_size for part in parts) + written, on_progress)
    sha256 = _sha256(parts, count)
    metadata = {
        "config": json.dumps(config),
        "format": "pt",
        "sha256": sha256,
        "source": file.name,
        "variant": variant,
    }
    _write(target, state, stored, metadata, count)
    dtypes = tuple(sorted(set(stored.values()), key=str))
    return Conversion(target, file, variant, sha256, len(state), dtypes, target.stat().st_size)


class _Count:
    """Bytes done so far, told to whoever listens."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def add(self, path: Path, size: int) -> None:
        self.done += size
        if self.on_progress is not None:
            self.on_progress(path.name, self.done, self.total)


def _weights_file(source: Path) -> Path:
    """The weight file, or index of shards, that ``source`` names."""
    if not source.is_dir():
        return source
    found = set()
    for find in (dit_file, vae_file):
        try:
            found.add(find(source))
        except CheckpointError:
            continue
    if len(found) != 1:
        what = "more than one network" if found else "no weights of a transformer or a VAE"
        raise CheckpointError(f"{source} holds {what}; name the weight file itself")
    return found.pop()


def _read(file: Path, decoder: DecoderChoice) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """(state dict, config, variant) of a weight file, checked against the network that it is."""
    state, metadata = read_checkpoint(file, numpy_arrays=True)
    if any(key.startswith(_VAE_KEYS) for key in state):
        vae_state, vae_config = read_vae(file, decoder)
        return vae_state, vae_config.to_dict(), "vae"
    config = checked_config(state, metadata, file)
    return state, config.to_dict(), config.variant


def _parts(file: Path) -> list[Path]:
    """The files that the weights are in."""
    if not file.name.endswith(INDEX_SUFFIX):
        return [file]
    return [file.with_name(shard) for shard in sorted(set(read_json(file)["weight_map"].values()))]


def _stored_as(value: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    # Buffers that no network reads come in any dtype.
    return dtype or (value.dtype if value.dtype in STORED_DTYPES else torch.float32)


def _sha256(parts: list[Path], count: _Count) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                count.add(part, len(block))
    return digest.hexdigest()


def _write(
    target: Path,
    state: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
    count: _Count,
) -> None:
    """One safetensors file, tensor after tensor: the package of that name wants all of them in memory at once."""
    # Wide dtypes first, so that every tensor is aligned.
    keys = sorted(state, key=lambda key: (-stored[key].itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key in keys:
        start, end = end, end + state[key].numel() * stored[key].itemsize
        header[key] = {"dtype": _CODES[stored[key]], "shape": list(state[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = target.with_name(target.name + ".part")
    try:
        with unfinished.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for key in keys:
                data = _as_bytes(key, state[key], stored[key])
                stream.write(data)
                count.add(target, len(data))
        unfinished.replace(target)
    except OSError as error:
        raise InputError(
            f"{target}: writing failed ({error.strerror}) and left nothing behind; free some space, or choose another disk"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _as_bytes(key: str, value: torch.Tensor, dtype: torch.dtype) -> memoryview:
    converted = value.detach().to(dtype)
    if dtype is torch.float16 and value.dtype is not dtype and not torch.isfinite(converted).all():
        raise CheckpointError(f"{key} has values that float16 cannot hold; convert to bfloat16")
    return converted.contiguous().reshape(-1).view(torch.uint8).numpy().data
