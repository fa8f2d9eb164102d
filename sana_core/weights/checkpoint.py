"""Reading weight files: containers, wrappers, strict key checks, fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import read_json
from ..errors import CheckpointError
from .file_names import INDEX_SUFFIX as INDEX_SUFFIX
from .file_names import TORCH_SUFFIXES as TORCH_SUFFIXES

STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What stands in a file's place when only a pointer to it, or a page about it, was fetched.
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer to the weights; run git lfs pull, or download the file itself",
    b"<!doctype html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}


def read_checkpoint(path: str | Path, *, numpy_arrays: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, safetensors metadata) of a weight file; tensors stay memory-mapped on the CPU where possible.

    Accepts a torch archive, a safetensors file or the index of a sharded one. Wrappers and prefixes are taken off by
    :func:`unwrap`; what is no tensor is left out. ``numpy_arrays`` also lets the unpickler build numpy arrays, which
    training files hold beside their weights, and nothing else. Raises CheckpointError for anything else.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    if path.name.endswith(INDEX_SUFFIX):
        content: Any = _read_shards(path)
    elif path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path, numpy_arrays)
    else:
        _require_file(path)
        raise CheckpointError(
            f"{path} is not a weight file that can be read; accepted are .safetensors, *{INDEX_SUFFIX}, "
            f"{', '.join(TORCH_SUFFIXES)}"
        )
    state = {key: value for key, value in unwrap(content, path).items() if isinstance(value, torch.Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no weights: no tensors under generator, state_dict or at the top, whose keys are "
            f"{', '.join(map(str, list(content)[:10]))}; EMA copies are not used"
        )
    return state, metadata


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of one safetensors file. Raises CheckpointError when it is missing, damaged or cut short."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def read_sizes(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file without their values, on the meta device. Raises as :func:`read_safetensors`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    return {key: torch.empty(size, device="meta") for key, size in sizes.items()}


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    _require_file(index)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; give the index of a sharded safetensors file")
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {shard!r} for {key}; shards must be .safetensors files beside the index: "
                "copy the index again"
            )
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= read_safetensors(index.with_name(shard))[0]
    if astray := sorted(tensors.keys() ^ weight_map.keys()):
        raise CheckpointError(
            f"{index} and its shards do not belong together: {len(astray)} keys are in one only, "
            f"{'; '.join(astray[:10])}{'; ...' if len(astray) > 10 else ''}; copy all files of one release again"
        )
    return tensors


def _read_torch(path: Path, numpy_arrays: bool) -> Any:
    _require_file(path)
    allowed = torch.serialization.safe_globals(_numpy_globals()) if numpy_arrays else contextlib.nullcontext()
    try:
        with warnings.catch_warnings(), allowed:
            # torch warns of pickle protocols that it reads all the same, or refuses below.
            warnings.simplefilter("ignore", UserWarning)
            # Only the zip form of a torch file can be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not numpy_arrays and re.search(r"GLOBAL numpy\.", str(error)):
            raise CheckpointError(
                f"{path} holds numpy arrays beside its weights, as training files do; make a plain weight file of it: "
                f"python -m sana_streaming convert {path} {path.with_suffix('.safetensors')}"
            ) from error
        raise CheckpointError(
            f"{path} is not a plain weight file: it is damaged or holds Python objects, which are never executed; "
            "use a file of tensors only"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # What a reader of pickles runs into depends on where the bytes go wrong.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a whole torch weight file ({reason}); copy or download it again"
        ) from error


def _numpy_globals() -> list[Any]:
    """All that the pickle of a random state's uint32 array names; numpy 1 called the module differently."""
    # What an unpickled array is rebuilt by has no public name.
    rebuild: Any = np.zeros(1).__reduce__()[0]
    spellings = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")]
    return [*spellings, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a weight file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; give the path of the weight file itself")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for mark, what in _NOT_WEIGHTS.items():
        if start.startswith(mark):
            raise CheckpointError(f"{path} is {what}")


def unwrap(checkpoint: Any, source: str | Path = "checkpoint") -> dict[str, Any]:
    """The state dict inside ``generator`` and ``state_dict`` wrappers, keys without ``model.`` and then ``module.``.

    The release's own reader leaves keys under ``state_dict`` as they are; here both prefixes go in every case
    (``docs/model.md``). EMA copies, critics and counters are left out.
    """
    for wrapper in ("generator", "state_dict"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise CheckpointError(f"{source} holds no weights; expected a mapping from names to tensors")
    state: dict[str, Any] = {}
    for key, value in checkpoint.items():
        name = str(key).removeprefix("model.").removeprefix("module.")
        if name in state:
            raise CheckpointError(f"{source} holds {name!r} twice, with and without a prefix")
        state[name] = value
    return state


def check_keys(
    expected: Mapping[str, tuple[int, ...]],
    got: Mapping[str, tuple[int, ...]],
    source: str | Path,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Raises one CheckpointError that names missing, surplus and misshapen keys, the first ten of each."""
    missing = [key for key in expected if key not in got and key not in optional]
    surplus = [key for key in got if key not in expected]
    misshapen = [
        f"{key} {tuple(got[key])}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in got and tuple(got[key]) != tuple(shape)
    ]
    problems = [
        f"{len(keys)} {kind}: {'; '.join(keys[:10])}{'; ...' if len(keys) > 10 else ''}"
        for kind, keys in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network it should be. " + " | ".join(problems))


def check_dtypes(state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Raises one CheckpointError that names the tensors stored as integers, in float8 or in float64."""
    odd = [f"{key} {value.dtype}" for key, value in state.items() if value.dtype not in STORED_DTYPES]
    if odd:
        raise CheckpointError(
            f"{source} stores {len(odd)} tensors as other than float32, float16 or bfloat16: "
            f"{'; '.join(odd[:10])}{'; ...' if len(odd) > 10 else ''}; use a file that is not quantized"
        )


def config_inside(metadata: Mapping[str, str], source: str | Path) -> dict[str, Any] | None:
    """The JSON object under the metadata key ``config``, None without that key. CheckpointError for anything else."""
    if "config" not in metadata:
        return None
    try:
        config = json.loads(metadata["config"])
    except ValueError as error:
        raise CheckpointError(
            f"{source} has metadata 'config' that is not JSON ({error}); copy or download it again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{source} has metadata 'config' that is {type(config).__name__}, not a JSON object; "
            "copy or download it again"
        )
    return config


def shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Short hash of names, shapes and a spread sample of values: tells networks apart without reading them whole."""
    digest = hashlib.sha256()
    for key in sorted(state):
        flat = state[key].detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 32)][:33].to("cpu", torch.float32)
        digest.update(json.dumps([key, list(state[key].shape)]).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
