# mypy: ignore-errors
"""Triton kernels that keep whole rows of C channels in registers (README.md: formulas, cost).

A row is held as HEAD channels, the largest power of two below C, and TAIL channels, the power of two that holds the rest: 2048
and 256 for 2240, where one power of two would leave almost half of the lanes idle. Inside is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deferred_jit import DeferredJit

if TYPE_CHECKING:
    import triton.language as tl

jit = DeferredJit(globals(), ("num_rows",))


@jit
def _load(ptr, row_stride, rows, row_ok, cols, width):
    """Rows [BR, cols] as they lie, zero outside."""
    mask = row_ok[:, None] & (cols < width)[None, :]
    return tl.load(ptr + rows[:, None] * row_stride + cols[None, :], mask=mask, other=0.0)


@jit
def _store(ptr, values, row_stride, rows, row_ok, cols, width):
    mask = row_ok[:, None] & (cols < width)[None, :]
    tl.store(ptr + rows[:, None] * row_stride + cols[None, :], values.to(ptr.dtype.element_ty), mask=mask)


@jit
def _load_row(ptr, cols, width):
    """One row [1, cols], float32, zero outside."""
    # As a matrix, like the rows that it meets: a vector would be laid out anew through shared memory.
    return tl.load(ptr + cols[None, :], mask=(cols < width)[None, :], other=0.0).to(tl.float32)


@jit
def _means(head, tail, width, BR: tl.constexpr):
    """Means [BR, 1] over whole rows."""
    if BR == 1:
        # Scalars have no layout: as vectors, the two sums would have one part of the row laid out like the other.
        return tl.zeros([1, 1], tl.float32) + (tl.sum(head) + tl.sum(tail)) / width
    else:  # noqa: RET505
        return ((tl.sum(head, 1) + tl.sum(tail, 1)) / width)[:, None]


@jit
def _summed(x, branch_ptr, sum_ptr, branch_row, rows, row_ok, cols, width):
    """x + branch rounded to the dtype of x, and written."""
    total = x.to(tl.float32) + _load(branch_ptr, branch_row, rows, row_ok, cols, width).to(tl.float32)
    total = total.to(x.dtype)
    _store(sum_ptr, total, width, rows, row_ok, cols, width)
    return total


@jit
def _modulate(centred, inverse, shift_ptr, scale_ptr, cols, width):
    shift = _load_row(shift_ptr, cols, width)
    scale = _load_row(scale_ptr, cols, width)
    return centred * inverse * (1.0 + scale) + shift


@jit
def norm_modulate_kernel(
    x_ptr,
    branch_ptr,
    sum_ptr,
    shift_ptr,
    scale_ptr,
    out_ptr,
    x_sample,
    x_row,
    branch_sample,
    branch_row,
    shift_sample,
    scale_sample,
    num_rows,
    width,
    eps,
    HAS_BRANCH: tl.constexpr,
    BR: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """(x - mean) / sqrt(variance + eps) * (1 + scale) + shift. Grid (tiles of BR rows of a sample, B).

    With a branch, x + branch stands for x and is written to sum [B, N, C]. out [B, N, C] is contiguous.
    """
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    row_ok = rows < num_rows
    rows = rows.to(tl.int64)
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    x_ptr += sample * x_sample
    shift_ptr += sample * shift_sample
    scale_ptr += sample * scale_sample
    out_ptr += sample * num_rows * width

    x_head = _load(x_ptr, x_row, rows, row_ok, head, width)
    x_tail = _load(x_ptr, x_row, rows, row_ok, tail, width)
    if HAS_BRANCH:
        branch_ptr += sample * branch_sample
        sum_ptr += sample * num_rows * width
        x_head = _summed(x_head, branch_ptr, sum_ptr, branch_row, rows, row_ok, head, width)
        x_tail = _summed(x_tail, branch_ptr, sum_ptr, branch_row, rows, row_ok, tail, width)
    x_head = x_head.to(tl.float32)
    x_tail = x_tail.to(tl.float32)
    mean = _means(x_head, x_tail, width, BR)
    x_head = x_head - mean
    x_tail = tl.where((tail < width)[None, :], x_tail - mean, 0.0)
    inverse = tl.rsqrt(_means(x_head * x_head, x_tail * x_tail, width, BR) + eps)
    _store(out_ptr, _modulate(x_head, inverse, shift_ptr, scale_ptr, head, width), width, rows, row_ok, head, width)
    _store(out_ptr, _modulate(x_tail, inverse, shift_ptr, scale_ptr, tail, width), width, rows, row_ok, tail, width)


@jit
def gated_residual_kernel(
    x_ptr,
    gate_ptr,
    y_ptr,
    out_ptr,
    x_sample,
    x_row,
    gate_sample,
    y_sample,
    y_row,
    num_rows,
    width,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """out [B, N, C] = x + gate * y, rounded once. Grid (tiles of BR rows of a sample, tiles of BC channels, B)."""
    sample = tl.program_id(2).to(tl.int64)
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    row_ok = rows < num_rows
    rows = rows.to(tl.int64)
    gate = _load_row(gate_ptr + sample * gate_sample, cols, width)
    x = _load(x_ptr + sample * x_sample, x_row, rows, row_ok, cols, width).to(tl.float32)
    y = _load(y_ptr + sample * y_sample, y_row, rows, row_ok, cols, width).to(tl.float32)
    _store(out_ptr + sample * num_rows * width, x + gate * y, width, rows, row_ok, cols, width)


@jit
def _weighted(x, inverse, weight_ptr, cols, width):
    return x * inverse * _load_row(weight_ptr, cols, width)


@jit
def _rotated(x, cos_ptr, sin_ptr, rows, row_ok, first, D: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """x [BR, BC], channels from ``first`` on, with adjacent ones turned; rows tell the rows of the tables [N, D/2]."""
    pairs = first // 2 + tl.arange(0, BC // 2)
    offsets = rows[:, None] * (D // 2) + (pairs % (D // 2))[None, :]
    cos = tl.load(cos_ptr + offsets, mask=row_ok[:, None], other=0.0)
    sin = tl.load(sin_ptr + offsets, mask=row_ok[:, None], other=0.0)
    a, b = tl.split(tl.reshape(x, [BR, BC // 2, 2]))
    return tl.interleave(a * cos - b * sin, a * sin + b * cos)


@jit
def _store_heads(ptr, values, row_stride, head_stride, rows, row_ok, cols, width, D: tl.constexpr):
    mask = row_ok[:, None] & (cols < width)[None, :]
    places = rows[:, None] * row_stride + ((cols // D).to(tl.int64) * head_stride + cols % D)[None, :]
    tl.store(ptr + places, values.to(ptr.dtype.element_ty), mask=mask)


@jit
def rms_norm_kernel(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    x_sample,
    x_row,
    out_sample,
    out_row,
    out_head,
    num_rows,
    width,
    eps,
    ROTATED: tl.constexpr,
    D: tl.constexpr,
    BR: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):
    """x / rms(x) * weight over C, then rotation of adjacent channels. Grid (tiles of BR rows of a sample, B).

    out [B, N, h, D] has any strides, with adjacent channels. Without rotation there is one head.
    """
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    row_ok = rows < num_rows
    rows = rows.to(tl.int64)
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    x_ptr += sample * x_sample
    out_ptr += sample * out_sample

    x_head = _load(x_ptr, x_row, rows, row_ok, head, width).to(tl.float32)
    x_tail = _load(x_ptr, x_row, rows, row_ok, tail, width).to(tl.float32)
    inverse = tl.rsqrt(_means(x_head * x_head, x_tail * x_tail, width, BR) + eps)
    x_head = _weighted(x_head, inverse, weight_ptr, head, width)
    x_tail = _weighted(x_tail, inverse, weight_ptr, tail, width)
    if ROTATED:
        x_head = _rotated(x_head, cos_ptr, sin_ptr, rows, row_ok, 0, D, BR, HEAD)
        x_tail = _rotated(x_tail, cos_ptr, sin_ptr, rows, row_ok, HEAD, D, BR, TAIL)
        _store_heads(out_ptr, x_head, out_row, out_head, rows, row_ok, head, width, D)
        _store_heads(out_ptr, x_tail, out_row, out_head, rows, row_ok, tail, width, D)
    else:
        _store(out_ptr, x_head, out_row, rows, row_ok, head, width)
        _store(out_ptr, x_tail, out_row, rows, row_ok, tail, width)
