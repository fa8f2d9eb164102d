"""LoRA: training one, its file, merging it."""

import copy

import pytest
import tiny_training
import torch
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.training.config import LORA_TARGETS, LoraSettings
from sana_streaming.sana_core.training.lora import Lora
from sana_streaming.sana_core.weights.dit import build_dit, official_state
from sana_streaming.sana_core.weights.lora import apply_lora

ALL = LoraSettings(rank=2, alpha=6.0)


def trained(model, settings=ALL, seed=0):
    """A LoRA that has an effect."""
    lora = Lora(model, settings, seed)
    generator = tiny_training.seeded(7)
    for pair in lora.pairs.values():
        pair.up.data.normal_(0, 0.3, generator=generator)
    return lora


def velocity(model):
    x, source = tiny_training.latents(3, 1), tiny_training.latents(3, 2)
    return model(x, torch.full((2,), 500.0), source, tiny_training.prompt(model, 3))[0]


def fused(model):
    return build_dit(dict(official_state(copy.deepcopy(model))), model.config, layout="fused")


def test_no_effect_at_first_and_only_the_lora_learns():
    model = tiny_training.network().requires_grad_(False)
    before = velocity(model)
    lora = Lora(model, ALL, 0)
    after = velocity(model)
    assert after.equal(before) and after.requires_grad
    after.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(pair.up.grad.abs().max() > 0 for _, pair in lora.layers())
    assert all(parameter.dtype == torch.float32 for parameter in lora.parameters())
    assert len(list(lora.layers())) == len(LORA_TARGETS) * model.config.depth


def test_down_learns_as_soon_as_up_is_not_zero():
    model = tiny_training.network().requires_grad_(False)
    lora = trained(model)
    velocity(model).square().mean().backward()
    assert all(pair.down.grad.abs().max() > 0 for _, pair in lora.layers())


def test_a_model_in_half_precision_keeps_its_dtype():
    model = tiny_training.network().to(torch.bfloat16).requires_grad_(False)
    model.dtype = torch.bfloat16
    trained(model)
    assert velocity(model).dtype == torch.bfloat16


@pytest.mark.parametrize("variant", ["streaming", "bidirectional"])
def test_the_file_has_official_names_and_shapes(tmp_path, variant):
    model = tiny_training.network(variant=variant).requires_grad_(False)
    trained(model).save(tmp_path / "l.safetensors", torch.float16)
    tensors = load_file(tmp_path / "l.safetensors")
    official = dict(official_state(model))
    names = {key.split(".lora_")[0].removesuffix(".alpha") for key in tensors}
    assert names == {f"diffusion_model.blocks.{i}.{target}" for i in (0, 1) for target in LORA_TARGETS}
    assert len(tensors) == 3 * len(names)
    for name in names:
        weight = official[f"{name.removeprefix('diffusion_model.')}.weight"]
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert down.shape == (2, *weight.shape[1:]) and up.shape == (len(weight), 2, *[1] * (weight.ndim - 2))
        assert down.dtype == up.dtype == torch.float16 and tensors[f"{name}.alpha"].item() == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.safetensors"]


@pytest.mark.parametrize("variant", ["streaming", "bidirectional"])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_merging_by_the_formula_on_both_layouts(tmp_path, variant, strength):
    model = tiny_training.network(variant=variant).requires_grad_(False)
    plain = copy.deepcopy(model)
    before = {key: value.clone() for key, value in official_state(plain)}
    trained(model).save(tmp_path / "l.safetensors", torch.float32)
    tensors = load_file(tmp_path / "l.safetensors")
    for layout in (plain, fused(plain)):
        apply_lora(layout, tmp_path / "l.safetensors", strength)
        after = dict(official_state(layout))
        for key, weight in before.items():
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            if f"{name}.alpha" in tensors:
                # As ComfyUI merges: flat matrices, then the weight's shape.
                up, down = (tensors[f"{name}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
                weight = weight + strength * (tensors[f"{name}.alpha"] / 2) * (up @ down).view(weight.shape)
                assert not weight.equal(before[key])
            torch.testing.assert_close(after[key], weight)


def test_merged_is_the_same_network_as_trained(tmp_path):
    model = tiny_training.network().requires_grad_(False)
    plain = copy.deepcopy(model)
    trained(model).save(tmp_path / "l.safetensors", torch.float32)
    wanted = velocity(model)
    for merged in (plain, fused(plain)):
        apply_lora(merged, tmp_path / "l.safetensors")
        torch.testing.assert_close(velocity(merged), wanted)


def test_a_file_without_alpha_means_rank(tmp_path):
    model = tiny_training.network().requires_grad_(False)
    plain = copy.deepcopy(model)
    trained(model, LoraSettings(rank=2)).save(tmp_path / "l.safetensors", torch.float32)
    tensors = load_file(tmp_path / "l.safetensors")
    save_file({key: value for key, value in tensors.items() if ".alpha" not in key}, tmp_path / "m.safetensors")
    apply_lora(plain, tmp_path / "m.safetensors")
    torch.testing.assert_close(velocity(plain), velocity(model))


def of_another_layer(tensors):
    return {key.replace("blocks.1", "blocks.9"): value for key, value in tensors.items()}


def of_another_form(tensors):
    return {key.replace("lora_down", "hada_w1_a"): value for key, value in tensors.items()}


def without_ups(tensors):
    return {key: value for key, value in tensors.items() if "lora_up" not in key}


def of_another_width(tensors):
    return {key: value[:, :3].contiguous() if "lora_down" in key else value for key, value in tensors.items()}


def of_another_height(tensors):
    return {key: value[:3].contiguous() if "lora_up" in key else value for key, value in tensors.items()}


def of_another_rank(tensors):
    return {key: value[:, :1].contiguous() if "lora_up" in key else value for key, value in tensors.items()}


def without_dimensions(tensors):
    return {key: value.flatten() for key, value in tensors.items()}


def of_another_prefix(tensors):
    return {key.replace("diffusion_model.", "unet."): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [of_another_layer, of_another_form, without_ups, of_another_width, of_another_height, of_another_rank,
     without_dimensions, of_another_prefix, lambda _: {}],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["split", "fused"])
def test_files_that_do_not_fit_change_nothing(tmp_path, change, layout):
    model = tiny_training.network().requires_grad_(False)
    plain = copy.deepcopy(model) if layout == "split" else fused(model)
    trained(model).save(tmp_path / "l.safetensors", torch.float32)
    save_file(change(load_file(tmp_path / "l.safetensors")), tmp_path / "l.safetensors")
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(CheckpointError, match=str(tmp_path)) as caught:
        apply_lora(plain, tmp_path / "l.safetensors")
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[key]) for key, value in plain.state_dict().items())


def test_a_fused_model_is_not_trained():
    with pytest.raises(InputError, match="split"):
        Lora(fused(tiny_training.network()), ALL, 0)


def test_targets():
    model = tiny_training.network().requires_grad_(False)
    lora = Lora(model, LoraSettings(rank=1, targets=("attn.v", "mlp.t_conv")), 0)
    assert [name for name, _ in lora.layers()] == [
        "blocks.0.attn.v", "blocks.0.mlp.t_conv", "blocks.1.attn.v", "blocks.1.mlp.t_conv",
    ]  # fmt: skip
