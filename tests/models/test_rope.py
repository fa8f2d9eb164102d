import compare
import golden_files
import pytest
import torch
from sana_streaming.sana_core.models.rope import apply_rotary, axis_pairs, rotary


@pytest.mark.golden
def test_table_is_the_official_one():
    config, tensors = golden_files.load("dit/rope_table.safetensors")
    for start, stop, height, width in config["specs"]:
        name = f"f{start}_{stop}_h{height}_w{width}"
        got = rotary(start, stop - start, height, width, config["head_dim"])
        compare.assert_near(got.cos, tensors[f"{name}.cos"], 1e-6, name)
        compare.assert_near(got.sin, tensors[f"{name}.sin"], 1e-6, name)


def test_pairs_fill_the_head():
    assert axis_pairs(112) == (20, 18, 18)
    for dim in (2, 16, 24, 112, 128):
        assert sum(axis_pairs(dim)) == dim // 2


def test_positions_are_absolute():
    """Frames of a later chunk turn as in one long call, far past any table."""
    whole = rotary(99_997, 6, 2, 3, 24)
    part = rotary(100_000, 3, 2, 3, 24)
    assert torch.equal(part.cos, whole.cos[18:])
    assert torch.equal(part.sin, whole.sin[18:])


def test_rotation_keeps_length_and_dtype():
    x = torch.randn(2, 12, 3, 16)
    turned = apply_rotary(x, rotary(5, 2, 2, 3, 16))
    compare.assert_near(turned.norm(dim=-1), x.norm(dim=-1), 1e-5)
    assert apply_rotary(x.bfloat16(), rotary(0, 2, 2, 3, 16)).dtype == torch.bfloat16
