"""The transformer against the official one, block by block and chunk by chunk."""

import compare
import golden_dit
import pytest
import torch
from sana_streaming.sana_core.models.dit import BlockState
from sana_streaming.sana_core.streaming.chunks import kept_chunks

ATOL = 2e-5
LAYOUTS = ["fused", "split"]


@pytest.mark.golden
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bidirectional_forward(layout):
    _, tensors, model = golden_dit.load("bidirectional_forward", layout)
    seen = {}
    for index, block in enumerate(model.blocks):
        for name, module in (("attn_out", block.attn), ("cross_attn_out", block.cross_attn), ("mlp_out", block.mlp)):
            module.register_forward_hook(_keep(seen, f"block{index}.{name}"))
        block.register_forward_hook(_keep(seen, f"block{index}.out"))
    model.x_embedder.register_forward_hook(_keep(seen, "x_embed"))
    model.t_embedder.register_forward_hook(_keep(seen, "t_embed"))
    model.t_block.register_forward_hook(_keep(seen, "t_block"))

    prompt = model.prompt_context(tensors["input.y"].squeeze(1), tensors["input.mask"])
    velocity, _ = model(tensors["input.x"], tensors["input.timestep"], tensors["input.source"], prompt)

    compare.assert_near(velocity, tensors["output.v"], ATOL, "velocity")
    compared = 0
    for name, value in seen.items():
        expected = tensors.get(f"intermediate.{name}")
        if expected is not None:
            compare.assert_near(value.reshape(expected.shape), expected, ATOL, name)
            compared += 1
    assert compared >= len(model.blocks) + 3


@pytest.mark.golden
@pytest.mark.parametrize("layout", LAYOUTS)
def test_streaming_forward(layout):
    """Each chunk reads what the official cache held and writes what the official cache got."""
    case, tensors, model = golden_dit.load("streaming_forward", layout)
    prompt = model.prompt_context(tensors["input.y"].squeeze(1), tensors["input.mask"])
    compared = 0
    for variant in case["variants"]:
        for chunk, (start, stop) in enumerate(zip(case["chunk_indices"], case["chunk_indices"][1:], strict=False)):
            prefix = f"{variant}.chunk{chunk}"
            if f"{prefix}.output" not in tensors:
                continue
            state = _official_state(tensors, case, variant, chunk)
            x, clean, source = (tensors[f"input.{n}"][:, :, start:stop] for n in ("x", "clean", "source"))
            positions = model.positions(start, stop - start, *x.shape[3:], x.device)
            timestep = tensors["input.timestep"].expand(x.shape[0])
            velocity, _ = model(x, timestep, source, prompt, state, positions)
            compare.assert_near(velocity, tensors[f"{prefix}.output"], ATOL, prefix)
            saved, written = model(clean, torch.zeros_like(timestep), source, prompt, state, positions)
            compare.assert_near(saved, tensors[f"{prefix}.output_save"], ATOL, f"{prefix} at 0")
            _compare_written(written, tensors, case, f"{prefix}.cache_out")
            compared += 1
    assert compared > len(case["variants"])


def _keep(seen, name):
    def hook(_module, _inputs, output):
        seen[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _official_state(tensors, case, variant, chunk):
    """The state that the official cache amounts to before ``chunk``."""
    if chunk == 0:
        return None
    state = []
    for index in range(case["depth"]):
        block = f"{_written(tensors, case, variant, chunk - 1)}.block{index}"
        frame = tensors[f"{block}.tconv"].permute(0, 2, 3, 1)
        if index in case["softmax_layer_indices"]:
            memory = _official_keys_values(tensors, case, variant, chunk, index)
        else:
            memory = (tensors[f"{block}.state_kv"], tensors[f"{block}.state_z"].squeeze(-1))
        state.append(BlockState(memory, frame))
    return state


def _written(tensors, case, variant, chunk):
    """Where the cache of ``chunk`` is: chunks that are the same in every variant are stored for the first one only."""
    own = f"{variant}.chunk{chunk}.cache_out"
    stored = any(name.startswith(f"{own}.") for name in tensors)
    return own if stored else f"{case['variants'][0]}.chunk{chunk}.cache_out"


def _official_keys_values(tensors, case, variant, chunk, index):
    """Keys and values of the chunks that our rule keeps; they must be those that the official cache held."""
    kept = kept_chunks(chunk, case["num_cached_blocks"], sink_token=variant == "sink")
    written = [f"{_written(tensors, case, variant, earlier)}.block{index}" for earlier in kept]
    memory = tuple(torch.cat([tensors[f"{w}.{n}"].transpose(2, 3) for w in written], 2) for n in "kv")
    for name, got in zip("kv", memory, strict=True):
        held = tensors.get(f"{variant}.chunk{chunk}.cache_in.block{index}.{name}")
        if held is not None:
            assert torch.equal(got, held.transpose(2, 3))
    return memory


def _compare_written(written, tensors, case, prefix):
    for index, state in enumerate(written):
        block = f"{prefix}.block{index}"
        names = ("k", "v") if index in case["softmax_layer_indices"] else ("state_kv", "state_z")
        for name, got in zip(names, state.memory, strict=True):
            expected = tensors[f"{block}.{name}"]
            expected = expected.transpose(2, 3) if name in "kv" else expected
            compare.assert_near(got.reshape(expected.shape), expected, ATOL, f"{block}.{name}")
        compare.assert_near(state.frame, tensors[f"{block}.tconv"].permute(0, 2, 3, 1), ATOL, f"{block}.tconv")


@pytest.mark.golden
def test_batch_rows_are_independent():
    """Two different rows in one call give what each gives alone, masks of different length included."""
    _, tensors, model = golden_dit.load("bidirectional_forward")
    x, source, y = (tensors[f"input.{n}"][:1] for n in ("x", "source", "y"))
    mask = tensors["input.mask"][:1]
    xs, sources = torch.cat([x, -x]), torch.cat([source, source.flip(2)])
    shorter = mask.clone()
    shorter[0, 3:] = 0
    times = torch.tensor([743.0, 100.0])
    prompt = model.prompt_context(y.squeeze(1).repeat(2, 1, 1), torch.cat([mask, shorter]))
    together, _ = model(xs, times, sources, prompt)
    for row, row_mask in enumerate((mask, shorter)):
        alone = model.prompt_context(y.squeeze(1), row_mask)
        expected, _ = model(xs[row : row + 1], times[row : row + 1], sources[row : row + 1], alone)
        compare.assert_near(together[row : row + 1], expected, 1e-5, f"row {row}")


@pytest.mark.golden
def test_prompt_masks():
    """A mask of one row serves the batch; a row with no real token attends evenly to all of them."""
    _, tensors, model = golden_dit.load("bidirectional_forward")
    y = tensors["input.y"][:1].squeeze(1)
    pair = model.prompt_context(y.repeat(2, 1, 1), tensors["input.mask"][:1])
    assert pair.keys_values[0][0].shape[2] == int(tensors["input.mask"][0].sum())
    assert pair.bias is None
    empty = model.prompt_context(y, torch.zeros_like(tensors["input.mask"][:1]))
    assert empty.keys_values[0][0].shape[2] == y.shape[1]
    x = torch.randn(1, 5, model.config.hidden_size)
    even = model.blocks[0].cross_attn(x, empty.keys_values[0], empty.bias)
    unmasked = model.blocks[0].cross_attn(x, empty.keys_values[0], torch.zeros_like(empty.bias))
    compare.assert_near(even, unmasked, 1e-2, "constant bias cancels")


@pytest.mark.golden
def test_the_state_given_is_not_changed():
    case, tensors, model = golden_dit.load("streaming_forward")
    prompt = model.prompt_context(tensors["input.y"].squeeze(1), tensors["input.mask"])
    start, stop = case["chunk_indices"][:2]
    x, source = (tensors[f"input.{n}"][:, :, start:stop] for n in ("x", "source"))
    times = tensors["input.timestep"].expand(x.shape[0])
    _, state = model(x, times, source, prompt)
    before = [t.clone() for block in state for t in (*block.memory, block.frame)]
    model(x, times, source, prompt, state)
    after = [t for block in state for t in (*block.memory, block.frame)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
