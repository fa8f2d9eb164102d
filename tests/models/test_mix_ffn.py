"""The MixFFN against its formulas in plain PyTorch, and which convolutions its kernel may stand in for."""

import pytest
import torch
import torch.nn.functional as F
import toys
from sana_streaming.sana_core.models.embeddings import RMSNorm
from sana_streaming.sana_core.models.mix_ffn import MixFFN
from sana_streaming.sana_core.weights.random_init import randomize

CONFIG = toys.CONFIGS["dit"]
GRID = (2, 3)


class Doubling(torch.nn.Conv2d):
    """A layer whose call does more than its weights say."""

    def forward(self, x):
        return 2 * super().forward(x)


class Operations:
    Linear, Conv2d = torch.nn.Linear, Doubling


def mix_ffn(operations=torch.nn, **factory):
    mlp = MixFFN(CONFIG, operations, **factory)
    randomize(mlp, 0)
    return mlp


def inputs(num_frames, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, num_frames, GRID[0] * GRID[1], CONFIG.hidden_size, generator=generator)
    previous = torch.randn(2, 1, GRID[0] * GRID[1], CONFIG.hidden_size, generator=generator)
    return x.to(dtype), previous.to(dtype)


def by_hand(mlp, x, previous):
    """Frame by frame: the one before, the frame itself, the one behind."""
    hidden = F.silu(mlp.inverted_conv(x)).flatten(0, 1).unflatten(1, GRID).movedim(-1, 1)
    hidden = mlp.depth_conv.conv(hidden).movedim(1, -1).flatten(1, 2).unflatten(0, x.shape[:2])
    value, gate = hidden.chunk(2, -1)
    e = mlp.point_conv(value * F.silu(gate))
    zero = torch.zeros_like(e[:, 0])
    frames = [zero if previous is None else previous[:, 0], *e.unbind(1), zero]
    triples = [torch.cat(frames[t : t + 3], -1) for t in range(x.shape[1])]
    return e + mlp.t_conv(torch.stack(triples, 1)), e[:, -1:]


@pytest.mark.parametrize("kernels", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_output_and_carried_frame_to_the_bit(carried, num_frames, dtype, kernels):
    mlp, (x, previous) = mix_ffn(dtype=dtype), inputs(num_frames, dtype)
    mlp.kernels = kernels
    previous = previous if carried else None
    for got, expected in zip(mlp(x, GRID, previous), by_hand(mlp, x, previous), strict=True):
        assert got.equal(expected)


def test_gradients_reach_input_carried_frame_and_weights():
    mlp, (x, previous) = mix_ffn(dtype=torch.float64), inputs(3, torch.float64)
    tensors = [x.requires_grad_(), previous.requires_grad_(), *mlp.parameters()]
    gradients = []
    for forward in (lambda: mlp(x, GRID, previous), lambda: by_hand(mlp, x, previous)):
        out, carried = forward()
        gradients.append(torch.autograd.grad(out.square().sum() + carried.sum(), tensors))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
        assert expected.abs().sum() > 0


@pytest.mark.parametrize("kernels", ["auto", "eager", "triton"])
def test_a_convolution_of_other_operations_is_called_itself(kernels):
    mlp, (x, previous) = mix_ffn(Operations), inputs(2)
    mlp.kernels = kernels
    assert mlp(x, GRID, previous)[0].equal(by_hand(mlp, x, previous)[0])


def test_kernels_that_cannot_run_say_why():
    mlp, norm = mix_ffn(), RMSNorm(8, 1e-5)
    mlp.kernels = norm.kernels = "triton"
    with torch.no_grad():
        with pytest.raises(ValueError, match="kernels 'triton' cannot run: .* use 'auto' or 'eager'"):
            mlp(inputs(1)[0], GRID, None)
        with pytest.raises(ValueError, match="kernels 'triton' cannot run: .* use 'auto' or 'eager'"):
            norm(torch.ones(2, 8))
