"""Files that users have: which are offered, and that every layout is read."""

from pathlib import Path

import node_calls as nodes
import pytest
import single_files
import torch
import toys
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.weights.dit import save_dit
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import INDEX_NAME, save_vae


def offered(name):
    """The files: what is built in, and what could be downloaded, is left out."""
    options = nodes.node(name).define_schema().inputs[0].fields["options"]
    files = [option for option in options if not option.startswith("download: ")]
    assert options[: len(files)] == files
    return files[1:-1]


def touch(*parts):
    file = nodes.models_folder(*parts[:-1]) / parts[-1]
    file.write_bytes(b"")


def test_what_is_offered_as_a_vae(host):
    """Not the single shards, nor every checkpoint."""
    touch("vae", "sdxl.safetensors")
    touch("vae", "old.pth")
    touch("vae", "notes.txt")
    touch("vae", "sharded", "diffusion_pytorch_model-00001-of-00002.safetensors")
    touch("vae", "sharded", INDEX_NAME)
    touch("checkpoints", "ltx-2-19b-dev.safetensors")
    touch("checkpoints", "dreamshaper.safetensors")
    touch("sana_streaming", "own.safetensors")
    assert offered("LoadVAE") == [
        "sharded", "old.pth", "sdxl.safetensors", "own.safetensors", "ltx-2-19b-dev.safetensors",
    ]  # fmt: skip


def test_what_is_offered_as_a_text_encoder(host):
    for file in ("tokenizer.json", "config.json", "model.safetensors"):
        touch("text_encoders", "gemma-2-2b-it", file)
    touch("text_encoders", "gemma_2_2b_it_elm_bf16.safetensors")
    touch("text_encoders", "t5xxl.safetensors")
    touch("sana_streaming", "Gemma-2b.safetensors")
    touch("sana_streaming", "dit.safetensors")
    assert offered("LoadTextEncoder") == [
        "gemma-2-2b-it", "gemma_2_2b_it_elm_bf16.safetensors", "t5xxl.safetensors", "Gemma-2b.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["checkpoints", "vae"])
def test_the_vae_inside_a_whole_checkpoint(host, place):
    folder = nodes.models_folder(place)
    save_vae(toys.networks()[1], folder / "plain")
    tensors = {f"vae.{key}": value for key, value in load_file(next((folder / "plain").glob("*.safetensors"))).items()}
    tensors["model.diffusion_model.proj.weight"] = torch.ones(2, 2)
    save_file(tensors, folder / "ltx-2-whole.safetensors")
    assert "ltx-2-whole.safetensors" in offered("LoadVAE")
    node = nodes.node("LoadVAE")
    assert node.validate_inputs("ltx-2-whole.safetensors") is True
    before = node.fingerprint_inputs("ltx-2-whole.safetensors", "causal")
    (vae,) = node.execute("ltx-2-whole.safetensors", "causal").args
    expected = toys.networks()[1].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in vae.network.state_dict().items())
    save_file({**tensors, "more": torch.ones(1)}, folder / "ltx-2-whole.safetensors")
    assert node.fingerprint_inputs("ltx-2-whole.safetensors", "causal") != before


def test_gemma_in_a_single_file(host, tmp_path):
    bundle = make_toy_bundle(tmp_path / "toy")
    folder = nodes.models_folder("text_encoders")
    single_files.write_single_file(bundle / "text_encoder", folder / "gemma_2_2b_it_elm_bf16.safetensors")
    (encoder,) = nodes.call("LoadTextEncoder", "gemma_2_2b_it_elm_bf16.safetensors")
    positive, _ = nodes.call("Prompt", encoder, "make it snow", "", 0)
    expected, _ = nodes.prompts(negative="")
    assert torch.equal(positive[0][0], expected[0][0])
    assert nodes.texts() == []


def test_the_base_model_is_warned_of_on_the_node(host, tmp_path):
    bundle = make_toy_bundle(tmp_path / "toy")
    folder = nodes.models_folder("text_encoders")
    single_files.write_single_file(bundle / "text_encoder", folder / "gemma_2_2b_fp16.safetensors")
    nodes.call("LoadTextEncoder", "gemma_2_2b_fp16.safetensors")
    (text,) = nodes.texts()
    assert "is by its name the base model gemma-2-2b" in text
    assert "use the instruct model" in text


def test_the_model_says_which_sampler_it_is_for(host):
    from dataclasses import replace

    config = replace(toys.CONFIGS["dit"], variant="bidirectional")
    save_dit(random_dit(config), nodes.models_folder("diffusion_models") / "short")
    (model,) = nodes.call("LoadModel", "short/model.safetensors", "auto", "auto")
    assert model.network.config.variant == "bidirectional"
    nodes.call("LoadModel", nodes.TOY, "auto", "auto")
    assert nodes.texts() == [
        "bidirectional model: for the Short Sampler",
        "streaming model: for Edit Video and the Sampler",
    ]


def test_a_file_that_is_something_else(host):
    save_file({"x": torch.ones(1)}, nodes.models_folder("text_encoders") / "t5xxl.safetensors")
    with pytest.raises(InputError, match=r"text encoder .*t5xxl.safetensors"):
        nodes.call("LoadTextEncoder", "t5xxl.safetensors")
    with pytest.raises(InputError, match=r"diffusion_models.*t5xxl|t5xxl.*is in none"):
        nodes.call("LoadModel", "t5xxl.safetensors", "auto", "auto")
    assert Path(nodes.models_folder("text_encoders") / "t5xxl.safetensors").is_file()


def test_without_a_node_number_nothing_is_written(host, monkeypatch):
    """Older versions of ComfyUI, and callers of their own."""
    from types import SimpleNamespace

    from server import PromptServer

    node = nodes.node("LoadVAE")
    monkeypatch.setattr(node, "hidden", None)
    nodes.call("LoadVAE", nodes.TOY, "auto")
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="3"))
    monkeypatch.setattr(PromptServer, "instance", SimpleNamespace())
    nodes.call("LoadVAE", nodes.TOY, "auto")
