"""Toy networks in memory and frames to feed them."""

from functools import cache

import torch
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.weights.random_init import RandomPrompts, random_dit, random_vae, toy_configs

SIZE = 64
CONFIGS = toy_configs(caption_channels=24)


@cache
def networks(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[SanaStreamingDiT, CausalVAE, RandomPrompts]:
    """Frozen, so one set serves every test."""
    prompts = RandomPrompts(24, max_tokens=12, num_tokens=7)
    return random_dit(CONFIGS["dit"], seed, dtype=dtype), random_vae(CONFIGS["vae"], seed, dtype=dtype), prompts


def frames(count: int, height: int = SIZE, width: int = SIZE, seed: int = 0) -> torch.Tensor:
    """uint8 [count, height, width, 3]: a soft pattern that moves."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(3, height + count, width + count, generator=generator)
    base = torch.nn.functional.avg_pool2d(base[None], 9, 1, 4)[0]
    base = (base - base.min()) / (base.max() - base.min()) * 255
    return torch.stack([base[:, i : i + height, i : i + width] for i in range(count)]).movedim(1, -1).to(torch.uint8)


def stream(total_frames: int | None = None, prompt: str = "make it snow", **options: object) -> EditStream:
    """A new stream of the toy networks at the smallest size; 2 steps unless told otherwise."""
    settings = StreamOptions(**{"steps": 2, **options})
    return EditStream(*networks(), prompt=prompt, height=SIZE, width=SIZE, total_frames=total_frames, options=settings)


def run(editor: EditStream, clip: torch.Tensor, pushes: list[int] | None = None) -> torch.Tensor:
    """Every edited pixel [F, 3, H, W] of ``clip`` pushed in pieces of the given sizes (None: all at once), then flushed."""
    out = []
    for piece in clip.split(pushes or [len(clip)]):
        out += [chunk.pixels for chunk in editor.push(piece)]
    out += [chunk.pixels for chunk in editor.flush()]
    return torch.cat(out)
