"""Nodes beside each other and beside ComfyUI's own, in a real ComfyUI on the CPU. COMFY_DIR and COMFY_PYTHON name it."""

import json
import os
from dataclasses import replace

import clips
import fake_hub
import lora_files
import numpy as np
import pytest
import single_files
import torch
import vae_files
from comfy_graphs import as_many_threads_as_the_server, read, saved, workflow
from comfy_server import ComfyError, ComfyServer, cached_nodes
from inside_comfy import results_of
from PIL import Image
from safetensors.torch import save_file
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.random_init import random_dit, random_vae, toy_configs
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS, make_toy_bundle
from sana_streaming.sana_core.weights.toy_text import make_toy_text_encoder

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

# Nodes of another pack: a CLIP of type pixeldit from a file of any size, and what a conditioning holds.
PROBE = """
import json
import comfy.sd, folder_paths, torch

class ProbeClip:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"file": ("STRING", {}), "config": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "probe"

    def run(self, file, config):
        options = {"gemma2_2b_model_config": json.loads(config)}
        path = folder_paths.get_full_path_or_raise("text_encoders", file)
        return (comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.PIXELDIT, model_options=options),)

class ProbeConditioning:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"positive": ("CONDITIONING",), "path": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    def run(self, positive, path):
        torch.save((positive[0][0].clone(), positive[0][1]["attention_mask"].clone()), path)
        return {}

NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (ProbeClip, ProbeConditioning)}
"""

# A network whose layers all wait outside the device and are patched as they are used, as with --lowvram and --novram.
OFFLOADED = """
from pack.nodes import comfy_host
from pack.sana_core.weights.dit import load_dit
from pack.sana_core.weights.lora import LoraChoice, apply_loras, lora_changes

CPU, KIND = torch.device("cpu"), torch.float32
choice = LoraChoice(Path(folder) / "toy_lora.safetensors", 0.7)


@torch.inference_mode()
def velocity(model):
    draw, config = torch.Generator().manual_seed(0), model.config
    x, source = (torch.randn(1, size, 2, 3, 5, generator=draw) for size in (config.in_channels, config.source_channels))
    context = model.prompt_context(torch.randn(1, 7, config.caption_channels, generator=draw))
    return model(x, torch.tensor([893]), source, context)[0]


results = {}
for layout in ("fused", "split"):
    merged, network = (
        load_dit(Path(folder) / "toy", dtype=KIND, layout=layout, operations=comfy_host.operations(KIND)) for _ in "12"
    )
    plain = velocity(merged)
    apply_loras(merged, [choice])
    base = comfy_host.patcher(network, CPU, CPU)
    patched = comfy_host.with_lora(base, lora_changes(network, choice, network.fingerprint)[0])
    patched.patch_model(device_to=CPU, lowvram_model_memory=1)
    waiting = sum(bool(getattr(layer, "weight_function", ())) for layer in network.modules())
    differs = [(velocity(network) - want).abs().max().item() for want in (velocity(merged), plain)]
    patched.detach()
    base.patch_model(device_to=CPU)
    results[layout] = [waiting, *differs, (velocity(network) - plain).abs().max().item()]
print("RESULTS " + json.dumps(results))
"""

# ComfyUI's readers of LTX-2 take the number of latent channels and the temporal factor for granted.
TINY_VAE = VAEConfig(
    block_out_channels=(128, 128, 128),
    layers_per_block=(1, 1, 1, 1),
    downsample_type=("spatiotemporal",) * 3,
    decoder_block_out_channels=(8, 16, 32),
    decoder_layers_per_block=(1, 1, 1, 1),
    decoder_upsample_type=("spatiotemporal",) * 3,
    patch_size=2,
)
TINY_VAE_CONFIG = {
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "encoder_base_channels": 128,
    "encoder_blocks": [
        ["res_x", {"num_layers": 1}],
        *[["compress_all_res", {"multiplier": 1}], ["res_x", {"num_layers": 1}]] * 3,
    ],
    "decoder_base_channels": 4,
    "decoder_blocks": [
        ["res_x", {"num_layers": 1}],
        *[["compress_all", {"residual": True, "multiplier": 2}], ["res_x", {"num_layers": 1}]] * 3,
    ],
    "norm_layer": "pixel_norm",
    "patch_size": 2,
    "latent_log_var": "uniform",
    "causal_decoder": True,
    "timestep_conditioning": False,
}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    folder, models = tmp_path_factory.mktemp("comfy"), tmp_path_factory.mktemp("models")
    server = ComfyServer(folder)
    (folder / "custom_nodes" / "probe").mkdir()
    (folder / "custom_nodes" / "probe" / "__init__.py").write_text(PROBE)
    toy = make_toy_bundle(models / "toy")
    lora = lora_files.write_lora(load_dit(toy, layout="split", dtype=torch.float32), models / "toy_lora.safetensors")
    server.put_model(lora, "loras")
    small = toy_configs(CAPTION_CHANNELS)["dit"]
    large = random_dit(replace(small, hidden_size=2 * small.hidden_size, num_heads=2 * small.num_heads), layout="split")
    server.put_model(lora_files.write_lora(large, models / "large_lora.safetensors"), "loras")
    wide = replace(small, in_channels=128, source_channels=128)
    server.put_model(save_dit(random_dit(wide), models / "wide"), "diffusion_models", "wide_toy.safetensors")
    tensors = {k: v.contiguous() for k, v in vae_files.original(random_vae(TINY_VAE, 3).state_dict(), TINY_VAE).items()}
    save_file(tensors, models / "tiny_ltx.safetensors", {"config": json.dumps({"vae": TINY_VAE_CONFIG})})
    server.put_model(models / "tiny_ltx.safetensors", "vae")
    with server:
        server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
        yield server


def by_cli(folder, *options):
    """The clip edited by the command line with the workflows' settings."""
    toy = make_toy_bundle(folder / "toy")
    command = ["edit", str(clips.clip("carphone_pristine.mp4")), str(folder / "out.mkv"), "--model", str(toy)]
    command += ["--height", "64", "--width", "96", "--prompt", "turn it into a watercolour", "--crf", "0", *options]
    with as_many_threads_as_the_server():
        assert main(command) == 0
    return read(folder / "out.mkv")


def difference(a, b):
    return float((a.float() - b.float()).abs().mean())


def test_a_lora_beside_its_model(comfy, tmp_path):
    """One graph edits with the LoRA, without, and with it again: the weights change to and fro."""
    entry = comfy.run(workflow("lora"))
    with_lora, plain = (read(saved(comfy, entry, prefix)) for prefix in ("lora", "plain"))
    lora = str(comfy.base / "models" / "loras" / "toy_lora.safetensors")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert torch.equal(plain, by_cli(tmp_path / "a", "--max-frames", "33"))
    expected = by_cli(tmp_path / "b", "--max-frames", "33", "--lora", f"{lora}:0.8")
    assert difference(with_lora, expected) < 0.1
    assert difference(with_lora, plain) > 2
    # The plain edit alone, after one with the LoRA: what was left of it in the weights would show.
    entry = comfy.run(workflow("lora", n8__preview="side-by-side"))
    assert "7" in cached_nodes(entry)
    assert "8" not in cached_nodes(entry)
    assert torch.equal(read(saved(comfy, entry, "plain")), plain)
    graph = workflow("lora", n6__file="gone.safetensors")
    del graph["8"], graph["11"]
    with pytest.raises(ComfyError, match="gone.safetensors' is in none of ComfyUI's folders models/loras"):
        comfy.queue(graph)
    with pytest.raises(ComfyError, match="use a LoRA that was made for this model"):
        comfy.run(workflow("lora", n6__file="large_lora.safetensors"))


def test_a_lora_on_layers_that_wait_outside_the_device(tmp_path):
    toy = make_toy_bundle(tmp_path / "toy")
    lora_files.write_lora(load_dit(toy, layout="split", dtype=torch.float32), tmp_path / "toy_lora.safetensors")
    for waiting, from_merged, from_plain, left in results_of(OFFLOADED, tmp_path).values():
        assert waiting > 10
        assert from_merged < 1e-4
        assert from_plain > 0.1
        assert left == 0


def test_the_source_outside_a_mask(comfy, tmp_path):
    entry = comfy.run(workflow("keep_mask"))
    frames = read(saved(comfy, entry))
    (tmp_path / "cli").mkdir()
    edited = by_cli(tmp_path / "cli", "--start-frame", "20", "--max-frames", "57")
    assert frames.shape == edited.shape == (57, 64, 96, 3)
    brightness = torch.tensor([0.299, 0.587, 0.114])
    left, right = frames[:, :, :40].float() @ brightness, frames[:, :, 56:].float() @ brightness
    assert difference(left, edited[:, :, :40].float() @ brightness) < 3
    assert difference(right, edited[:, :, 56:].float() @ brightness) > 10


def test_a_stream_goes_on_after_a_restart(comfy, tmp_path):
    (tmp_path / "cli").mkdir()
    expected = by_cli(tmp_path / "cli")
    entry = comfy.run(workflow("save_state"))
    first = read(saved(comfy, entry, "part1"))
    (state,) = (file for file in comfy.output_files(entry) if file.suffix == ".safetensors")
    assert state == comfy.base / "output" / "streams" / "clip_00001_.safetensors"
    comfy.stop()
    comfy.start()
    entry = comfy.run(workflow("load_state"))
    second = read(saved(comfy, entry, "part2"))
    assert 0 < len(first) < 120
    assert torch.equal(torch.cat([first, second]), expected)
    with pytest.raises(ComfyError, match="not in ComfyUI's output folder"):
        comfy.queue(workflow("load_state", n10__file="../../secret.safetensors [output]"))


def test_two_models_in_a_chain_and_cores_upscaling(comfy):
    with comfy.listen() as events:
        entry = comfy.run(workflow("chain"))
        events.wait_for("execution_success")
    info = probe(saved(comfy, entry))
    assert (info.width, info.height, info.num_frames) == (256, 192, 33)
    assert {preview.node for preview in events.previews} == {"10", "11"}
    running = [text for number, text in events.texts if number == "10"]
    assert running[0].startswith("chunk 1 of 1, ")
    assert "peak memory" in running[-1]
    frames = read(saved(comfy, entry)).float()
    assert (frames.amax(-1) - frames.amin(-1)).mean() < 12, "the second edit is black and white"


def picture(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float()


def test_latents_to_and_from_cores_ltx2_vae(comfy):
    """Encoded by core, decoded by us, and the other way round: the same pictures."""
    entry = comfy.run(workflow("core_vae"))
    files = sorted(file for file in comfy.output_files(entry) if file.suffix == ".png")
    ours = [picture(file) for file in files if file.name.startswith("core_to_ours")]
    theirs = [picture(file) for file in files if file.name.startswith("ours_to_core")]
    assert len(ours) == len(theirs) == 33
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) < 0.6
    assert ours[0].std() > 10


def test_a_conditioning_from_cores_clip(comfy, tmp_path):
    """A small Gemma-2 as ComfyUI reads it gives what ours gives."""
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 1, "head_dim": 256}
    folder = make_toy_text_encoder(tmp_path / "gemma", **sizes)
    single_files.write_single_file(folder, tmp_path / "tiny_gemma.safetensors")
    comfy.put_model(tmp_path / "tiny_gemma.safetensors", "text_encoders")
    config = json.loads((folder / "config.json").read_text())
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    graph = {
        "1": {
            "class_type": "ProbeClip",
            "inputs": {"file": "tiny_gemma.safetensors", "config": json.dumps({name: config[name] for name in names})},
        },
        "2": {
            "class_type": "SanaStreamingPrompt",
            "inputs": {"text_encoder": ["1", 0], "prompt": "make it snow", "negative_prompt": "", "motion_score": 0},
        },
        "3": {
            "class_type": "ProbeConditioning",
            "inputs": {"positive": ["2", 0], "path": str(tmp_path / "conditioning.pt")},
        },
    }
    comfy.run(graph)
    embeds, mask = torch.load(tmp_path / "conditioning.pt")
    expected = GemmaTextEncoder(folder, dtype=torch.float32).encode("make it snow")
    assert torch.equal(mask, expected.mask)
    torch.testing.assert_close(embeds.float(), expected.embeds, atol=2e-2, rtol=0)


def test_latents_of_another_space_are_refused(comfy):
    with pytest.raises(ComfyError, match="16.*; use the VAE that (encoded the source|belongs to the model)"):
        comfy.run(workflow("core_vae", n2__file="toy (random weights)"))


def test_a_download_on_run(tmp_path):
    """From a hub on this machine, with progress; the second run, and the next server without a hub, use the file."""
    toy = make_toy_bundle(tmp_path / "toy")
    name = "ltx2_causal_vae_0516"
    files = {f"{name}/{file.name}": file.read_bytes() for file in (toy / "vae").iterdir()}
    graph = workflow("edit_video", n2__file="download: causal-vae", n6__max_frames=33)
    with fake_hub.FakeHub({"Efficient-Large-Model/SANA-Streaming": files}) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        with ComfyServer(tmp_path / "comfy", environment=environment) as server:
            server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
            with server.listen() as events:
                entry = server.run(graph)
                events.wait_for("execution_success")
            assert any(text.startswith("downloading causal-vae: ") for number, text in events.texts if number == "2")
            assert "download: causal-vae" not in json.dumps(server.object_info()["SanaStreamingLoadVAE"])
            frames, sent = read(saved(server, entry)), len(hub.gets)
            server.run(workflow("edit_video", n2__file="download: causal-vae", n6__max_frames=33, n6__seed=5))
            assert len(hub.gets) == sent
            server.stop()
            server.environment = {}
            server.start()
            assert torch.equal(read(saved(server, server.run(graph))), frames)
