"""How far the network is from float32 with kernels and without, shared by its tests; as a script, under triton's interpreter.

The script prints one JSON object per comparison. It is a process of its own because triton reads TRITON_INTERPRET once.
"""

import copy
import json
import math
from collections.abc import Callable

import compare
import golden_dit
import torch
from gdn_cases import interpreter_trouble
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.dit import BlockState, SanaStreamingDiT
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs

Run = Callable[[SanaStreamingDiT], dict[str, torch.Tensor]]
FRAMES, PROMPT_TOKENS, TIMESTEP = 3, 24, 743.0


def sqnr(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Decibels of the truth over the difference; NaN in ``got`` gives NaN."""
    return -20 * math.log10(compare.relative_rms(got, truth))


def losses(config: DiTConfig, dtype: torch.dtype, grid: tuple[int, int], device: str = "cpu") -> dict[str, float]:
    """By how many decibels kernels lower the SQNR against float32, for the velocity and the result of every block.

    One pass in mid-stream; all read the same weights and the same earlier chunk, which float32 gave.
    """
    narrow = random_dit(config, device=device, dtype=dtype)
    wide = copy.deepcopy(narrow).float()
    wide.dtype = torch.float32
    wide.use_kernels("eager")
    run = second_chunk(wide, grid, device)
    truth = run(wide)
    narrow.use_kernels("eager")
    plain = run(narrow)
    narrow.use_kernels("triton")
    fused = run(narrow)
    return {name: sqnr(plain[name], truth[name]) - sqnr(fused[name], truth[name]) for name in truth}


def second_chunk(wide: SanaStreamingDiT, grid: tuple[int, int], device: str) -> Run:
    """A pass over the second chunk of a stream, given the network; the first went through ``wide``."""
    config = wide.config
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    noisy, source = normal(2, 1, config.in_channels, FRAMES, *grid), normal(2, 1, config.source_channels, FRAMES, *grid)
    embeds, timestep = normal(1, PROMPT_TOKENS, config.caption_channels), torch.tensor([TIMESTEP], device=device)
    prompt = wide.prompt_context(embeds)
    _, state = wide(noisy[0], torch.zeros_like(timestep), source[0], prompt)

    def run(model: SanaStreamingDiT) -> dict[str, torch.Tensor]:
        seen = {}
        hooks = [
            block.register_forward_hook(lambda *call, name=f"block {index}": seen.update({name: call[-1][0]}))
            for index, block in enumerate(model.blocks)
        ]
        positions = model.positions(FRAMES, FRAMES, *grid, noisy.device)
        context, earlier = model.prompt_context(embeds), narrowed(state, model)
        velocity, _ = model(noisy[1], timestep, source[1], context, earlier, positions)
        for hook in hooks:
            hook.remove()
        return seen | {"velocity": velocity}

    return run


def narrowed(state: list[BlockState], model: SanaStreamingDiT) -> list[BlockState]:
    """As the network keeps it: in its dtype but for the memories of the gated delta rule."""
    return [
        BlockState(
            tuple(part.to(model.dtype) for part in block.memory) if model.config.is_softmax(index) else block.memory,
            block.frame.to(model.dtype),
        )
        for index, block in enumerate(state)
    ]


def golden_forward() -> float:
    """Largest difference of the velocity from the official one."""
    _, tensors, model = golden_dit.load("bidirectional_forward")
    model.use_kernels("triton")
    prompt = model.prompt_context(tensors["input.y"].squeeze(1), tensors["input.mask"])
    velocity, _ = model(tensors["input.x"], tensors["input.timestep"], tensors["input.source"], prompt)
    return (velocity - tensors["output.v"]).abs().max().item()


def golden_stream() -> float:
    """Largest difference of the second chunk's velocity from the official one, behind the state of the first."""
    case, tensors, model = golden_dit.load("streaming_forward")
    model.use_kernels("triton")
    prompt = model.prompt_context(tensors["input.y"].squeeze(1), tensors["input.mask"])
    first, second, end = case["chunk_indices"][:3]
    clean, source, x = (tensors[f"input.{name}"] for name in ("clean", "source", "x"))
    timestep = tensors["input.timestep"].expand(x.shape[0])
    earlier, later = slice(first, second), slice(second, end)
    _, state = model(clean[:, :, earlier], torch.zeros_like(timestep), source[:, :, earlier], prompt)
    positions = model.positions(second, end - second, *x.shape[3:], x.device)
    velocity, _ = model(x[:, :, later], timestep, source[:, :, later], prompt, state, positions)
    return (velocity - tensors[f"{case['variants'][0]}.chunk1.output"]).abs().max().item()


def main() -> None:
    torch.set_num_threads(1)
    if trouble := interpreter_trouble():
        print(json.dumps({"name": "trouble", "reason": trouble}))
        return
    with torch.no_grad():
        toy = losses(toy_configs(8)["dit"], torch.float16, (4, 5))
        print(json.dumps({"name": "losses", "decibels": toy}), flush=True)
        for name, worst in (("forward", golden_forward), ("stream", golden_stream)):
            print(json.dumps({"name": name, "difference": worst()}), flush=True)


if __name__ == "__main__":
    main()
