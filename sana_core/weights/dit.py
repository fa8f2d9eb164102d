"""Transformer weights: the release's key layout, reading, writing, listing.

In memory the 1x1 and kernel-1 convolutions are Linears, only the centre tap of the streaming q and k convolutions is kept,
the temporal convolution is one Linear over three frames, and q, k, v and gate may be one Linear. Files hold the release's
layout.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import DiTConfig, read_json
from ..errors import CheckpointError, InputError
from ..models.attention import AttentionLayout
from ..models.dit import SanaStreamingDiT
from ..precision.apply import apply_plan, build_quantized, is_quantized, quantized_state
from ..precision.calibration import NUM_PASSES, calibrated
from ..precision.plan import Plan, choose_plan
from .checkpoint import (
    INDEX_SUFFIX,
    TORCH_SUFFIXES,
    check_dtypes,
    check_keys,
    config_inside,
    fingerprint,
    read_checkpoint,
    shapes,
)
from .dit_sizes import check_kind, infer_config
from .file_names import CONFIG_NAME, WEIGHTS_NAME
from .safetensors_file import save_safetensors

logger = logging.getLogger(__name__)

# Metadata of a quantized file: the network's, which cannot be told from its weights.
FINGERPRINT = "fingerprint"
# In the release's files, never read by a forward pass.
DEAD_KEYS = frozenset({"pos_embed", "y_embedder.y_embedding"})
# Rows of the fused projection, in this order.
FUSED_PARTS = ("q", "k", "v", "output_gate")

# Called with a network whose weights it may change.
Change = Callable[[SanaStreamingDiT], None]


def _keep(model: SanaStreamingDiT) -> None:
    """Changes nothing."""


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
    """The model's weights under the release's keys, in its shapes; dead taps are zero, dead buffers are left out.

    InputError for a quantized model, whose weights are not the release's.
    """
    state = model.state_dict()
    if is_quantized(state):
        raise InputError("the network is quantized; load the file that it was made from, without a precision plan")
    for key, value in state.items():
        if ".attn.qkvg." in key:
            yield from _split_fused(key, value, model.config)
        else:
            yield key, to_official(key, value, model.config)


def _split_fused(key: str, value: torch.Tensor, config: DiTConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for part, rows in zip(FUSED_PARTS, value.chunk(4), strict=True):
        if key.endswith(".weight") or part == "output_gate":
            name = key.replace(".qkvg.", f".{part}.")
            yield name, to_official(name, rows, config)


def to_official(key: str, value: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    """A weight of the split layout in the release's shape."""
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


def from_official(key: str, value: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    """The inverse of :func:`to_official`."""
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
        return from_official(key, official[key], config).to(dtype)

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


def dit_file(path: str | Path) -> Path:
    """The weight file that ``path`` names: itself, or of a folder the one in it or in its ``dit/``.

    In a folder that is ``model.safetensors``, else the only index of shards, else the only checkpoint. CheckpointError
    where there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for place in (path / "dit", path):
        if (place / WEIGHTS_NAME).is_file():
            return place / WEIGHTS_NAME
        if place.is_dir():
            found = sorted(place.glob(f"*{INDEX_SUFFIX}"))
            found = found or sorted(f for f in place.iterdir() if f.suffix in (".safetensors", *TORCH_SUFFIXES))
            if len(found) == 1:
                return found[0]
    raise CheckpointError(f"{path} holds no single transformer checkpoint, nor does its folder dit; name the file")


def read_dit(path: str | Path) -> tuple[dict[str, torch.Tensor], DiTConfig]:
    """(official state dict, config) of a weight file, its folder or a folder with ``dit/``; strict.

    The config is the one inside the file, else for ``model.safetensors`` the ``config.json`` beside it, else what follows
    from the shapes. Weights may be stored in float32, float16 or bfloat16. Raises CheckpointError for anything else.
    """
    path = dit_file(path)
    state, metadata = read_checkpoint(path)
    return state, checked_config(state, metadata, path)


def checked_config(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path) -> DiTConfig:
    """The config of the official ``state`` read from ``path``; CheckpointError unless keys, shapes and dtypes are right."""
    check_kind(state, path)
    config = _read_config(path, metadata) or infer_config(shapes(state), path)
    # First, since a quantized file also has keys of its own.
    check_dtypes({key: value for key, value in state.items() if key not in DEAD_KEYS}, path)
    check_keys(official_shapes(config), shapes(state), path, optional=DEAD_KEYS)
    return config


def _read_config(path: Path, metadata: Mapping[str, str]) -> DiTConfig | None:
    """The config inside the file or beside it; None where there is neither."""
    source, values, beside = path, config_inside(metadata, path), path.with_name(CONFIG_NAME)
    # Beside a file of another name it may belong to another network.
    if values is None and path.name == WEIGHTS_NAME and beside.is_file():
        source, values = beside, read_json(beside)
    if values is None:
        return None
    try:
        return DiTConfig.from_dict(values)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}; use the config that the weights were published with") from error


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
    precision: Plan | str | Path | None = None,
    quantized_operations: Any = None,
    change: Change = _keep,
    runs_on: torch.device | None = None,
) -> SanaStreamingDiT:
    """The transformer from what :func:`read_dit` takes: the release's file, a folder of :func:`save_dit`, a bundle.

    ``precision`` is a plan, a preset or the file of a plan, which then also picks the layout; a file that is quantized
    itself takes none. ``quantized_operations`` makes the layers of a network that is quantized either way, as ``operations``
    does of any other; None: this package's own. ``change`` is called with the network before a plan quantizes it, to merge
    a LoRA for example. ``runs_on`` is where a host moves a quantized file's network to run, if not on ``device``. Raises
    InputError for a plan of another network.
    """
    path = dit_file(path)
    state, metadata = read_checkpoint(path)
    if is_quantized(state):
        if precision is not None:
            raise InputError(f"{path} is quantized already; give the plan with the file that it was made from")
        model = load_quantized(state, metadata, path, device, dtype, quantized_operations, runs_on)
        change(model)
        return model
    config = checked_config(state, metadata, path)
    if precision is None:
        model = build_dit(state, config, layout=layout, device=device, dtype=dtype, operations=operations)
        change(model)
        return model
    return quantize_dit(state, config, precision, device, dtype, quantized_operations, change)


def quantize_dit(
    official: Mapping[str, torch.Tensor],
    config: DiTConfig,
    precision: Plan | str | Path,
    device: torch.device | str,
    dtype: torch.dtype,
    operations: Any = None,
    change: Change = _keep,
) -> SanaStreamingDiT:
    """The network of official weights (already checked) under a plan; ``operations`` and ``change`` as in :func:`load_dit`.

    A plan may have been measured before ``change`` or after it. Input scales that it lacks are calibrated on made-up latents,
    as in the file that ``convert`` writes, on the CPU: a log line says so.
    """
    plan = precision if isinstance(precision, Plan) else choose_plan(precision, config)
    plan.check(config)
    model = build_dit(official, config, layout=plan.layout(config), device="cpu", dtype=dtype)
    base = model.fingerprint
    change(model)
    plan.check(config, model.fingerprint, base)
    if plan.lacking_amax():
        logger.warning(
            "precision %s lacks input scales: they are taken from %d passes on the CPU at each start; to take them once, "
            "write the network by convert --precision",
            plan.name,
            NUM_PASSES,
        )
    plan = calibrated(model, dataclasses.replace(plan, model=""))
    if operations is None:
        for line in apply_plan(model, plan, device=device).lines():
            logger.info("%s", line)
        return model
    apply_plan(model, plan)
    state = quantized_state(model)
    built = build_quantized(state, config, "the plan", device=device, dtype=dtype, operations=operations)
    built.fingerprint = model.fingerprint
    return built


def load_quantized(
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    operations: Any = None,
    runs_on: torch.device | None = None,
) -> SanaStreamingDiT:
    """The network of a quantized file's content; ``operations`` and ``runs_on`` as in :func:`load_dit`.

    CheckpointError for any other.
    """
    config = _read_config(path, metadata)
    if config is None:
        raise CheckpointError(
            f"{path} is a quantized transformer without its config; it needs its {CONFIG_NAME} beside it and the name "
            f"{WEIGHTS_NAME}, or make it anew: python -m sana_streaming convert ORIGINAL {path} --precision PLAN"
        )
    linears = {key: _as_linear(key, value, config) for key, value in state.items() if key not in DEAD_KEYS}
    model = build_quantized(linears, config, path, device=device, dtype=dtype, operations=operations, runs_on=runs_on)
    model.fingerprint = metadata.get(FINGERPRINT) or fingerprint(linears)
    return model


def _as_linear(key: str, value: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    """A weight as it is in memory, from the release's shape or from that of a Linear."""
    return value if value.dim() <= 2 else from_official(key, value, config)


def save_dit(model: SanaStreamingDiT, folder: str | Path) -> Path:
    """Writes model.safetensors and config.json; returns the weight file.

    The file has the release's layout, all its keys; of a quantized network ComfyUI's keys and the shapes of Linears.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    metadata = {"config": json.dumps(config)}
    state = quantized_state(model)
    if is_quantized(state):
        metadata[FINGERPRINT] = model.fingerprint
    else:
        state = dict(official_state(model))
        for key in DEAD_KEYS:
            state[key] = torch.zeros(official_shapes(model.config)[key], dtype=model.dtype)
    file = folder / WEIGHTS_NAME
    save_safetensors(file, state, metadata)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return file
