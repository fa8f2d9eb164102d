"""A transformer whose widths every quantized format takes, inputs for it, and the files it is read from."""

from pathlib import Path

import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.weights.dit import save_dit
from sana_streaming.sana_core.weights.random_init import random_dit

CONFIG = DiTConfig(
    depth=4,
    hidden_size=96,
    num_heads=2,
    in_channels=8,
    source_channels=8,
    caption_channels=24,
    max_text_tokens=12,
    mlp_ratio=2.0,
    softmax_layers=(3,),
)


def small_dit(layout: str = "split", dtype: torch.dtype = torch.float32) -> SanaStreamingDiT:
    return random_dit(CONFIG, 0, layout=layout, dtype=dtype)


def write(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    return save_dit(small_dit(dtype=dtype), folder)


@torch.inference_mode()
def velocity(model: SanaStreamingDiT, batch: int = 2) -> torch.Tensor:
    """One pass over the same made-up inputs on every call."""
    # On the CPU the last bits of a product depend on where in memory its operands start.
    model._apply(lambda value: value.clone())
    draw = torch.Generator().manual_seed(3)
    x, source = (
        torch.randn(batch, size, 2, 3, 5, generator=draw) for size in (CONFIG.in_channels, CONFIG.source_channels)
    )
    embeds = torch.randn(batch, 7, CONFIG.caption_channels, generator=draw)
    return model(x, torch.tensor([893] * batch), source, model.prompt_context(embeds))[0]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """RMS of the difference over RMS of ``want``."""
    return ((got.float() - want.float()).norm() / want.float().norm()).item()
