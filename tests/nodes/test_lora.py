"""LoRA in ComfyUI: equal to merging the file, others of the model untouched, files of other models refused."""

from dataclasses import replace

import lora_files
import node_calls as nodes
import pytest
import torch
import toys
from safetensors.torch import save_file
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.weights.dit import build_dit, official_state
from sana_streaming.sana_core.weights.lora import LoraChoice, apply_loras
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS


def config(**changes):
    return replace(toys.CONFIGS["dit"], caption_channels=CAPTION_CHANNELS, **changes)


def network(layout="fused", **changes):
    """The toy in either layout, the same weights."""
    made = random_dit(config(**changes))
    return build_dit(dict(official_state(made)), made.config, layout=layout)


def write_lora(name, seed, **changes):
    """A LoRA file with an effect in models/loras."""
    return lora_files.write_lora(network("split", **changes), nodes.models_folder("loras") / name, seed)


def loaded(layout="fused"):
    from sana_streaming.nodes import comfy_host
    from sana_streaming.nodes.sockets import LoadedModel

    device = comfy_host.model_device()
    return LoadedModel(comfy_host.patcher(network(layout), device, device))


def load_lora(model, name, strength=1.0):
    return nodes.call("LoadLora", model, name, strength)[0]


def in_force(model):
    """The weights that a node computes with."""
    from sana_streaming.nodes import comfy_host

    comfy_host.load([model.patcher], 0)
    return {key: value.clone() for key, value in model.network.state_dict().items()}


def equal(a, b, tolerance=0.0):
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=0, atol=tolerance) for key in a)


@pytest.mark.parametrize("layout", ["fused", "split"])
def test_chained_loras_equal_merging_them(host, layout):
    one, two = write_lora("one.safetensors", 1), write_lora("two.safetensors", 2)
    merged = network(layout)
    apply_loras(merged, [LoraChoice(one, 0.7), LoraChoice(two, -0.4)])
    base = loaded(layout)
    before = in_force(base)
    model = load_lora(load_lora(base, "one.safetensors", 0.7), "two.safetensors", -0.4)
    assert not equal(in_force(model), before)
    assert equal(in_force(model), merged.state_dict(), 1e-6)
    assert model.fingerprint == merged.fingerprint != base.fingerprint
    # Whoever has the model without them, or with the first alone, has it as it was.
    assert equal(in_force(base), before)
    first = network(layout)
    apply_loras(first, [LoraChoice(one, 0.7)])
    assert equal(in_force(load_lora(base, "one.safetensors", 0.7)), first.state_dict(), 1e-6)
    assert model.network is base.network, "the weights are there once"


def test_two_models_of_one_file_in_a_graph(host):
    """An edit with a LoRA between two without one."""
    write_lora("one.safetensors", 1)
    base, vae = loaded(), nodes.vae()
    changed = load_lora(base, "one.safetensors")
    positive, _ = nodes.prompts()
    latent, _ = nodes.encode(vae, toys.frames(33, 64, 96))
    first = nodes.sample(base, positive, latent)[0]["samples"]
    other = nodes.sample(changed, positive, latent)[0]["samples"]
    again = nodes.sample(base, positive, latent)[0]["samples"]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_strength_zero_is_the_model_itself(host):
    write_lora("one.safetensors", 1)
    base = loaded()
    assert load_lora(base, "one.safetensors", 0.0) is base


def test_a_state_knows_its_lora(host):
    write_lora("one.safetensors", 1)
    base, vae = loaded(), nodes.vae()
    changed = load_lora(base, "one.safetensors")
    positive, _ = nodes.prompts()
    clip = toys.frames(100, 64, 96)
    first, encoded = nodes.encode(vae, clip, max_frames=57, total_frames=-1)
    _, sampled = nodes.sample(changed, positive, first)
    second, _ = nodes.encode(vae, clip, start_frame=57, total_frames=-1, state=encoded)
    nodes.sample(changed, positive, second, state=sampled)
    with pytest.raises(InputError, match="transformer of fingerprint"):
        nodes.sample(base, positive, second, state=sampled)


def test_what_is_refused(host):
    write_lora("wide.safetensors", 1, hidden_size=2 * config().hidden_size, num_heads=2 * config().num_heads)
    save_file({"lora_unet_down.lora_down.weight": torch.ones(2, 2)}, nodes.models_folder("loras") / "sd.safetensors")
    base = loaded()
    with pytest.raises(CheckpointError, match="do not fit the model's .* use a LoRA that was made for this model"):
        load_lora(base, "wide.safetensors")
    with pytest.raises(CheckpointError, match="is not a LoRA of this model"):
        load_lora(base, "sd.safetensors")
    with pytest.raises(InputError, match=r"'gone' is in none of ComfyUI's folders models/loras"):
        load_lora(base, "gone")
    assert "models/loras" in nodes.node("LoadLora").validate_inputs("../x.safetensors")
    assert nodes.node("LoadLora").validate_inputs(None) is True


def test_what_is_offered_and_when_it_is_read_again(host):
    path = write_lora("one.safetensors", 1)
    for name in ("snow_lora.safetensors", "model.safetensors"):
        (nodes.models_folder("sana_streaming") / name).write_bytes(b"")
    node = nodes.node("LoadLora")
    assert node.define_schema().inputs[1].fields["options"] == ["one.safetensors", "snow_lora.safetensors"]
    before = node.fingerprint_inputs("one.safetensors", strength=1.0)
    assert node.fingerprint_inputs("one.safetensors", strength=1.0) == before
    path.write_bytes(path.read_bytes() + b" ")
    assert node.fingerprint_inputs("one.safetensors", strength=1.0) != before
