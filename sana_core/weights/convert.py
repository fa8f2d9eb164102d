"""Any weight file of the transformer or the VAE into one safetensors file that says what it is.

The only reader that lets a pickle build numpy arrays, since training files hold a random state beside their weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import DiTConfig, read_json
from ..errors import CheckpointError, InputError
from ..paths import check_distinct, check_target
from ..precision.apply import apply_plan, is_quantized, quantized_state
from ..precision.calibration import MADE_UP, calibrated
from ..precision.plan import UNQUANTIZED, Plan, choose_plan
from ..precision.report import Report
from .checkpoint import INDEX_SUFFIX, STORED_DTYPES, read_checkpoint
from .dit import DEAD_KEYS, FINGERPRINT, build_dit, checked_config, dit_file, load_quantized, official_shapes
from .safetensors_file import as_bytes, write_safetensors
from .vae import DecoderChoice, read_vae, vae_file

# (file under way, bytes read or written of all, bytes of all)
OnProgress = Callable[[str, int, int], None]

_VAE_KEYS = ("encoder.", "decoder.", "vae.encoder.", "vae.decoder.")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` wrote: ``variant`` is streaming, bidirectional or vae; ``sha256`` is the source's.

    ``precision`` is None for a file that is not quantized, and ``calibration`` where no input scale was made up for it.
    """

    target: Path
    source: Path
    variant: str
    config: dict[str, Any]
    sha256: str
    num_tensors: int
    source_dtypes: tuple[torch.dtype, ...]
    source_bytes: int
    dtypes: tuple[torch.dtype, ...]
    num_bytes: int
    precision: Report | None = None
    calibration: str = ""


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    *,
    decoder: DecoderChoice = "auto",
    precision: Plan | str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Conversion:
    """Writes the weights of ``source`` to the safetensors file ``target``, which is replaced when it is whole.

    ``source`` is what :func:`load_dit` or :func:`load_vae` reads, or a training file with numpy arrays beside its weights.
    The target holds the release's keys (of a VAE diffusers') in ``dtype``, or each tensor as it is stored, and the metadata
    ``format`` pt, ``source`` (its file name), ``sha256`` (of the source; of shards one after another, by name),
    ``variant`` and ``config`` (JSON). Equal sources give equal files. Memory holds one tensor at a time.

    ``precision`` (a plan, a preset, the file of a plan) quantizes a transformer: each layer then has ComfyUI's keys, every
    weight the shape of a Linear, the others are in ``dtype`` (default bfloat16), and memory holds the network. Input scales
    that the plan lacks are calibrated on made-up latents. The metadata gain ``precision``, the plan, and ``fingerprint``.

    ``decoder`` settles a VAE file without config, see :func:`load_vae`. ``on_progress`` may raise to stop; then, and on any
    error, the target stays as it was.

    Raises InputError for a target that cannot be written, is one of the source's files or does not fit on the disk, and
    CheckpointError for a source that is neither network or not wholly one, or has values that ``dtype`` cannot hold.
    """
    if dtype not in (None, *STORED_DTYPES):
        raise InputError(f"dtype {dtype} cannot be stored; choose float32, float16 or bfloat16, or none to keep it")
    target, file = Path(target), weights_file(Path(source))
    if target.suffix != ".safetensors":
        raise InputError(
            f"{target} is not named as a safetensors file; call it {target.with_suffix('.safetensors').name}"
        )
    check_target(target)
    state, config, variant = read_network(file, decoder, numpy_arrays=True)
    if any(value.is_meta for value in state.values()):
        raise InputError(
            f"{file} is quantized, which cannot be undone or changed; convert the file that it was made from"
        )
    parts = _parts(file)
    for part in parts:
        check_distinct({"the target": target, "the source": part})
    source_dtypes, num_tensors = _kinds(value.dtype for value in state.values()), len(state)
    quantized = _quantized(file, state, config, variant, precision, dtype) if precision is not None else None
    if quantized is not None:
        state = quantized.state
    stored = {key: value.dtype if quantized else _stored_as(value, dtype) for key, value in state.items()}
    written = sum(value.numel() * stored[key].itemsize for key, value in state.items())
    if written > (free := shutil.disk_usage(target.parent).free):
        raise InputError(f"{target}: {written:,} bytes are to be written, {free:,} are free; choose another disk")
    source_bytes = sum(part.stat().st_size for part in parts)
    count = _Count(source_bytes + written, on_progress)
    sha256 = _sha256(parts, count)
    metadata = {
        "config": json.dumps(config),
        "format": "pt",
        "sha256": sha256,
        "source": file.name,
        "variant": variant,
    } | (quantized.metadata if quantized else {})
    _write(target, state, stored, metadata, count)
    return Conversion(
        target=target,
        source=file,
        variant=variant,
        config=config,
        sha256=sha256,
        num_tensors=num_tensors,
        source_dtypes=source_dtypes,
        source_bytes=source_bytes,
        dtypes=_kinds(stored.values()),
        num_bytes=target.stat().st_size,
        precision=quantized.report if quantized else None,
        calibration=quantized.calibration if quantized else "",
    )


class _Quantized(NamedTuple):
    state: dict[str, torch.Tensor]
    metadata: dict[str, str]
    report: Report
    calibration: str


def _quantized(
    file: Path,
    state: Mapping[str, torch.Tensor],
    values: dict[str, Any],
    variant: str,
    precision: Plan | str | Path,
    dtype: torch.dtype | None,
) -> _Quantized | None:
    """What to write of a transformer under a plan; None where the plan quantizes nothing. InputError for a VAE."""
    if variant == "vae":
        raise InputError(f"{file} is a VAE; precision plans are for transformers: leave --precision out")
    config = DiTConfig.from_dict(values)
    plan = precision if isinstance(precision, Plan) else choose_plan(precision, config)
    plan.check(config)
    if all(kind == UNQUANTIZED for kind in plan.formats.values()):
        return None
    model = build_dit(state, config, layout=plan.layout(config), dtype=dtype or torch.bfloat16)
    complete = calibrated(model, plan)
    # What the device that converts is fast in says nothing of where the file will be used.
    report = apply_plan(model, complete, how="dequantized")
    metadata = {"precision": json.dumps(complete.to_dict()), FINGERPRINT: model.fingerprint}
    return _Quantized(quantized_state(model), metadata, report, "" if complete is plan else MADE_UP)


class _Count:
    """Bytes done so far, told to whoever listens."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def add(self, path: Path, size: int) -> None:
        self.done += size
        if self.on_progress is not None:
            self.on_progress(path.name, self.done, self.total)


def weights_file(source: Path, *, first: bool = False) -> Path:
    """The weight file, or index of shards, that ``source`` names: itself, or of a folder the one network in it.

    ``first`` takes the transformer where a folder holds both. Raises CheckpointError for a folder with none, or otherwise
    with both.
    """
    if not source.is_dir():
        return source
    # In order, without those found twice.
    found: dict[Path, None] = {}
    for find in (dit_file, vae_file):
        with contextlib.suppress(CheckpointError):
            found[find(source)] = None
    if first and found:
        return next(iter(found))
    if len(found) != 1:
        what = "more than one network" if found else "no weights of a transformer or a VAE"
        raise CheckpointError(f"{source} holds {what}; name the weight file itself")
    return next(iter(found))


def read_network(
    file: Path, decoder: DecoderChoice = "auto", *, numpy_arrays: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """(state dict, config, variant) of a weight file, checked against the network that it is; variants as in `Conversion`.

    Of a quantized transformer the state dict is that of the original, shapes without values. Raises CheckpointError for a
    file that is neither network or not wholly one.
    """
    state, metadata = read_checkpoint(file, numpy_arrays=numpy_arrays)
    if any(key.startswith(_VAE_KEYS) for key in state):
        vae_state, vae_config = read_vae(file, decoder)
        return vae_state, vae_config.to_dict(), "vae"
    if is_quantized(state):
        quantized = load_quantized(state, metadata, file).config
        sizes = {key: shape for key, shape in official_shapes(quantized).items() if key not in DEAD_KEYS}
        blank = {key: torch.empty(shape, device="meta") for key, shape in sizes.items()}
        return blank, quantized.to_dict(), quantized.variant
    config = checked_config(state, metadata, file)
    return state, config.to_dict(), config.variant


def _parts(file: Path) -> list[Path]:
    """The files that the weights are in."""
    if not file.name.endswith(INDEX_SUFFIX):
        return [file]
    return [file.with_name(shard) for shard in sorted(set(read_json(file)["weight_map"].values()))]


def _kinds(dtypes: Iterable[torch.dtype]) -> tuple[torch.dtype, ...]:
    return tuple(sorted(set(dtypes), key=str))


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
    unfinished = target.with_name(target.name + ".part")
    try:
        with unfinished.open("wb") as stream:
            write_safetensors(
                stream,
                state,
                metadata,
                stored=stored,
                to_bytes=lambda key, value: _as_bytes(key, value, stored[key]),
                on_bytes=lambda size: count.add(target, size),
            )
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
    return as_bytes(converted)
