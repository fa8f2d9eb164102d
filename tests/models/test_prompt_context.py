"""Masks of prompts with fewer rows than the batch: repeated as a whole, row by row of the batch."""

import pytest
import torch
import toys
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import prompt_context

TOKENS = 6


def features(rows, seed=0):
    return torch.randn(rows, TOKENS, 24, generator=torch.Generator().manual_seed(seed))


def mask(*lengths):
    return torch.arange(TOKENS) < torch.tensor(lengths)[:, None]


def assert_same(got, expected):
    assert torch.equal(got.bias, expected.bias)
    for one, other in zip(got.keys_values, expected.keys_values, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def model():
    return toys.networks()[0]


def real_tokens(context):
    """How many tokens each row of the batch sees."""
    return (context.bias[:, 0, 0] == 0).sum(-1).tolist()


def test_two_rows_of_a_mask_alternate_over_a_batch_of_four(model):
    context = model.prompt_context(features(4), mask(2, 5))
    assert real_tokens(context) == [2, 5, 2, 5]
    assert_same(context, model.prompt_context(features(4), mask(2, 5, 2, 5)))


def test_guidance_repeats_each_mask_over_its_own_half(model):
    options = StreamOptions(cfg_scale=3.0, cfg_mask="own")
    context = prompt_context(model, options, features(4), mask(2, 5), features(4, seed=1), mask(3, 4))
    assert real_tokens(context) == [3, 4, 3, 4, 2, 5, 2, 5]
    both = torch.cat([features(4, seed=1), features(4)])
    assert_same(context, model.prompt_context(both, mask(3, 4, 3, 4, 2, 5, 2, 5)))


def test_guidance_with_one_row_of_mask_for_each_half(model):
    options = StreamOptions(cfg_scale=3.0, cfg_mask="own")
    context = prompt_context(model, options, features(2), mask(2), features(2, seed=1), mask(5))
    assert real_tokens(context) == [5, 5, 2, 2]


def test_the_mask_of_the_prompt_serves_both_halves_row_by_row(model):
    options = StreamOptions(cfg_scale=3.0, cfg_mask="positive")
    context = prompt_context(model, options, features(2), mask(2, 5), features(2, seed=1))
    assert real_tokens(context) == [2, 5, 2, 5]


def test_without_guidance_the_prompt_stands_alone(model):
    context = prompt_context(model, StreamOptions(), features(4), mask(2, 5))
    assert_same(context, model.prompt_context(features(4), mask(2, 5)))
