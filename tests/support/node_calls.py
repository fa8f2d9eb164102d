"""The nodes, called as ComfyUI calls them. For tests/nodes alone, where stand-ins for ComfyUI are on the path."""

from dataclasses import replace
from pathlib import Path

import toys
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS, make_toy_bundle

TOY = "toy (random weights)"
SIZE = {"width": 96, "height": 64}
SAMPLING = {"seed": 3, "steps": 2, "num_cached_blocks": 2, "sink_token": True, "cfg_scale": 1.0, "noise": "clip"}
SHORT = {"seed": 3, "steps": 2, "cfg_scale": 1.0, "flow_shift": 8.0, "max_frames": 81}


def node(name):
    """The node SanaStreaming``name``."""
    import sana_streaming.nodes as pack

    return next(node for node in pack.NODES if node.__name__ == f"SanaStreaming{name}")


def call(name, *args, **inputs):
    """Its outputs."""
    return node(name).execute(*args, **inputs).args


def texts():
    """What was written on nodes."""
    from server import PromptServer

    return [text for _, text in PromptServer.instance.texts]


def model(variant="streaming", seed=0):
    """A loaded toy transformer."""
    from sana_streaming.nodes import comfy_host
    from sana_streaming.nodes.sockets import LoadedModel

    config = replace(toys.CONFIGS["dit"], variant=variant, caption_channels=CAPTION_CHANNELS)
    device = comfy_host.model_device()
    return LoadedModel(comfy_host.patcher(random_dit(config, seed), device, device))


def vae(network=None):
    """A loaded VAE: the toy, or ``network``."""
    from sana_streaming.nodes import comfy_host
    from sana_streaming.nodes.sockets import LoadedVAE

    device = comfy_host.vae_device()
    return LoadedVAE(comfy_host.patcher(network or toys.networks()[1], device, device))


def encoder():
    (encoder,) = call("LoadTextEncoder", TOY)
    return encoder


def prompts(positive="make it snow", negative="blurry", **inputs):
    """(positive, negative) conditionings of the toy encoder."""
    return call("Prompt", encoder(), positive, negative, **{"motion_score": 0, **inputs})


def encode(vae, source, **changes):
    settings = {**SIZE, "start_frame": 0, "max_frames": 0, "total_frames": 0, "last_part": False, **changes}
    return call("EncodeVideo", vae, source, **settings)


def sample(model, positive, latent, **changes):
    return call("Sampler", model, positive, latent, **{**SAMPLING, **changes})


def sample_short(model, positive, latent, **changes):
    return call("ShortSampler", model, positive, latent, **{**SHORT, **changes})[0]


def decode_images(vae, latent, **changes):
    return call("DecodeImages", vae, latent, **changes)[0]


def decode_video(vae, latent, **changes):
    return call("DecodeVideo", vae, latent, **{"fps": 0.0, "crf": 0, **changes})


def edit_video(model, vae, positive, video, **changes):
    settings = {**SIZE, **SAMPLING, "start_frame": 0, "max_frames": 0, "fps": 0.0, "crf": 0, **changes}
    return call("EditVideo", model, vae, positive, video, **settings)[0]


def models_folder(*parts):
    """A folder below ComfyUI's models, made."""
    import folder_paths

    folder = Path(folder_paths.models_dir, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def toy_bundle(folder):
    return make_toy_bundle(folder)
