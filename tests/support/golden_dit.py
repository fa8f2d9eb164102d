"""The official tiny transformers, built from what their golden files say."""

from typing import Any

import golden_files
import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.weights.checkpoint import shapes
from sana_streaming.sana_core.weights.dit import build_dit
from sana_streaming.sana_core.weights.dit_sizes import infer_config


def load(name: str, layout: str = "fused") -> tuple[dict[str, Any], dict[str, torch.Tensor], SanaStreamingDiT]:
    """(case config, tensors, network) of ``dit/<name>.safetensors``."""
    case, tensors = golden_files.load(f"dit/{name}.safetensors")
    official = golden_files.weights(tensors)
    config = infer_config(shapes(official), name)
    expected = DiTConfig(
        variant=case["kind"],
        depth=case["depth"],
        hidden_size=case["hidden_size"],
        num_heads=case["num_heads"],
        in_channels=case["in_channels"],
        source_channels=case["additional_inchannels"],
        caption_channels=case["caption_channels"],
        max_text_tokens=case["model_max_length"],
        mlp_ratio=case["mlp_ratio"],
        softmax_layers=tuple(case["softmax_layer_indices"]),
        pos_embed_size=config.pos_embed_size,
    )
    assert config == expected
    return case, tensors, build_dit(official, config, layout=layout)
