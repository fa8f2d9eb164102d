# mypy: ignore-errors
"""Triton kernel in front of the VAE's convolutions (README.md: what, layouts, cost)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deferred_jit import DeferredJit

if TYPE_CHECKING:
    import triton.language as tl

# Sizes of a frame differ from layer to layer; strides tell how far loads may be widened.
jit = DeferredJit(globals(), ("num_positions", "num_frames", "height", "width"))


@jit
def _stream(
    x_ptr,
    branch_ptr,
    bias_ptr,
    x_at,
    branch_at,
    x_channel,
    branch_channel,
    channels,
    fresh,
    C: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """x + branch + bias [BP, BC] in float32, rounded as it is stored; 0 where not fresh."""
    mask = fresh[:, None] & (channels < C)[None, :]
    total = tl.load(x_ptr + x_at[:, None] + channels[None, :].to(tl.int64) * x_channel, mask=mask, other=0.0)
    total = total.to(tl.float32)
    if HAS_BRANCH:
        place = branch_ptr + branch_at[:, None] + channels[None, :].to(tl.int64) * branch_channel
        total += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=channels < C, other=0.0).to(tl.float32)
        total += tl.where(fresh[:, None], bias[None, :], 0.0)
    if HAS_BRANCH or HAS_BIAS:
        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)
    return total


@jit
def _finish(
    total,
    scale,
    history_ptr,
    padded_ptr,
    sum_ptr,
    history_at,
    history_channel,
    padded_at,
    sum_at,
    channels,
    position_ok,
    carried,
    inside,
    C: tl.constexpr,
    HAS_SUM: tl.constexpr,
    HAS_HISTORY: tl.constexpr,
    NORM: tl.constexpr,
):
    """Stores the sum where it is wanted and no copy, and the padded input."""
    channel_ok = (channels < C)[None, :]
    if HAS_SUM:
        place = sum_ptr + sum_at[:, None] + channels[None, :]
        tl.store(place, total.to(sum_ptr.dtype.element_ty), mask=inside[:, None] & channel_ok)
    if NORM:
        total = total * scale[:, None]
        total = total * tl.sigmoid(total)
    if HAS_HISTORY:
        place = history_ptr + history_at[:, None] + channels[None, :].to(tl.int64) * history_channel
        past = tl.load(place, mask=carried[:, None] & channel_ok, other=0.0).to(tl.float32)
        total = tl.where(carried[:, None], past, total)
    place = padded_ptr + padded_at[:, None] + channels[None, :]
    tl.store(place, total.to(padded_ptr.dtype.element_ty), mask=position_ok[:, None] & channel_ok)


@jit
def vae_norm_fwd_kernel(
    x_ptr,
    branch_ptr,
    bias_ptr,
    history_ptr,
    padded_ptr,
    sum_ptr,
    num_positions,
    num_frames,
    height,
    width,
    x_batch,
    x_channel,
    x_frame,
    x_row,
    x_column,
    branch_batch,
    branch_channel,
    branch_frame,
    branch_row,
    branch_column,
    history_batch,
    history_channel,
    history_frame,
    history_row,
    history_column,
    eps,
    C: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HISTORY: tl.constexpr,
    HAS_SUM: tl.constexpr,
    NORM: tl.constexpr,
    BORDER: tl.constexpr,
    LEAD: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """padded [B, T + 2, H + 2 BORDER, W + 2 BORDER, C], and with HAS_SUM x + branch + bias [B, T, H, W, C].

    Grid (tiles of BP positions). A program makes BP positions of the padded tensor, LEAD frames of which are in front; the
    border reads its rows again.
    """
    positions = tl.program_id(0) * BP + tl.arange(0, BP)
    position_ok = positions < num_positions
    column = positions % (width + 2 * BORDER) - BORDER
    rest = positions // (width + 2 * BORDER)
    row = rest % (height + 2 * BORDER) - BORDER
    rest = rest // (height + 2 * BORDER)
    frame = rest % (num_frames + 2) - LEAD
    batch = (rest // (num_frames + 2)).to(tl.int64)

    inside = position_ok & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & (frame >= 0) & (frame < num_frames)
    carried = position_ok
    fresh = position_ok
    if HAS_HISTORY:
        carried = position_ok & (frame < 0)
        fresh = position_ok & (frame >= 0)

    # Reflected without the edge: -1 is 1, height is height - 2.
    row = tl.where(row < 0, -row, tl.where(row < height, row, 2 * height - 2 - row))
    column = tl.where(column < 0, -column, tl.where(column < width, column, 2 * width - 2 - column))
    source = tl.minimum(tl.maximum(frame, 0), num_frames - 1).to(tl.int64)
    x_at = batch * x_batch + source * x_frame + row * x_row + column * x_column
    branch_at = batch * branch_batch + source * branch_frame + row * branch_row + column * branch_column
    past = (frame + LEAD).to(tl.int64)
    history_at = batch * history_batch + past * history_frame + row * history_row + column * history_column
    sum_at = (((batch * num_frames + source) * height + row) * width + column) * C
    padded_at = positions.to(tl.int64) * C

    scale = tl.zeros([BP], tl.float32)
    if C <= BC:
        channels = tl.arange(0, BC)
        total = _stream(
            x_ptr, branch_ptr, bias_ptr, x_at, branch_at, x_channel, branch_channel, channels, fresh, C, HAS_BRANCH, HAS_BIAS
        )  # fmt: skip
        if NORM:
            scale = tl.rsqrt(tl.sum(total * total, 1) / C + eps)
        _finish(
            total, scale, history_ptr, padded_ptr, sum_ptr, history_at, history_channel, padded_at, sum_at, channels,
            position_ok, carried, inside, C, HAS_SUM, HAS_HISTORY, NORM,
        )  # fmt: skip
    else:
        if NORM:
            squares = tl.zeros([BP, BC], tl.float32)
            for start in range(0, C, BC):
                channels = start + tl.arange(0, BC)
                total = _stream(
                    x_ptr, branch_ptr, bias_ptr, x_at, branch_at, x_channel, branch_channel, channels, fresh, C,
                    HAS_BRANCH, HAS_BIAS,
                )  # fmt: skip
                squares += total * total
            scale = tl.rsqrt(tl.sum(squares, 1) / C + eps)
        for start in range(0, C, BC):
            channels = start + tl.arange(0, BC)
            total = _stream(
                x_ptr, branch_ptr, bias_ptr, x_at, branch_at, x_channel, branch_channel, channels, fresh, C,
                HAS_BRANCH, HAS_BIAS,
            )  # fmt: skip
            _finish(
                total, scale, history_ptr, padded_ptr, sum_ptr, history_at, history_channel, padded_at, sum_at, channels,
                position_ok, carried, inside, C, HAS_SUM, HAS_HISTORY, NORM,
            )  # fmt: skip
