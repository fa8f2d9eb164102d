"""Writing safetensors files, tensor after tensor: the package of that name may want all of them in memory once more.

Files get the permissions that any new file of the user gets. What cannot be written is an OSError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.bool: "BOOL",
}

# The bytes of one tensor, by its key.
ToBytes = Callable[[str, torch.Tensor], memoryview]


def save_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes ``tensors``, of any device and memory layout, to ``path``, which is replaced when the new file is whole.

    Equal contents make equal files. The tensors may be mapped from the very file that is replaced.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as stream:
            write_safetensors(stream, tensors, metadata)
        unfinished.replace(path)
    except OSError as error:
        # A full disk is told without a name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_safetensors(
    stream: BinaryIO,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    stored: Mapping[str, torch.dtype] | None = None,
    to_bytes: ToBytes | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Writes a whole file to ``stream``.

    ``to_bytes`` gives each tensor in the dtype that ``stored`` says (default: as it is); ``on_bytes`` hears how many.
    """
    dtypes = stored or {key: value.dtype for key, value in tensors.items()}
    # Wide dtypes first, so that every tensor is aligned.
    keys = sorted(tensors, key=lambda key: (-dtypes[key].itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key in keys:
        start, end = end, end + tensors[key].numel() * dtypes[key].itemsize
        header[key] = {"dtype": _CODES[dtypes[key]], "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for key in keys:
        data = to_bytes(key, tensors[key]) if to_bytes else as_bytes(tensors[key])
        stream.write(data)
        if on_bytes is not None:
            on_bytes(len(data))


def as_bytes(value: torch.Tensor) -> memoryview:
    """The values of a tensor in order; a tensor on the CPU that is contiguous is not copied."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
