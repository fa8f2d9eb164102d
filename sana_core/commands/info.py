"""``info``: what a report of a bug needs to say of the machine. Names no file and no folder."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# What results and errors depend on, in the order in which it is told.
PACKAGES = (
    "sana-streaming",
    "triton",
    "comfy-kitchen",
    "transformers",
    "tokenizers",
    "safetensors",
    "av",
    "numpy",
    "einops",
    "huggingface_hub",
    "diffusers",
    "flash-linear-attention",
)
MISSING = "not installed"


def run(options: argparse.Namespace) -> int:
    found = describe()
    print(json.dumps(found, indent=2) if options.json else as_text(found), flush=True)
    return 0


def describe() -> dict[str, Any]:
    """Versions, devices, and which implementation ``auto`` takes on each; JSON values only."""
    import torch

    from ..benchmark.results import device_name

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    device = next((device for device in devices if not _unusable(device)), torch.device("cpu"))
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built for": _built_for(),
        "processor": device_name(torch.device("cpu")),
        "memory": _memory(),
        "GPUs": [_gpu(device) for device in devices],
        "kernels": _kernels(device),
        "formats": _formats(device),
        "packages": {name: _version(name) for name in PACKAGES},
        "FFmpeg": _ffmpeg(),
    }


def as_text(found: dict[str, Any]) -> str:
    """One line each; lists and groups with lines of their own."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {text}" for key, text in value.items())]
        elif isinstance(value, list):
            lines += [f"{name}:", *(f"  {text}" for text in value)] if value else [f"{name}: none"]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def _built_for() -> str:
    """What torch computes on beside the processor."""
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return "unknown: psutil is not installed"
    return f"{psutil.virtual_memory().total / 1e9:.1f} GB"


def _unusable(device: Any) -> str:
    """Why nothing can be computed there, as with a driver that is too old; empty where it can."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def _gpu(device: Any) -> str:
    import torch

    if why := _unusable(device):
        return f"{device}: cannot be used ({why})"
    found = torch.cuda.get_device_properties(device)
    free = torch.cuda.mem_get_info(device)[0]
    capability = f"compute capability {found.major}.{found.minor}"
    return f"{found.name}, {capability}, {found.total_memory / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free"


def _kernels(device: Any) -> str:
    """What ``auto`` takes there, and why not triton where it does not."""
    import torch

    from ...kernels.norms.triton_norms import obstacle

    why = obstacle(torch.zeros(1, 64, dtype=torch.bfloat16, device=device))
    return f"plain PyTorch: {why}" if why else "triton"


def _formats(device: Any) -> dict[str, str]:
    """Which of the formats of fewer bits the device multiplies in."""
    import torch

    from ..precision.formats import FORMATS
    from ..precision.plan import UNQUANTIZED
    from ..precision.probe import obstacle

    return {
        name: obstacle(kind, device, torch.bfloat16) or "may be fast; tried at the first use"
        for name, kind in FORMATS.items()
        if name != UNQUANTIZED
    }


def _ffmpeg() -> str:
    """Versions of the libraries that come with PyAV."""
    try:
        import av
    except ImportError as error:
        return f"PyAV cannot be imported ({type(error).__name__})"
    return ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in sorted(av.library_versions.items()))
