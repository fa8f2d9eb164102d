"""The sizes of a transformer from the shapes in a file that does not say them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..config import DIT_PRESETS, DiTConfig, spread_layers
from ..errors import CheckpointError
from .file_names import CONFIG_NAME, WEIGHTS_NAME

# Keys that every file has and buffers that it may have, whose shapes give sizes, with their number of dimensions.
_SIZED = {
    "x_embedder.proj.weight": 5,
    "final_layer.linear.weight": 2,
    "y_embedder.y_proj.fc1.weight": 2,
    "blocks.0.mlp.inverted_conv.conv.weight": 4,
}
_SIZED_BUFFERS = {"pos_embed": 3, "y_embedder.y_embedding": 2}
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def infer_config(official: Mapping[str, tuple[int, ...]], source: str | Path) -> DiTConfig:
    """The config that a release-style file must have, from its shapes. CheckpointError when it is no such file.

    A file of the released width has the released sizes: blocks that are absent altogether are missing keys. At any other
    width the softmax blocks must lie as the release spreads them, which a file that lost its last blocks breaks unless it
    ends with a softmax block.
    """
    _check_sizes(official, source)
    depth = 1 + max(int(match[1]) for key in official if (match := _BLOCK.match(key)))
    softmax = tuple(i for i in range(depth) if f"blocks.{i}.attn.A_log" not in official)
    heads = next((s[0] for key, s in official.items() if key.endswith(".attn.A_log")), 0)
    q_dims = len(official.get(f"blocks.{softmax[0]}.attn.q.weight", ())) if softmax else 0
    width, total_channels = official["x_embedder.proj.weight"][:2]
    in_channels = official["final_layer.linear.weight"][0]
    preset = next((p for p in DIT_PRESETS.values() if p.hidden_size == width and q_dims == _q_dims(p)), None)
    if preset is not None:
        return preset
    if not softmax or not heads or width % (2 * heads) or softmax != spread_layers(depth, len(softmax)):
        raise CheckpointError(
            f"{source} has no config and its sizes do not follow from its shapes ({depth} blocks, of which softmax "
            f"{softmax}; width {width}, {heads} heads): blocks are missing, or it needs its {CONFIG_NAME} beside it and "
            f"the name {WEIGHTS_NAME}"
        )
    positions = official.get("pos_embed", (1, 484, width))[1]
    return DiTConfig(
        variant="streaming" if q_dims == 3 else "bidirectional",
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


def check_kind(official: Iterable[str], source: str | Path) -> None:
    """CheckpointError for keys of another network."""
    keys = list(official)
    if not any(key in keys for key in _SIZED):
        raise CheckpointError(
            f"{source} is not a SANA-Streaming transformer: it has no {next(iter(_SIZED))}; its first keys are "
            f"{', '.join(keys[:3])}. Give the file of the DiT, for example sana_streaming_ar.pth"
        )


def _check_sizes(official: Mapping[str, tuple[int, ...]], source: str | Path) -> None:
    """CheckpointError unless every key that sizes are read from is there, with the right number of dimensions."""
    if absent := [key for key in _SIZED if key not in official]:
        raise CheckpointError(f"{source} is an incomplete SANA-Streaming transformer: missing {', '.join(absent)}")
    sized = _SIZED | _SIZED_BUFFERS | {key: 1 for key in official if key.endswith(".attn.A_log")}
    for key, dims in sized.items():
        shape = official.get(key)
        if shape is not None and (len(shape) != dims or 0 in shape):
            raise CheckpointError(
                f"{source} has {key} of shape {shape}; a SANA-Streaming transformer has {dims} dimensions there, "
                "none of them 0: download it again"
            )


def _q_dims(config: DiTConfig) -> int:
    return 3 if config.variant == "streaming" else 2
