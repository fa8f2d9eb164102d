"""LoRAs on quantized networks: the layers that they change go back to full precision, the others stay."""

import pytest
import torch
from safetensors.torch import save_file
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.precision.apply import network_bytes
from sana_streaming.sana_core.precision.layer import QuantLinear
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.lora import PREFIX, apply_lora
from small_dit import CONFIG, distance, velocity, write

WIDTH = CONFIG.hidden_size


def lora(folder, *names, rank=2):
    draw = torch.Generator().manual_seed(5)
    tensors = {}
    for name in names:
        tensors[f"{PREFIX}{name}.lora_down.weight"] = torch.randn(rank, WIDTH, generator=draw) / WIDTH**0.5
        tensors[f"{PREFIX}{name}.lora_up.weight"] = torch.randn(WIDTH, rank, generator=draw)
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
