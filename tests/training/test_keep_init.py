"""The start that keeps the video: what it answers, and that everything can be learned from there."""

import compare
import pytest
import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.training.keep_init import keep_init
from tiny_training import gradients, seeded

TEXT = 6
# (hidden_size, num_heads, channels): the tightest first.
SIZES = [(10, 1, 4), (24, 2, 4), (48, 3, 2), (96, 2, 16)]


def network(hidden_size=24, num_heads=2, channels=4, source_channels=None, seed=0, layout="split"):
    config = DiTConfig(
        depth=3,
        hidden_size=hidden_size,
        num_heads=num_heads,
        caption_channels=TEXT,
        mlp_ratio=2.0,
        softmax_layers=(2,),
        pos_embed_size=1,
        in_channels=channels,
        source_channels=source_channels or channels,
    )
    model = SanaStreamingDiT(config, layout=layout).eval()
    keep_init(model, seed)
    return model


def inputs(channels):
    x, source = torch.randn(2, 2, channels, 4, 3, 5, generator=seeded(1))
    return x, source, torch.randn(2, 7, TEXT, generator=seeded(2))


def run(model, timesteps=(1000.0, 400.0), state=None):
    x, source, text = inputs(model.config.in_channels)
    velocity, after = model(x, torch.tensor(timesteps), source, model.prompt_context(text), state)
    return velocity, after, x - source


@pytest.mark.parametrize("layout", ["split", "fused"])
@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_velocity_is_noisy_minus_source(sizes, layout):
    """Smaller by what the inputs add to the constant in the last norm, and a little else from the timestep."""
    model = network(*sizes, layout=layout)
    velocity, after, difference = run(model)
    x, source, _ = inputs(sizes[2])
    energy = (x.square() + source.square()).sum(1, keepdim=True)
    expected = difference / (1 + 0.25 * energy / sizes[0]).sqrt()
    assert compare.relative_rms(velocity, expected) < 0.06
    assert compare.relative_rms(velocity, difference) < 0.25
    second, *_ = run(model, state=after)
    assert second.equal(velocity)


@torch.no_grad()
def test_a_video_that_is_its_source_stays():
    model = network()
    _, source, text = inputs(4)
    velocity, _ = model(source, torch.tensor([700.0, 0.0]), source, model.prompt_context(text))
    assert velocity.abs().max() < 0.12


@pytest.mark.parametrize("sizes", SIZES)
@torch.no_grad()
def test_every_branch_computes_and_adds_exactly_nothing(sizes):
    model = network(*sizes)
    branches, blocks, before_last = [], [], []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: blocks.append(out[0].equal(given[0])))
        for branch in (block.attn, block.cross_attn, block.mlp):
            branch.register_forward_hook(
                lambda _, given, out: branches.append(out[0] if isinstance(out, tuple) else out)
            )
        for last in (block.attn.proj, block.cross_attn.proj, block.mlp.point_conv.conv):
            last.register_forward_pre_hook(lambda _, given: before_last.append(given[0]))
    run(model)
    assert blocks == [True] * 3 and len(branches) == len(before_last) == 9
    assert all((out == 0).all() for out in branches)
    assert all(hidden.abs().max() > 1e-4 for hidden in before_last)


def test_a_gradient_reaches_every_branch():
    model = network()
    run(model)[0].square().mean().backward()
    found = gradients(model)
    for index in range(3):
        for last in ("attn.proj", "cross_attn.proj", "mlp.point_conv.conv"):
            assert found[f"blocks.{index}.{last}.weight"].abs().max() > 1e-5, (index, last)
    for name in ("x_embedder.proj", "final_layer.linear", "t_embedder.mlp.2", "t_embedder.mlp.0"):
        assert found[f"{name}.weight"].abs().max() > 0, name
    # The gates are open: what goes through them is not scaled away.
    for block in model.blocks:
        assert block.scale_shift_table.tolist() == [[float(row in (2, 5))] * 24 for row in range(6)]


def test_one_step_wakes_every_weight():
    """After the output projections have moved once, no parameter is left without a gradient."""
    model = network()
    for _ in range(2):
        model.zero_grad()
        velocity, after, difference = run(model)
        again, *_ = run(model, state=after)
        ((velocity - 0.5 * difference) + again.square()).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    for name, gradient in gradients(model).items():
        assert gradient.abs().max() > 0, name


@torch.no_grad()
def test_the_seed_decides():
    first, same, other = (network(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(value.equal(same[key]) for key, value in first.items())
    assert not first["x_embedder.proj.weight"].equal(other["x_embedder.proj.weight"])
    assert not first["blocks.0.attn.q.weight"].equal(other["blocks.0.attn.q.weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 8, "num_heads": 1}, "hidden_size 8 must be 10 or more, for 8 channels and a constant"),
        ({"channels": 12}, "hidden_size 24 must be 26 or more, for 24 channels and a constant"),
        ({"source_channels": 3}, "source_channels 3 must be in_channels, 4"),
    ],
)
def test_sizes_that_cannot_hold_it(changes, words):
    with pytest.raises(ValueError, match=words):
        network(**changes)
