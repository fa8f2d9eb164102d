# mypy: ignore-errors
"""Triton kernels of the gated delta rule (README.md: mathematics, buffers, cost).

Queries, keys, values and gates are token-major [B * T * S, h * D] with one row stride each. Heads are padded to BD, a power
of two; padded channels hold zeros in every buffer. Sums over tokens and the memory are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..deferred_jit import DeferredJit

if TYPE_CHECKING:
    import triton.language as tl

# Frames, tokens and shares differ from call to call; strides and widths tell how far loads may be widened.
jit = DeferredJit(globals(), ("num_frames", "tokens_per_frame", "tokens_per_split", "num_splits", "num_rows"))


@jit
def _inverse_rms(x_ptr, row_stride, rows, row_ok, width, eps, BC: tl.constexpr, BR: tl.constexpr):
    """1 / rms [BR] of whole rows."""
    total = tl.zeros([BR, BC], tl.float32)
    for start in range(0, width, BC):
        cols = start + tl.arange(0, BC)
        mask = row_ok[:, None] & (cols < width)[None, :]
        x = tl.load(x_ptr + rows[:, None] * row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        total += x * x
    return tl.rsqrt(tl.sum(total, 1) / width + eps)


@jit
def gdn_fwd_kernel_norms(
    q_ptr, k_ptr, inverse_ptr, q_stride, k_stride, num_rows, width, eps, BR: tl.constexpr, BC: tl.constexpr
):
    """inverse [2, B*T*S]: 1 / rms over all heads of every row of q, then of k."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    row_ok = rows < num_rows
    wide_rows = rows.to(tl.int64)
    q_inverse = _inverse_rms(q_ptr, q_stride, wide_rows, row_ok, width, eps, BC, BR)
    tl.store(inverse_ptr + wide_rows, q_inverse, mask=row_ok)
    k_inverse = _inverse_rms(k_ptr, k_stride, wide_rows, row_ok, width, eps, BC, BR)
    tl.store(inverse_ptr + num_rows + wide_rows, k_inverse, mask=row_ok)


@jit
def _features(x_ptr, row_stride, inverse_ptr, weight, rows, token_ok, channels, channel_ok):
    """ReLU of the RMS-normalised rows of one head, float32 [BS, BD]; zero in padding."""
    mask = token_ok[:, None] & channel_ok[None, :]
    x = tl.load(x_ptr + rows[:, None] * row_stride + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + rows, mask=token_ok, other=0.0)
    x = x * inverse[:, None] * weight[None, :]
    return tl.where(x < 0, 0.0, x)


@jit
def _rotate(x, cos_ptr, sin_ptr, positions, token_ok, first, D: tl.constexpr, BS: tl.constexpr, BK: tl.constexpr):
    """x [BS, BK], channels of a head from ``first`` on, with adjacent ones turned; positions are rows of [N, D/2]."""
    pairs = first // 2 + tl.arange(0, BK // 2)
    offsets = positions[:, None] * (D // 2) + pairs[None, :]
    mask = token_ok[:, None] & (pairs < D // 2)[None, :]
    cos = tl.load(cos_ptr + offsets, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + offsets, mask=mask, other=0.0)
    a, b = tl.split(tl.reshape(x, [BS, BK // 2, 2]))
    return tl.interleave(a * cos - b * sin, a * sin + b * cos)


@jit
def _strengths(beta_ptr, row_stride, rows, token_ok, head):
    """Write strengths [BS] of the tokens of one head; what padding gets does not matter, its keys are zero."""
    return tl.sigmoid(tl.load(beta_ptr + rows * row_stride + head, mask=token_ok, other=0.0).to(tl.float32))


@jit
def _decay(rate_ptr, A_log_ptr, dt_bias_ptr, offset, head):
    """exp(-exp(A_log) softplus(rate + dt_bias)) of one frame and head."""
    rate = tl.load(rate_ptr + offset).to(tl.float32) + tl.load(dt_bias_ptr + head).to(tl.float32)
    # The larger of rate and 0 taken out, no exponential overflows.
    softplus = tl.maximum(rate, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(rate)))
    return tl.exp(-tl.exp(tl.load(A_log_ptr + head).to(tl.float32)) * softplus)


@jit
def gdn_fwd_kernel_summaries(
    k_ptr,
    v_ptr,
    inverse_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    beta_ptr,
    partial_ptr,
    k_stride,
    v_stride,
    beta_stride,
    num_frames,
    tokens_per_frame,
    tokens_per_split,
    num_heads,
    scale,
    D: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial [2, splits, B*h, T, BD, BD]: G = K~^T B K~ and P = V^T B K~ of one frame, over one share of its tokens.

    Grid (2 * splits, T, B*h); even programs form G, odd ones P. The scale of the keys is put on the sums, so that the
    products' operands stay near 1, where float16 is fine.
    """
    is_value = tl.program_id(0) % 2
    split = tl.program_id(0) // 2
    num_splits = tl.num_programs(0) // 2
    frame = tl.program_id(1)
    batch_head = tl.program_id(2)
    batch = batch_head // num_heads
    head = batch_head % num_heads

    dims = tl.arange(0, BD)
    channel_ok = dims < D
    channels = head * D + dims
    weight = tl.load(weight_ptr + channels, mask=channel_ok, other=0.0).to(tl.float32)
    # In one of the two kinds of program the values' loads are masked away and cost nothing.
    wants_value = dims < is_value * D
    first_row = (batch * num_frames + frame).to(tl.int64) * tokens_per_frame
    end = tl.minimum((split + 1) * tokens_per_split, tokens_per_frame)

    total = tl.zeros([BD, BD], tl.float32)
    for start in range(split * tokens_per_split, end, BS):
        tokens = start + tl.arange(0, BS)
        token_ok = tokens < end
        rows = first_row + tokens
        keys = _features(k_ptr, k_stride, inverse_ptr, weight, rows, token_ok, channels, channel_ok)
        keys = _rotate(keys, cos_ptr, sin_ptr, frame * tokens_per_frame + tokens, token_ok, 0, D, BS, BD)
        beta = _strengths(beta_ptr, beta_stride, rows, token_ok, head)
        mask = token_ok[:, None] & wants_value[None, :]
        values = tl.load(v_ptr + rows[:, None] * v_stride + channels[None, :], mask=mask, other=0.0)
        left = tl.where(is_value == 1, values, keys.to(values.dtype))
        right = (keys * beta[:, None]).to(values.dtype)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    total *= tl.where(is_value == 1, scale, scale * scale)

    slot = (is_value * num_splits + split).to(tl.int64) * tl.num_programs(2) + batch_head
    slot = slot * num_frames + frame
    tl.store(partial_ptr + slot * BD * BD + dims[:, None] * BD + dims[None, :], total)


@jit
def _sum_of_splits(ptr, split_stride, num_splits, offsets, BR: tl.constexpr, BC: tl.constexpr):
    """Partial sums [BR, BC] added in a fixed order."""
    total = tl.zeros([BR, BC], tl.float32)
    for split in range(num_splits):
        total += tl.load(ptr + split * split_stride + offsets)
    return total


@jit
def _absorb(
    memory,
    partial_ptr,
    decay,
    slot,
    split_stride,
    num_splits,
    values,
    BV: tl.constexpr,
    BD: tl.constexpr,
    P: tl.constexpr,
):
    """Rows ``values`` of g M (I - G) + P for the frame at ``slot``."""
    memory = memory * decay
    dims = tl.arange(0, BD)
    here = partial_ptr + slot * BD * BD
    gram = _sum_of_splits(here, split_stride, num_splits, dims[:, None] * BD + dims[None, :], BD, BD)
    here += num_splits * split_stride
    value_key = _sum_of_splits(here, split_stride, num_splits, values[:, None] * BD + dims[None, :], BV, BD)
    return memory + value_key - tl.dot(memory, gram, input_precision=P)


@jit
def _scan_matrix(
    partial_ptr,
    rate_ptr,
    A_log_ptr,
    dt_bias_ptr,
    kv_ptr,
    new_kv_ptr,
    reverse_ptr,
    read_kv_ptr,
    batch_head,
    num_heads,
    num_frames,
    num_splits,
    tile,
    HAS_MEMORY: tl.constexpr,
    D: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Both scans of BV value rows of M. The rows are independent of each other."""
    dims = tl.arange(0, BD)
    values = tile * BV + tl.arange(0, BV)
    tile_offsets = values[:, None] * BD + dims[None, :]
    split_stride = tl.num_programs(1).to(tl.int64) * num_frames * BD * BD
    first_slot = batch_head.to(tl.int64) * num_frames
    head = batch_head % num_heads
    rate_ptr += (batch_head // num_heads) * num_frames * num_heads + head

    memory = tl.zeros([BV, BD], tl.float32)
    for i in range(1, num_frames):
        frame = num_frames - i
        decay = _decay(rate_ptr, A_log_ptr, dt_bias_ptr, frame * num_heads, head)
        slot = first_slot + frame
        memory = _absorb(memory, partial_ptr, decay, slot, split_stride, num_splits, values, BV, BD, PRECISION)
        tl.store(reverse_ptr + (slot - 1) * BD * BD + tile_offsets, memory)
    # The forward scan reads what other threads of this program have just stored.
    tl.debug_barrier()

    memory = tl.zeros([BV, BD], tl.float32)
    outer = batch_head.to(tl.int64) * D * D + values[:, None] * D + dims[None, :]
    outer_mask = (values < D)[:, None] & (dims < D)[None, :]
    if HAS_MEMORY:
        memory = tl.load(kv_ptr + outer, mask=outer_mask, other=0.0)
    for frame in range(num_frames):
        decay = _decay(rate_ptr, A_log_ptr, dt_bias_ptr, frame * num_heads, head)
        slot = first_slot + frame
        memory = _absorb(memory, partial_ptr, decay, slot, split_stride, num_splits, values, BV, BD, PRECISION)
        place = slot * BD * BD + tile_offsets
        # Nothing lies behind the last frame of the chunk.
        behind = dims < tl.where(frame + 1 < num_frames, BD, 0)
        later = tl.load(reverse_ptr + place, mask=behind[None, :], other=0.0)
        tl.store(read_kv_ptr + place, (memory + later).to(read_kv_ptr.dtype.element_ty))
    tl.store(new_kv_ptr + outer, memory, mask=outer_mask)


@jit
def _scan_normaliser(
    k_ptr,
    inverse_ptr,
    weight_ptr,
    beta_ptr,
    rate_ptr,
    A_log_ptr,
    dt_bias_ptr,
    z_ptr,
    new_z_ptr,
    read_z_ptr,
    k_stride,
    beta_stride,
    batch_head,
    num_heads,
    num_frames,
    tokens_per_frame,
    scale,
    is_reverse,
    HAS_MEMORY: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """One scan of z: z' + K^T B (1 - K z'), two products with K per frame and no Gram matrix."""
    dims = tl.arange(0, BD)
    channel_ok = dims < D
    batch = batch_head // num_heads
    head = batch_head % num_heads
    channels = head * D + dims
    weight = tl.load(weight_ptr + channels, mask=channel_ok, other=0.0).to(tl.float32)
    # z of the forward scan lies in the first half of read_z, that of the backward scan in the second.
    slot = (is_reverse * tl.num_programs(1) + batch_head).to(tl.int64) * num_frames

    z = tl.zeros([BD], tl.float32)
    if HAS_MEMORY:
        z = tl.load(z_ptr + batch_head * D + dims, mask=dims < (1 - is_reverse) * D, other=0.0)
    for i in range(is_reverse, num_frames):
        frame = tl.where(is_reverse == 1, num_frames - i, i)
        first_row = (batch * num_frames + frame).to(tl.int64) * tokens_per_frame
        z *= _decay(rate_ptr, A_log_ptr, dt_bias_ptr, (batch * num_frames + frame) * num_heads + head, head)
        written = tl.zeros([BS, BD], tl.float32)
        for start in range(0, tokens_per_frame, BS):
            tokens = start + tl.arange(0, BS)
            token_ok = tokens < tokens_per_frame
            rows = first_row + tokens
            keys = _features(k_ptr, k_stride, inverse_ptr, weight, rows, token_ok, channels, channel_ok) * scale
            beta = _strengths(beta_ptr, beta_stride, rows, token_ok, head)
            shortfall = 1.0 - tl.sum(keys * z[None, :], 1)
            written += keys * (beta * shortfall)[:, None]
        z += tl.sum(written, 0)
        tl.store(read_z_ptr + (slot + frame - is_reverse) * BD + dims, z)
    if is_reverse == 0:
        tl.store(new_z_ptr + batch_head * D + dims, z, mask=channel_ok)


@jit
def gdn_fwd_kernel_scan(
    k_ptr,
    inverse_ptr,
    weight_ptr,
    beta_ptr,
    rate_ptr,
    A_log_ptr,
    dt_bias_ptr,
    partial_ptr,
    kv_ptr,
    z_ptr,
    new_kv_ptr,
    new_z_ptr,
    reverse_ptr,
    read_kv_ptr,
    read_z_ptr,
    k_stride,
    beta_stride,
    num_heads,
    num_frames,
    tokens_per_frame,
    num_splits,
    scale,
    HAS_MEMORY: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """read_kv [B*h, T, BD, BD], read_z [2, B*h, T, BD] (last frame of the second half unset), and the memory after.

    Grid (2 + BD / BV, B*h): programs 0 and 1 scan z forward and backward, the others BV value rows of M both ways.
    """
    part = tl.program_id(0)
    batch_head = tl.program_id(1)
    if part < 2:
        _scan_normaliser(
            k_ptr, inverse_ptr, weight_ptr, beta_ptr, rate_ptr, A_log_ptr, dt_bias_ptr, z_ptr, new_z_ptr,
            read_z_ptr, k_stride, beta_stride, batch_head, num_heads, num_frames, tokens_per_frame, scale, part,
            HAS_MEMORY, D, BS, BD,
        )  # fmt: skip
    else:
        _scan_matrix(
            partial_ptr, rate_ptr, A_log_ptr, dt_bias_ptr, kv_ptr, new_kv_ptr, reverse_ptr, read_kv_ptr, batch_head,
            num_heads, num_frames, num_splits, part - 2, HAS_MEMORY, D, BV, BD, PRECISION,
        )  # fmt: skip


@jit
def gdn_fwd_kernel_read(
    q_ptr,
    gate_ptr,
    out_ptr,
    inverse_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    read_kv_ptr,
    read_z_ptr,
    q_stride,
    gate_stride,
    out_stride,
    num_frames,
    tokens_per_frame,
    num_heads,
    eps,
    D: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = M q~ / (z^T q + eps) * SiLU(gate). Grid (tiles of BS tokens, T, B*h)."""
    frame = tl.program_id(1)
    batch_head = tl.program_id(2)
    batch = batch_head // num_heads
    first_channel = (batch_head % num_heads) * D
    tokens = tl.program_id(0) * BS + tl.arange(0, BS)
    token_ok = tokens < tokens_per_frame
    rows = (batch * num_frames + frame).to(tl.int64) * tokens_per_frame + tokens
    dims = tl.arange(0, BD)
    slot = batch_head.to(tl.int64) * num_frames + frame
    forward_z = read_z_ptr + slot * BD
    backward_z = forward_z + tl.num_programs(2).to(tl.int64) * num_frames * BD

    num = tl.zeros([BS, BD], tl.float32)
    den = tl.zeros([BS], tl.float32)
    # In steps over the key channels: as one product, the operands fill more than the registers of most GPUs.
    for first in range(0, D, BK):
        keys = first + tl.arange(0, BK)
        key_ok = keys < D
        weight = tl.load(weight_ptr + first_channel + keys, mask=key_ok, other=0.0).to(tl.float32)
        queries = _features(q_ptr, q_stride, inverse_ptr, weight, rows, token_ok, first_channel + keys, key_ok)
        z = tl.load(forward_z + keys)
        behind = keys < tl.where(frame + 1 < num_frames, BD, 0)
        z += tl.load(backward_z + keys, mask=behind, other=0.0)
        den += tl.sum(queries * z[None, :], 1)
        positions = frame * tokens_per_frame + tokens
        queries = _rotate(queries, cos_ptr, sin_ptr, positions, token_ok, first, D, BS, BK)
        memory = tl.load(read_kv_ptr + slot * BD * BD + dims[:, None] * BD + keys[None, :])
        num = tl.dot(queries.to(memory.dtype), tl.trans(memory), num, input_precision=PRECISION)

    mask = token_ok[:, None] & (dims < D)[None, :]
    channels = first_channel + dims
    gate = tl.load(gate_ptr + rows[:, None] * gate_stride + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    out = num / (den + eps)[:, None] * (gate * tl.sigmoid(gate))
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * out_stride + channels[None, :], out, mask=mask)
