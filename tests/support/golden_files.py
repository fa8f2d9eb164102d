"""Where the reference vectors are and how to read them. SANA_GOLDEN names another folder with the same files."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

GOLDEN = Path(os.environ.get("SANA_GOLDEN") or Path(__file__).parents[1] / "golden")


def load(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config, tensors) of ``GOLDEN/name``; config is empty where the file carries none."""
    with safe_open(GOLDEN / name, framework="pt") as file:
        config = json.loads((file.metadata() or {}).get("config", "{}"))
        return config, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def load_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict that a golden file carries under ``weights.``."""
    return {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
