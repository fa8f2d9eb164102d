"""Transformer weights: the release's key layout, reading, writing, listing.

In memory the 1x1 and kernel-1 convolutions are Linears, only the centre tap of the streaming q and k convolutions is kept,
the temporal convolution is one Linear over three frames, and q, k, v and gate may be one Linear. Files hold the release's
layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import DIT_PRESETS, DiTConfig, read_json
from ..errors import CheckpointError
from ..models.attention import AttentionLayout
from ..models.dit import SanaStreamingDiT
from .checkpoint import check_keys, fingerprint, read_checkpoint, shapes

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
# In the release's files, never read by a forward pass.
DEAD_KEYS = frozenset({"pos_embed", "y_embedder.y_embedding"})
# Rows of the fused projection, in this order.
FUSED_PARTS = ("q", "k", "v", "output_gate")


def official_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Every key of the release's file for ``config`` with its shape, dead buffers included."""
    with torch.device("meta"):
        model = SanaStreamingDiT(config, layout="split")
    listed = shapes(dict(official_state(model)))
    buffers = {
        "pos_embed": (1, config.pos_embed_size**2, config.hidden_size),
        "y_embedder.y_embedding": (config.max_text_tokens, config.caption_channels),
    }
    return dict(sorted((buffers | listed).items()))


def official_state(model: SanaStreamingDiT) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights under the release's keys, in its shapes; dead taps are zero, dead buffers are left out."""
    state = model.state_dict()
    for key, value in state.items():
        if ".attn.qkvg." in key:
            yield from _split_fused(key, value, model.config)
        else:
            yield key, _to_official(key, value, model.config)


def _split_fused(key: str, value: torch.Tensor, config: DiTConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for part, rows in zip(FUSED_PARTS, value.chunk(4), strict=True):
        if key.endswith(".weight") or part == "output_gate":
            name = key.replace(".qkvg.", f".{part}.")
            yield name, _to_official(name, rows, config)


def _to_official(key: str, value: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    kind = _reshaped_kind(key, config)
    if kind == "video":
        return value[..., None, None, None]
    if kind == "point":
        return value[..., None, None]
    if kind == "temporal":
        return value.unflatten(1, (3, -1)).transpose(1, 2)[..., None]
    if kind == "single tap":
        return value[..., None]
    if kind == "centre tap":
        return torch.stack([torch.zeros_like(value), value, torch.zeros_like(value)], -1)
    return value


def _from_official(key: str, value: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    kind = _reshaped_kind(key, config)
    if kind in ("video", "point"):
        return value.flatten(1)
    if kind == "temporal":
        return value.squeeze(-1).transpose(1, 2).flatten(1)
    if kind == "single tap":
        return value.squeeze(-1)
    if kind == "centre tap":
        return value[..., 1]
    return value


def _reshaped_kind(key: str, config: DiTConfig) -> str | None:
    """How the release shapes a weight that is a plain Linear here."""
    if key == "x_embedder.proj.weight":
        return "video"
    if key.endswith((".inverted_conv.conv.weight", ".point_conv.conv.weight")):
        return "point"
    if key.endswith(".mlp.t_conv.weight"):
        return "temporal"
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.[qk]\.weight", key):
        if not config.is_softmax(int(match[1])):
            return "single tap"
        return "centre tap" if config.variant == "streaming" else None
    return None


def model_state(
    official: Mapping[str, torch.Tensor], config: DiTConfig, layout: AttentionLayout, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict of :class:`SanaStreamingDiT` from the release's keys, one tensor at a time."""

    def part(key: str) -> torch.Tensor:
        return _from_official(key, official[key], config).to(dtype)

    for key in official:
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.(q|k|v|output_gate)\.(weight|bias)", key)
        if key in DEAD_KEYS or (layout == "fused" and match and match[2] != "q"):
            continue
        if layout == "split" or not match:
            yield key, part(key).contiguous()
            continue
        prefix = match[1]
        yield f"{prefix}.qkvg.weight", torch.cat([part(f"{prefix}.{name}.weight") for name in FUSED_PARTS])
        gate_bias = part(f"{prefix}.output_gate.bias")
        yield f"{prefix}.qkvg.bias", torch.cat([gate_bias.new_zeros(3 * gate_bias.numel()), gate_bias])


def infer_config(official: Mapping[str, tuple[int, ...]], source: str | Path) -> DiTConfig:
    """The config that a release-style file must have, from its shapes. CheckpointError when it is no such file."""
    needed = (
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
        "y_embedder.y_proj.fc1.weight",
        "blocks.0.mlp.inverted_conv.conv.weight",
    )
    absent = [key for key in needed if key not in official]
    depth = 1 + max((int(m[1]) for key in official if (m := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    if len(absent) == len(needed) or depth == 0:
        first = ", ".join(list(official)[:3])
        raise CheckpointError(
            f"{source} is not a SANA-Streaming transformer: it has no {needed[0]}; its first keys are {first}. "
            "Give the file of the DiT, for example sana_streaming_ar.pth"
        )
    if absent:
        raise CheckpointError(f"{source} is an incomplete SANA-Streaming transformer: missing {', '.join(absent)}")
    softmax = tuple(i for i in range(depth) if f"blocks.{i}.attn.A_log" not in official)
    heads = next((s[0] for key, s in official.items() if key.endswith(".attn.A_log")), 0)
    q_shape = official.get(f"blocks.{softmax[0]}.attn.q.weight", ()) if softmax else ()
    width, total_channels = official["x_embedder.proj.weight"][:2]
    in_channels = official["final_layer.linear.weight"][0]
    preset = next((p for p in DIT_PRESETS.values() if p.hidden_size == width and len(q_shape) == _q_dims(p)), None)
    if preset is not None:
        # A file of the released width has the released depth: blocks that are absent altogether are missing keys.
        return preset
    if not softmax or not heads or width % heads:
        raise CheckpointError(
            f"{source} has no config and its sizes do not follow from its shapes "
            f"({heads} heads, softmax blocks {softmax}); put a config.json beside it"
        )
    positions = official.get("pos_embed", (1, 484, width))[1]
    return DiTConfig(
        variant="streaming" if len(q_shape) == 3 else "bidirectional",
        depth=depth,
        hidden_size=width,
        num_heads=heads,
        in_channels=in_channels,
        source_channels=total_channels - in_channels,
        caption_channels=official["y_embedder.y_proj.fc1.weight"][1],
        max_text_tokens=official.get("y_embedder.y_embedding", (300,))[0],
        mlp_ratio=official["blocks.0.mlp.inverted_conv.conv.weight"][0] / (2 * width),
        softmax_layers=softmax,
        pos_embed_size=round(positions**0.5),
    )


def _q_dims(config: DiTConfig) -> int:
    return 3 if config.variant == "streaming" else 2


def read_dit(path: str | Path) -> tuple[dict[str, torch.Tensor], DiTConfig]:
    """(official state dict, config) of a weight file or a folder with model.safetensors; strict."""
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    state, metadata = read_checkpoint(path)
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    beside = path.with_name(CONFIG_NAME)
    if "config" in metadata:
        config = DiTConfig.from_dict(json.loads(metadata["config"]))
    elif path.name == WEIGHTS_NAME and beside.is_file():
        config = DiTConfig.from_dict(read_json(beside))
    else:
        config = infer_config(shapes(state), path)
    check_keys(official_shapes(config), shapes(state), path, optional=DEAD_KEYS)
    return state, config


def build_dit(
    official: Mapping[str, torch.Tensor],
    config: DiTConfig,
    *,
    layout: AttentionLayout = "fused",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operations: Any = nn,
) -> SanaStreamingDiT:
    """The network with the given official weights (already checked), frozen, in evaluation mode."""
    model = SanaStreamingDiT(config, layout=layout, operations=operations, device="meta", dtype=dtype)
    state = {key: value.to(device) for key, value in model_state(official, config, layout, dtype)}
    model.load_state_dict(state, strict=True, assign=True)
    model.fingerprint = fingerprint({key: value for key, value in official.items() if key not in DEAD_KEYS})
    return model.eval().requires_grad_(False)


def load_dit(
    path: str | Path,
    *,
    layout: AttentionLayout = "fused",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    operations: Any = nn,
) -> SanaStreamingDiT:
    """The transformer from the release's file or a folder of :func:`save_dit`; CheckpointError if it is neither."""
    official, config = read_dit(path)
    return build_dit(official, config, layout=layout, device=device, dtype=dtype, operations=operations)


def save_dit(model: SanaStreamingDiT, folder: str | Path) -> Path:
    """Writes model.safetensors in the release's layout (all its keys) and config.json; returns the weight file."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous().cpu() for key, value in official_state(model)}
    for key in DEAD_KEYS:
        state[key] = torch.zeros(official_shapes(model.config)[key], dtype=model.dtype)
    config = model.config.to_dict()
    file = folder / WEIGHTS_NAME
    # One entry of metadata: the order of several is not fixed, and equal weights should make equal files.
    save_file(state, file, metadata={"config": json.dumps(config)})
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return file
