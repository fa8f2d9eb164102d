"""What the Sampler shows of latents in a real ComfyUI, by each preview method. COMFY_DIR and COMFY_PYTHON name it."""

import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import clips
import numpy as np
import pytest
import torch
from comfy_graphs import workflow
from comfy_server import ComfyServer
from PIL import Image
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.weights.dit import save_dit
from sana_streaming.sana_core.weights.random_init import random_dit, random_vae, toy_configs
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS
from sana_streaming.sana_core.weights.vae import save_vae

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

# ComfyUI's small decoder of LTX-2 with random weights, half as large as torch's own so that colours are not all at their ends.
WRITE_TAE = """
import sys
comfy_dir, path = sys.argv[1:]
sys.path.insert(0, comfy_dir)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy.taesd.taehv import TAEHV
from safetensors.torch import save_file
torch.manual_seed(0)
weights = TAEHV(latent_channels=128).state_dict()
for name, weight in weights.items():
    torch.nn.init.uniform_(weight, -1, 1).div_(max(1, weight[0].numel() if weight.ndim > 1 else 10) ** 0.5)
save_file({name: weight.half() for name, weight in weights.items()}, path)
"""

# Nodes of another pack: latents of a small VAE that pass for LTX-2's, with or without our map of them; what a LATENT holds.
PROBE = """
import torch

class ProbeSpace:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"samples": ("LATENT",), "space": ("STRING", {}), "look": ("BOOLEAN", {})}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "probe"

    def run(self, samples, space, look):
        samples = {**samples, "sana_latent_space": space or samples["sana_latent_space"]}
        if not look:
            del samples["sana_look"]
        return (samples,)

class ProbeLatent:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",), "path": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    def run(self, samples, path):
        torch.save(samples["samples"].clone(), path)
        return {}

NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (ProbeSpace, ProbeLatent)}
"""

VAE = VAEConfig(
    block_out_channels=(8, 8, 8),
    layers_per_block=(0, 0, 0, 0),
    downsample_type=("spatiotemporal",) * 3,
    decoder_block_out_channels=(8, 8, 8),
    decoder_layers_per_block=(0, 0, 0, 0),
    decoder_upsample_type=("spatiotemporal",) * 3,
    upsample_factor=(1, 1, 1),
    patch_size=2,
    decoder_causal=True,
)


def write_tae(path):
    command = [os.environ.get("COMFY_PYTHON", sys.executable), "-c", WRITE_TAE, os.environ["COMFY_DIR"], str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """With a model and a VAE of as many channels as LTX-2's."""
    models = tmp_path_factory.mktemp("models")
    server = ComfyServer(tmp_path_factory.mktemp("comfy"), arguments=("--preview-size", "256"))
    (server.base / "custom_nodes" / "probe").mkdir()
    (server.base / "custom_nodes" / "probe" / "__init__.py").write_text(PROBE)
    wide = replace(toy_configs(CAPTION_CHANNELS)["dit"], in_channels=128, source_channels=128)
    server.put_model(save_dit(random_dit(wide), models / "wide"), "diffusion_models", "wide.safetensors")
    save_vae(random_vae(VAE, 3), models / "small")
    server.put_model(models / "small", "vae")
    with server:
        server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
        yield server


def sampling(folder, space="ltx2", look=True, **changes):
    """Two chunks up to the Sampler, node 7."""
    changes = {"n6__width": 128, "n6__height": 96, "n6__max_frames": 57, **changes}
    files = {"n1__file": "wide.safetensors", "n2__file": "small/diffusion_pytorch_model.safetensors"}
    graph = workflow("stages", **files, **changes)
    graph["10"] = {"class_type": "ProbeSpace", "inputs": {"samples": ["6", 0], "space": space, "look": look}}
    graph["7"]["inputs"]["source"] = ["10", 0]
    graph["8"] = {"class_type": "ProbeLatent", "inputs": {"samples": ["7", 0], "path": str(folder / "latent.pt")}}
    del graph["9"]
    return graph


def shown(comfy, graph, method=None):
    """The Sampler's pictures, and its latents."""
    extra = {} if method is None else {"preview_method": method}
    with comfy.listen() as events:
        comfy.run(graph, **extra)
        events.wait_for("execution_success")
    pictures = [Image.open(BytesIO(preview.image)) for preview in events.previews if preview.node == "7"]
    arrays = [np.asarray(picture.convert("RGB")).astype(float) for picture in pictures]
    return arrays, torch.load(graph["8"]["inputs"]["path"])


def put_decoder(comfy, content=None):
    folder = comfy.base / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    if content is None:
        write_tae(folder / "taeltx_2.safetensors")
    else:
        (folder / "taeltx_2.safetensors").write_bytes(content)


def apart(a, b):
    return [float(abs(x - y).mean()) for x, y in zip(a, b, strict=True)]


def test_previews_follow_the_method(comfy, tmp_path):
    """None by default; else a linear map, or ComfyUI's small decoder once its file is there. The latents stay the same."""
    nothing, latents = shown(comfy, sampling(tmp_path))
    assert nothing == []
    # Without a map of ours ComfyUI's own for LTX-2 draws, and latents of other spaces are not drawn at all.
    known, same = shown(comfy, sampling(tmp_path, look=False, n7__max_sink_distance=90), "auto")
    assert len(known) == 2
    assert torch.equal(same, latents)
    assert shown(comfy, sampling(tmp_path, "", look=False, n7__max_sink_distance=91), "auto")[0] == []

    # What was encoded while there were none.
    linear, same = shown(comfy, sampling(tmp_path, n7__max_sink_distance=97), "latent2rgb")
    assert [picture.shape for picture in linear] == [(192, 256, 3)] * 2
    assert min(apart(linear, known)) > 10
    assert torch.equal(same, latents)
    missing, same = shown(comfy, sampling(tmp_path, n7__max_sink_distance=92), "taesd")
    assert apart(missing, linear) == [0, 0]
    assert "could not find models/vae_approx/taeltx_2" in comfy.log()

    put_decoder(comfy)
    decoded, decoded_latents = shown(comfy, sampling(tmp_path, n7__max_sink_distance=93), "taesd")
    assert [picture.shape for picture in decoded] == [(192, 256, 3)] * 2
    assert min(apart(decoded, linear)) > 10
    assert min(picture.std() for picture in decoded) > 5
    assert "Requested to load TAEHV" in comfy.log()
    # Recorded passes need weights that stay where they are.
    recorded, _ = shown(comfy, sampling(tmp_path, n7__max_sink_distance=94, n7__cuda_graph=True), "taesd")
    assert apart(recorded, linear) == [0, 0]
    other, _ = shown(comfy, sampling(tmp_path, "", n7__max_sink_distance=95), "taesd")
    assert apart(other, linear) == [0, 0]

    put_decoder(comfy, b"broken")
    broken, broken_latents = shown(comfy, sampling(tmp_path, n7__max_sink_distance=96), "taesd")
    assert apart(broken, linear) == [0, 0]
    assert "no preview by ComfyUI's decoder" in comfy.log()
    assert torch.equal(decoded_latents, latents)
    assert torch.equal(broken_latents, latents)
    assert torch.equal(same, latents)
