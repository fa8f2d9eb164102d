"""The VAE on an NVIDIA GPU: memory formats, and the CUDA graphs of both directions."""

import pytest
import torch
from compare import relative_rms
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.weights.random_init import random_vae
from vae_norm_cases import SMALL_VAE as SMALL

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

LATENTS, CALLS = 3, 6
# A graph may run other algorithms of cuDNN than a call does, and those of float32 may be TF32.
TOLERANCES = {torch.float32: 0.01, torch.bfloat16: 0.05}
CASES = [(direction, dtype) for direction in ("encode", "decode") for dtype in TOLERANCES]


def network(dtype, graphs):
    vae: CausalVAE = random_vae(SMALL, device="cuda", dtype=dtype)
    if graphs:
        vae.use_graphs(num_latents=LATENTS)
    return vae


def stream(direction, seed=1):
    generator = torch.Generator().manual_seed(seed)
    step = SMALL.temporal_factor if direction == "encode" else 1
    sizes = [1] + [LATENTS * step] * CALLS
    shape = (3, sum(sizes), 32, 48) if direction == "encode" else (SMALL.latent_channels, sum(sizes), 8, 12)
    return torch.randn(1, *shape, generator=generator).cuda().split(sizes, 2)


def run(vae, direction, parts):
    state, results = None, []
    for part in parts:
        result, state = getattr(vae, direction)(part, state)
        results.append(result)
    return results, state


@pytest.mark.parametrize(("direction", "dtype"), CASES, ids=str)
def test_graphs_give_what_calls_give(direction, dtype):
    vae, parts = network(dtype, graphs=True), stream(direction)
    got, state = run(vae, direction, parts)
    expected, after = run(network(dtype, graphs=False), direction, parts)
    assert vae.captured_graphs == [direction] and state.keys() == after.keys()
    for result, want in zip(got, expected, strict=True):
        assert relative_rms(result, want) <= TOLERANCES[dtype]
    for path, frames in after.items():
        assert frames.shape == state[path].shape
        assert not frames.numel() or relative_rms(state[path], frames) <= TOLERANCES[dtype]


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_streams_on_two_cuda_streams_do_not_disturb_each_other(direction):
    vae = network(torch.bfloat16, graphs=True)
    inputs = [stream(direction, seed) for seed in (1, 2)]
    run(vae, direction, inputs[0])
    expected = [run(vae, direction, parts)[0] for parts in inputs]
    sides, states, got = [torch.cuda.Stream(), torch.cuda.Stream()], [None, None], [[], []]
    torch.cuda.synchronize()
    for parts in zip(*inputs, strict=True):
        for number, side in enumerate(sides):
            with torch.cuda.stream(side):
                result, states[number] = getattr(vae, direction)(parts[number], states[number])
                got[number].append(result)
    torch.cuda.synchronize()
    for number in (0, 1):
        for result, want in zip(got[number], expected[number], strict=True):
            assert relative_rms(result, want) <= TOLERANCES[torch.bfloat16]


def test_memory_is_flat_and_comes_back():
    vae, parts = network(torch.bfloat16, graphs=False), stream("encode")
    run(vae, "encode", parts)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    vae.use_graphs(num_latents=LATENTS)
    levels = []
    for _ in range(4):
        run(vae, "encode", parts)
        torch.cuda.synchronize()
        levels.append(torch.cuda.memory_allocated())
    assert len(set(levels)) == 1 and levels[0] > before
    vae.use_graphs(False)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


def test_weights_and_activations_have_adjacent_channels():
    vae, seen = network(torch.bfloat16, graphs=False), []
    assert vae.encoder.conv_out.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].stride(1)))
    _, state = run(vae, "encode", stream("encode"))
    _, decoded = run(vae, "decode", stream("decode"))
    assert set(seen) == {1}
    assert all(frames.stride(1) == 1 for frames in (*state.values(), *decoded.values()) if frames.numel())
