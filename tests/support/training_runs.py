"""Small folders to train from: pairs in a ZIP shard, a VAE, a transformer's sizes, configs in YAML."""

import io
import json
import zipfile

import numpy as np
import torch
import toys
import yaml
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.weights.random_init import random_vae
from sana_streaming.sana_core.weights.vae import save_vae

TEXT_CHANNELS = 8
# Two chunks of three latent frames.
FRAMES = 41
VAE = {
    "latent_channels": 4,
    "block_out_channels": [8, 16, 32],
    "layers_per_block": [1, 1, 1, 1],
    "downsample_type": ["temporal"] * 3,
    "decoder_block_out_channels": [8, 8, 8],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_upsample_type": ["temporal"] * 3,
    "upsample_residual": [False] * 3,
    "upsample_factor": [1, 1, 1],
    "patch_size": 8,
}
DIT = {
    "depth": 2,
    "hidden_size": 24,
    "num_heads": 2,
    "in_channels": 4,
    "source_channels": 4,
    "caption_channels": TEXT_CHANNELS,
    "max_text_tokens": 5,
    "mlp_ratio": 2.0,
    "softmax_layers": [1],
    "pos_embed_size": 1,
}


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def clip(frames=9, height=16, width=24, seed=0):
    return toys.frames(frames, height, width, seed).numpy()


def write_pairs(folder, count=3, frames=9, members=None, **fields):
    """A folder with manifest.jsonl and one shard; ``members`` are bytes that take the place of the usual ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with zipfile.ZipFile(folder / "0.zip", "w") as archive:
        for index in range(count):
            source = clip(frames, seed=index)
            files = {f"{index}/source.npy": npy(source), f"{index}/target.npy": npy(255 - source)}
            for name, data in (files | (members or {})).items():
                if name in files:
                    archive.writestr(name, data)
            row = {"id": f"pair {index}", "shard": "0.zip", "prompt": f"make it {index}", "width": 24, "height": 16}
            row |= {"source_member": f"{index}/source.npy", "target_member": f"{index}/target.npy"}
            rows.append({**row, "reverse_prompt": f"undo {index}", **fields})
    lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_vae(folder):
    save_vae(random_vae(VAEConfig.from_dict({"decoder_causal": True, **VAE}), seed=0), folder)
    return folder


def write_config(path, **changes):
    """A config of ``train`` on pairs, with keys replaced; a key whose value is ``...`` is left out."""
    values = {
        "model": {"new": DIT},
        "vae": "vae",
        "text_encoder": "text_encoder",
        "data": {"pairs": "pairs"},
        "size": {"height": 16, "width": 24, "frames": FRAMES},
        "trainer": {"steps": 4, "learning_rate": 1e-3, "save_every": 1},
        "save_dtype": "float32",
    }
    return write_yaml(path, values | changes)


def write_vae_config(path, **changes):
    """A config of ``train-vae`` on the built-in data, with keys replaced."""
    values = {
        "vae": VAE,
        "data": {"builtin": "scenes"},
        "size": {"height": 32, "width": 32, "frames": 9},
        "trainer": {"steps": 4, "learning_rate": 1e-3, "save_every": 1},
        "init_clips": 2,
        "save_dtype": "float32",
    }
    return write_yaml(path, values | changes)


def write_yaml(path, values):
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")
    return path


class StandInEncoder:
    """In place of Gemma: embeddings that depend on the text alone; counts what it encodes."""

    hidden_size = TEXT_CHANNELS

    def __init__(self, folder, **options):
        self.encoded = []
        self._prompts = toys.RandomPrompts(TEXT_CHANNELS, max_tokens=5, num_tokens=3)

    def encode(self, text):
        self.encoded.append(text)
        return self._prompts.encode(text)

    def unload(self):
        pass


def moving_clips(count, frames=9, height=32, width=32):
    return [torch.from_numpy(clip(frames, height, width, seed)) for seed in range(count)]
