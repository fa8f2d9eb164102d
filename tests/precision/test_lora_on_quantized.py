"""LoRAs on quantized networks: the layers that they change go back to full precision, the others stay."""

from dataclasses import replace

import clips
import pytest
import torch
import toys
from safetensors.torch import save_file
from sana_streaming.sana_core.cli import build_parser
from sana_streaming.sana_core.commands import edit_networks
from sana_streaming.sana_core.commands.edit_networks import load_networks
from sana_streaming.sana_core.commands.edit_plan import make_plan
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.precision.apply import apply_plan, network_bytes
from sana_streaming.sana_core.precision.calibration import calibrated
from sana_streaming.sana_core.precision.layer import QuantLinear
from sana_streaming.sana_core.precision.plan import preset
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.lora import PREFIX, apply_lora
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from small_dit import CONFIG, distance, velocity, write

WIDTH = CONFIG.hidden_size


def lora(folder, *names, rank=2, width=WIDTH):
    draw = torch.Generator().manual_seed(5)
    tensors = {}
    for name in names:
        tensors[f"{PREFIX}{name}.lora_down.weight"] = torch.randn(rank, width, generator=draw) / width**0.5
        tensors[f"{PREFIX}{name}.lora_up.weight"] = torch.randn(width, rank, generator=draw)
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors", tensors


@pytest.mark.parametrize("precision", ["int8", "paper-mpq"], ids=["fused", "split"])
def test_merged_into_the_dequantized_weight(tmp_path, caplog, precision):
    file, tensors = lora(tmp_path, "blocks.1.attn.k", "blocks.2.cross_attn.q_linear")
    write(tmp_path)
    model, plain, original, changed = (
        load_dit(tmp_path, dtype=torch.float32, precision=plan) for plan in (precision, precision, None, None)
    )
    fused = model.layout == "fused"
    modules = ["blocks.1.attn.qkvg" if fused else "blocks.1.attn.k", "blocks.2.cross_attn.q_linear"]
    caplog.clear()
    apply_lora(model, file, 0.5)
    grown = network_bytes(model) - network_bytes(plain)
    (said,) = caplog.messages
    assert said.startswith("LoRA: 2 quantized layers are back to full precision for it, which is slower and takes ")
    for name, layer in plain.named_modules():
        if isinstance(layer, QuantLinear):
            now = model.get_submodule(name)
            assert isinstance(now, QuantLinear) == (name not in modules)
        elif isinstance(layer, torch.nn.Linear):
            assert isinstance(model.get_submodule(name), torch.nn.Linear)
    for name, module in zip(("blocks.1.attn.k", "blocks.2.cross_attn.q_linear"), modules, strict=True):
        base = plain.get_submodule(module).dequantized(torch.float32)
        up, down = (tensors[f"{PREFIX}{name}.lora_{part}.weight"] for part in ("up", "down"))
        change = torch.zeros_like(base)
        rows = slice(WIDTH, 2 * WIDTH) if len(base) > WIDTH else slice(None)
        change[rows] = 0.5 * up @ down
        torch.testing.assert_close(model.get_submodule(module).weight, base + change, rtol=1e-5, atol=1e-6)
        bias, before = model.get_submodule(module).bias, plain.get_submodule(module).bias
        assert bias is before is None or bias.equal(before)
    # What the format's name takes in each layer is gone too.
    assert 0 < grown <= int(said.split("takes ")[1].split(" ")[0].replace(",", ""))
    assert model.fingerprint != plain.fingerprint
    # The change is as in full precision.
    apply_lora(changed, file, 0.5)
    effect, error = distance(velocity(changed), velocity(original)), distance(velocity(plain), velocity(original))
    assert effect > 0.01 and distance(velocity(model), velocity(changed)) < 0.2 * effect + error


def test_a_lora_that_does_not_fit_changes_nothing(tmp_path):
    write(tmp_path)
    model = load_dit(tmp_path, precision="int8")
    want = velocity(model)
    file, tensors = lora(tmp_path, "blocks.1.attn.k", "blocks.2.attn.proj")
    save_file(tensors | {f"{PREFIX}blocks.2.attn.proj.lora_down.weight": torch.zeros(2, 5)}, file)
    with pytest.raises(CheckpointError, match=rf"do not fit the model's \({WIDTH}, {WIDTH}\)"):
        apply_lora(model, file)
    assert isinstance(model.get_submodule("blocks.1.attn.qkvg"), QuantLinear) and velocity(model).equal(want)
    assert isinstance(model.get_submodule("blocks.2.attn.proj"), QuantLinear)


@pytest.mark.parametrize("precision", ["int8", "paper-mpq"])
def test_before_the_plan_it_is_quantized_with_the_weights(tmp_path, caplog, precision):
    file, _ = lora(tmp_path, "blocks.1.attn.k", "blocks.2.cross_attn.q_linear")
    write(tmp_path)
    base = load_dit(tmp_path, dtype=torch.float32)
    merged = load_dit(tmp_path, dtype=torch.float32)
    apply_lora(merged, file, 0.5)
    changed = merged.fingerprint
    want = velocity(merged)
    # A profile of the network as it was before the LoRA.
    plan = replace(preset(precision, CONFIG), model=base.fingerprint)
    model = load_dit(tmp_path, dtype=torch.float32, precision=plan, change=lambda model: apply_lora(model, file, 0.5))
    assert not caplog.messages or "back to full precision" not in " ".join(caplog.messages)
    complete = calibrated(merged, replace(plan, model=""))
    apply_plan(merged, complete)
    assert velocity(model).equal(velocity(merged)) and model.fingerprint == merged.fingerprint != changed
    assert distance(velocity(model), want) < 0.2
    # A profile of the mix, as a host makes where the LoRA comes before.
    behind = replace(plan, model=changed)
    again = load_dit(tmp_path, dtype=torch.float32, precision=behind, change=lambda model: apply_lora(model, file, 0.5))
    assert again.fingerprint == model.fingerprint and velocity(again).equal(velocity(model))
    for other, strength in ((replace(plan, model="other"), 0.5), (behind, 0.6), (behind, 0.0)):
        with pytest.raises(InputError, match=f"measured on the network {other.model}, not on this one"):
            load_dit(tmp_path, precision=other, change=lambda model, by=strength: apply_lora(model, file, by))
    # A file that is quantized has no other road.
    save_dit(load_dit(tmp_path, dtype=torch.float32, precision=precision), tmp_path / "small")
    small = load_dit(tmp_path / "small", dtype=torch.float32, change=lambda model: apply_lora(model, file, 0.5))
    assert not isinstance(small.get_submodule("blocks.2.cross_attn.q_linear"), QuantLinear)


def networks_of_edit(tmp_path, *more):
    words = ["edit", clips.clip("carphone_pristine.mp4"), tmp_path / "out.mp4", "--prompt", "make it snow", *more]
    options = build_parser().parse_args([*map(str, words), "--size", "64x64", "--device", "cpu"])
    return load_networks(options, make_plan(options))[0]


def test_edit_quantizes_what_the_lora_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path / "prompts"))
    bundle = make_toy_bundle(tmp_path / "toy")
    dit = load_dit(bundle / "dit", dtype=torch.float32)
    file, _ = lora(tmp_path, "blocks.1.attn.k", width=dit.config.hidden_size)
    model = networks_of_edit(tmp_path, "--model", bundle, "--precision", "fp8", "--lora", f"{file}:0.5")
    apply_lora(dit, file, 0.5)
    apply_plan(dit, calibrated(dit, preset("fp8", dit.config)))
    assert isinstance(model.get_submodule("blocks.1.attn.qkvg"), QuantLinear)
    assert model.fingerprint == dit.fingerprint
    mine, wanted = model.state_dict(), dit.state_dict()
    assert mine.keys() == wanted.keys()
    assert all(mine[key].view(torch.uint8).equal(wanted[key].view(torch.uint8)) for key in mine if mine[key].dim())


def test_random_weights_are_calibrated_too(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_networks, "DIT_PRESETS", {"streaming-2b": toys.CONFIGS["dit"]})
    monkeypatch.setattr(edit_networks, "random_vae", lambda *_, **__: toys.networks()[1])
    model = networks_of_edit(tmp_path, "--model", "streaming-2b", "--random-weights", "--precision", "fp8")
    found = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert found and all(layer.input_scale is not None for layer in found)
