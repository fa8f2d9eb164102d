# mypy: ignore-errors
"""Triton kernel of the middle of the MixFFN (README.md: formula, cost)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deferred_jit import DeferredJit

if TYPE_CHECKING:
    import triton.language as tl

# Strides and the number of channels tell how far loads may be widened; the grid does not.
jit = DeferredJit(globals(), ("rows", "columns"))


@jit
def _silu(x):
    """x / (1 + exp(-x)). The square of a reciprocal root is a third of the instructions of a quotient."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return x * root * root


@jit
def _taps(weight_ptr, channels, channel_ok):
    """The nine weights of channels [BC] of a tensor [.., 3, 3], row after row."""
    taps = ()
    for tap in tl.static_range(9):
        weight = tl.load(weight_ptr + channels * 9 + tap, mask=channel_ok, other=0.0)
        taps = taps + (weight.to(tl.float32),)  # noqa: RUF005
    return taps


@jit
def _column(frame_ptr, token_stride, channels, inner, first_row, column, end, rows, columns, R: tl.constexpr):
    """Rows first_row - 1 to first_row + R of one column [BC] each; zero outside of the frame and from column ``end`` on."""
    values = ()
    for i in tl.static_range(R + 2):
        row = first_row - 1 + i
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < end)
        place = (row * columns + column) * token_stride
        mask = channels < tl.where(inside, inner, 0)
        values = values + (tl.load(frame_ptr + (place + channels), mask=mask, other=0.0),)  # noqa: RUF005
    return values


@jit
def _activated(column, R: tl.constexpr):
    """SiLU of the R + 2 rows, float32."""
    values = ()
    for i in tl.static_range(R + 2):
        values = values + (_silu(column[i].to(tl.float32)),)  # noqa: RUF005
    return values


@jit
def _swept(x, taps, left, R: tl.constexpr, dc: tl.constexpr):
    """``left`` [R], sums of R output rows, plus what column ``x`` gives them through the weights of column ``dc``."""
    sums = ()
    for i in tl.static_range(R):
        total = left[i] + taps[dc] * x[i] + taps[3 + dc] * x[i + 1] + taps[6 + dc] * x[i + 2]
        sums = sums + (total,)  # noqa: RUF005
    return sums


@jit
def _repeated(x, R: tl.constexpr):
    values = ()
    for _ in tl.static_range(R):
        values = values + (x,)  # noqa: RUF005
    return values


@jit
def glu_depthwise_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    frame_stride,
    token_stride,
    rows,
    columns,
    inner,
    R: tl.constexpr,
    W: tl.constexpr,
    BC: tl.constexpr,
):
    """out [frames, rows * columns, I] = value * SiLU(gate) of the depthwise 3x3 of SiLU(hidden [frames, .., 2I]) plus bias.

    Grid (tiles of BC channels, strips of R rows x W columns, frames). A program walks along its strip: each column is
    activated once and added to the sums of the column before, of its own and of the one behind, which live in registers.
    """
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    channel_ok = channels < inner
    spans = (columns + W - 1) // W
    first_row = (tl.program_id(1) // spans) * R
    first = (tl.program_id(1) % spans) * W
    last = tl.minimum(first + W, columns)
    # One column behind the strip is read, if there is one.
    end = tl.minimum(last + 1, columns)
    frame = tl.program_id(2).to(tl.int64)
    value_ptr = hidden_ptr + frame * frame_stride
    gate_ptr = value_ptr + inner
    out_ptr += frame * rows * columns * inner

    value_taps = _taps(weight_ptr, channels, channel_ok)
    gate_taps = _taps(weight_ptr + inner * 9, channels, channel_ok)
    value_bias = tl.load(bias_ptr + channels, mask=channel_ok, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias_ptr + inner + channels, mask=channel_ok, other=0.0).to(tl.float32)

    # Sums of the column before (two of its three columns seen) and of this one (one seen).
    value_before, gate_before = _repeated(value_bias, R), _repeated(gate_bias, R)
    value_here, gate_here = value_before, gate_before
    value_next = _column(value_ptr, token_stride, channels, inner, first_row, first - 1, end, rows, columns, R)
    gate_next = _column(gate_ptr, token_stride, channels, inner, first_row, first - 1, end, rows, columns, R)
    for column in range(first - 1, last + 1):
        value, gate = _activated(value_next, R), _activated(gate_next, R)
        # Asked for before the sums, so that it is on its way while they are formed.
        value_next = _column(value_ptr, token_stride, channels, inner, first_row, column + 1, end, rows, columns, R)
        gate_next = _column(gate_ptr, token_stride, channels, inner, first_row, column + 1, end, rows, columns, R)
        value_done = _swept(value, value_taps, value_before, R, 2)
        gate_done = _swept(gate, gate_taps, gate_before, R, 2)
        for i in tl.static_range(R):
            row = first_row + i
            place = (row * columns + column - 1) * inner
            out = value_done[i] * _silu(gate_done[i])
            mask = channels < tl.where((row < rows) & (column > first), inner, 0)
            tl.store(out_ptr + (place + channels), out.to(out_ptr.dtype.element_ty), mask=mask)
        value_before = _swept(value, value_taps, value_here, R, 1)
        gate_before = _swept(gate, gate_taps, gate_here, R, 1)
        value_here = _swept(value, value_taps, _repeated(value_bias, R), R, 0)
        gate_here = _swept(gate, gate_taps, _repeated(gate_bias, R), R, 0)
