"""LoRA files with an effect, written by the trainer's own code."""

from pathlib import Path

import torch
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.training.config import LoraSettings
from sana_streaming.sana_core.training.lora import Lora


def write_lora(model: SanaStreamingDiT, path: Path, seed: int = 0, size: float = 0.3) -> Path:
    """For ``model``, of the split layout, on which the LoRA's hooks stay."""
    lora = Lora(model, LoraSettings(rank=2, alpha=6.0), seed)
    for _, pair in lora.layers():
        pair.up.data.normal_(0, size, generator=torch.Generator().manual_seed(seed + 7))
    lora.save(path, torch.float32)
    return path
