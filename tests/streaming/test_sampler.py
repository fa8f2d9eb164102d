"""The chunked sampler against full runs of the official one."""

import compare
import golden_dit
import pytest
import torch
from sana_streaming.sana_core.streaming.chunks import kept_chunks
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import prompt_context, sample_chunk, sample_clip
from sana_streaming.sana_core.streaming.state import DiTState

ATOL = 2e-5
ATOL_GUIDED = 5e-5


def official_run(case, tensors, model, run, **changes):
    """Our result with the settings of one official run."""
    options = StreamOptions(
        **{
            "steps": run["steps"],
            "cfg_scale": run["cfg_scale"],
            "num_cached_blocks": run["num_cached_blocks"],
            "sink_token": run["sink_token"],
            "flow_shift": case["flow_shift"],
            "cfg_mask": "positive",
            **changes,
        }
    )
    prompt = prompt_context(
        model,
        options,
        tensors["input.y"].squeeze(1),
        tensors["input.mask"],
        tensors["input.neg_y"].squeeze(1),
        tensors["input.mask"],
    )
    noise, source = tensors["input.noise"], tensors["input.source"]
    return sample_clip(model, prompt, noise, source, options, boundaries=run["chunk_indices"])


@pytest.fixture(scope="module", params=["fused", "split"])
def official(request):
    return golden_dit.load("streaming_sampler", request.param)


@pytest.mark.golden
def test_every_official_run(official):
    case, tensors, model = official
    assert case["runs"]
    for run in case["runs"]:
        atol = ATOL_GUIDED if run["cfg_scale"] > 1 else ATOL
        compare.assert_near(
            official_run(case, tensors, model, run), tensors[f"{run['name']}.result"], atol, run["name"]
        )


CHANGES = {
    "sink": lambda run: {"sink_token": not run["sink_token"]},
    "window": lambda run: {"num_cached_blocks": 1 if run["num_cached_blocks"] != 1 else 2},
    "last step": lambda run: {"reuse_last_step": True},
    "rounding": lambda run: {"round_latents": True},
    "guidance": lambda run: {"cfg_scale": run["cfg_scale"] + 2},
    "steps": lambda run: {"steps": run["steps"] + 1},
}


@pytest.mark.golden
@pytest.mark.parametrize("name", CHANGES)
def test_every_option_matters(official, name):
    """Each option moves the result by far more than the tolerance, so the comparison above can tell."""
    case, tensors, model = official
    run = next(r for r in case["runs"] if r["num_cached_blocks"] > 0)
    change = CHANGES[name](run)
    difference = official_run(case, tensors, model, run, **change) - tensors[f"{run['name']}.result"]
    if kept(run) == kept({**run, **change}) and name in ("sink", "window"):
        # Too few chunks for the window to matter.
        assert difference.abs().max() < ATOL
    else:
        assert difference.abs().max() > 100 * ATOL


def kept(run):
    """What each chunk of a run reads back."""
    window, sink = run["num_cached_blocks"], run["sink_token"]
    return [kept_chunks(chunk, window, sink) for chunk in range(len(run["chunk_indices"]) - 1)]


@pytest.mark.golden
def test_each_prompt_can_have_its_own_mask(official):
    _, tensors, model = official
    options = StreamOptions(cfg_scale=3.0)
    y, mask = tensors["input.y"].squeeze(1), tensors["input.mask"]
    negative = torch.zeros_like(mask)
    negative[:, 0] = 1
    context = prompt_context(model, options, y, mask, tensors["input.neg_y"].squeeze(1), negative)
    assert context.bias is not None
    assert (context.bias[: len(y)] == 0).sum() < (context.bias[len(y) :] == 0).sum()


@pytest.mark.golden
def test_a_prompt_per_chunk(official):
    """A prompt that changes leaves the chunks before it alone and moves those after it."""
    case, tensors, model = official
    options = StreamOptions(steps=2)
    first = prompt_context(model, options, tensors["input.y"].squeeze(1), tensors["input.mask"])
    second = prompt_context(model, options, tensors["input.neg_y"].squeeze(1), tensors["input.mask"])
    borders = case["runs"][0]["chunk_indices"]
    noise, source = tensors["input.noise"], tensors["input.source"]
    chunks = len(borders) - 1
    switch = min(2, chunks - 1)
    plain = sample_clip(model, first, noise, source, options, boundaries=borders)
    changed = sample_clip(
        model, [first] * switch + [second] * (chunks - switch), noise, source, options, boundaries=borders
    )
    assert torch.equal(plain[:, :, : borders[switch]], changed[:, :, : borders[switch]])
    assert (plain - changed)[:, :, borders[switch] :].abs().amax() > 1e-3
    with pytest.raises(ValueError, match="one per chunk"):
        sample_clip(model, [first] * (chunks + 1), noise, source, options, boundaries=borders)


@pytest.mark.golden
def test_noise_is_not_changed_and_stop_comes_before_a_pass(official):
    _, tensors, model = official
    options = StreamOptions(steps=2)
    prompt = prompt_context(model, options, tensors["input.y"].squeeze(1), tensors["input.mask"])
    noise = tensors["input.noise"].clone()
    seen = []

    def stop(number, passes):
        assert 0 <= number < passes
        seen.append(number)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_clip(model, prompt, noise, tensors["input.source"], options, on_pass=stop)
    assert seen == [0, 1, 2, 0, 1]
    assert torch.equal(noise, tensors["input.noise"])


@pytest.mark.golden
def test_reuse_last_step_carries_the_last_pass(official, monkeypatch):
    """What the last denoising pass of a chunk returned is what the next chunk reads."""
    case, tensors, model = official
    options = StreamOptions(steps=2, reuse_last_step=True)
    prompt = prompt_context(model, options, tensors["input.y"].squeeze(1), tensors["input.mask"])
    start, stop = case["runs"][0]["chunk_indices"][:2]
    noise, source = (tensors[f"input.{name}"][:, :, start:stop] for name in ("noise", "source"))
    memory = DiTState(stop - start, 2, True)
    returned, velocity = [], model.velocity

    def watched(*arguments):
        result = velocity(*arguments)
        returned.append(result[1])
        return result

    monkeypatch.setattr(model, "velocity", watched)
    _, written = sample_chunk(model, memory, prompt, noise, source, options, carry=True)
    assert len(returned) == 2
    assert written is returned[-1]
    plain = StreamOptions(steps=2)
    returned.clear()
    _, written = sample_chunk(model, memory, prompt, noise, source, plain, carry=True)
    assert len(returned) == 3
    assert written is returned[-1]
