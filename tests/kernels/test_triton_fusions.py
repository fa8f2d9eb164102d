"""The fused norms and the fused middle of the MixFFN on a machine without a GPU: numbers under triton's interpreter,
compilation, the dispatch.

The interpreter's casts to bfloat16 cut off, so bfloat16 is tested in test_triton_fusions_cuda.py.
"""

import importlib.util
import math

import fusion_cases
import pytest
import scripts
import torch
from fusion_cases import EPS, HEAD_DIM
from sana_streaming.kernels.mix_ffn import glu_depthwise, triton_mix_ffn
from sana_streaming.kernels.norms import (
    gated_residual,
    norm_modulate,
    rms_norm,
    rms_norm_rotary,
    rms_normalised,
    rotated,
)

CASES = [*fusion_cases.ROWS, *fusion_cases.MIDDLES]
# Bytes that one program may take (CUDA programming guide, "compute capabilities").
SHARED_MEMORY = {(8, 0): 166912, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448, (12, 0): 101376}

HOW = {"eps": EPS, "implementation": "triton"}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is missing")


@pytest.fixture(scope="module")
def interpreted():
    return scripts.interpreted_rows("fusion_cases.py")


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_are_the_formulas(interpreted, case):
    for name, error in interpreted[case.name]["errors"].items():
        assert math.isfinite(error) and error <= fusion_cases.TOLERANCES[case.dtype], f"{name}: {error:.3g}"


@needs_triton
def test_the_middle_is_one_node_of_a_graph(interpreted):
    assert interpreted["graph"]["troubles"] == []


@needs_triton
def test_kernels_compile_for_every_gpu(tmp_path):
    """With no spilled register and next to no shared memory: rows and strips live in registers."""
    rows = scripts.rows("fusions_compile.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert {tuple(row["capability"]) for row in rows} == set(SHARED_MEMORY) and len(rows) == 6 * len(SHARED_MEMORY)
    for row in rows:
        assert row["stack"] == 0 and row["shared"] <= min(4096, SHARED_MEMORY[tuple(row["capability"])]), row


def calls():
    """Every operator on small tensors: name, call of an implementation, a tensor that may ask for gradients."""
    case = fusion_cases.Rows(1, 4, 2, 2, "float32")
    given = fusion_cases.row_inputs(case)
    x, shift, scale, weight = (given[name] for name in ("x", "shift", "scale", "weight"))
    turn = (given["cos"], given["sin"], case.heads, EPS)
    hidden, *layer = fusion_cases.middle_inputs(fusion_cases.Middle(2, 2, 8, 1, 1, "float32"))
    return {
        "norm_modulate": (lambda **how: norm_modulate(x, shift, scale, eps=EPS, **how), shift),
        "gated_residual": (lambda **how: gated_residual(x, shift, x, **how), x),
        "rms_norm": (lambda **how: rms_norm(x, weight, EPS, **how), weight),
        "rms_norm_rotary": (lambda **how: rms_norm_rotary(x.flatten(1, 2), weight, *turn, **how), weight),
        "glu_depthwise": (lambda **how: glu_depthwise(hidden, *layer, **how), layer[0]),
    }


@pytest.mark.parametrize("name", list(calls()))
def test_a_demand_that_cannot_be_met_says_why(name):
    call, tensor = calls()[name]
    with pytest.raises(ValueError, match="on cpu, the kernels need an NVIDIA GPU; use 'auto' or 'eager'"):
        call(implementation="triton")
    tensor.requires_grad_()
    with pytest.raises(ValueError, match="gradients are asked for"):
        call(implementation="triton")
    assert all(call(implementation=name).requires_grad for name in ("auto", "eager", "naive"))


@needs_triton
@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "shape \\(2, 3, 1, 112\\) is not one row",
            lambda x, row: norm_modulate(x, row.expand(-1, 3, -1, -1), row, **HOW),
        ),
        ("shape \\(4, 112\\) is not one row", lambda x, row: norm_modulate(x, x[0, 0], row, **HOW)),
        ("tensors differ in dtype", lambda x, row: norm_modulate(x, row.half(), row, **HOW)),
        ("shape \\(4, 112\\) is not that of samples", lambda x, row: norm_modulate(x[0, 0], row, row, **HOW)),
        ("shapes differ", lambda x, row: gated_residual(x, row, x[:, :1], implementation="triton")),
        ("rows have 3 channels", lambda x, row: rms_norm(x[..., :3], row[0, 0, 0, :3], **HOW)),
        ("rows have 8193 channels", lambda x, row: rms_norm(x.new_zeros(2, 8193), row, **HOW)),
        ("dtype is torch.float64", lambda x, row: rms_norm(x.double(), row[0, 0, 0], **HOW)),
        ("head dimension is 7", lambda x, row: rms_norm_rotary(x.flatten(1, 2), row, row, row, 16, **HOW)),
        (
            "channels of the output are not adjacent",
            lambda x, row: rms_norm_rotary(x[:, 0], row, row, row, 2, **HOW, out=torch.empty(2, 4, 56, 2).mT),
        ),
    ],
)
def test_rows_that_the_kernels_refuse(monkeypatch, words, call):
    """Before any launch."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, row = torch.ones(2, 3, 4, HEAD_DIM), torch.ones(2, 1, 1, HEAD_DIM)
    with pytest.raises(ValueError, match=words):
        call(x, row)


@needs_triton
def test_convolutions_that_the_kernel_refuses(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    hidden, weight, bias, grid = fusion_cases.middle_inputs(fusion_cases.Middle(2, 3, 8, 1, 1, "float32"))
    refused = {
        "there is no bias": (hidden, weight, None, grid),
        "differ in dtype": (hidden, weight.half(), bias, grid),
        "do not fit a depthwise 3x3 on the grid \\(2, 2\\)": (hidden, weight, bias, (2, 2)),
        "do not fit a depthwise 3x3": (hidden, weight.repeat(1, 2, 1, 1), bias, grid),
    }
    for words, arguments in refused.items():
        with pytest.raises(ValueError, match=words):
            glu_depthwise(*arguments, implementation="triton")
    monkeypatch.setattr(triton_mix_ffn, "MAX_OFFSET", 6 * 32 - 1)
    with pytest.raises(ValueError, match="a frame reaches over more than"):
        glu_depthwise(hidden, weight, bias, grid, implementation="triton")


def test_plain_norms_are_the_formulas():
    case = fusion_cases.Rows(3, 20, 2, 2, "float32")
    for name, error in fusion_cases.row_errors(case, implementation="eager").items():
        assert error < 1e-6, f"{name}: {error:.3g}"


def test_plain_middle_is_the_formula():
    for case in fusion_cases.MIDDLES:
        wide = case._replace(dtype="float32")
        assert fusion_cases.middle_errors(wide, implementation="eager")["glu_depthwise"] < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_plain_forms_round_after_every_step(dtype):
    """To the bit what the network does in plain PyTorch."""
    given = fusion_cases.row_inputs(fusion_cases.Rows(2, 20, 2, 2, dtype))
    x, y, shift, scale, gate, weight, cos, sin = given.values()
    layer_norm = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=EPS)
    assert norm_modulate(x, shift, scale, eps=EPS).equal(layer_norm * (1 + scale) + shift)
    assert gated_residual(x, gate, y).equal(x + gate * y)
    tokens = x.flatten(1, 2)
    normed = rms_normalised(tokens, weight, EPS)
    assert rms_norm(tokens, weight, EPS).equal(normed)
    turned = rotated(normed.unflatten(-1, (2, -1)), cos[:, None], sin[:, None])
    assert rms_norm_rotary(tokens, weight, cos, sin, 2, EPS).equal(turned)
    hidden, kernel, bias, grid = fusion_cases.middle_inputs(fusion_cases.Middle(3, 7, 16, 2, 2, dtype))
    silu = torch.nn.functional.silu
    frames = silu(hidden).flatten(0, 1).unflatten(1, grid).movedim(-1, 1)
    mixed = torch.nn.functional.conv2d(frames, kernel, bias, padding=1, groups=32).movedim(1, -1).reshape(hidden.shape)
    value, gate = mixed.chunk(2, -1)
    assert glu_depthwise(hidden, kernel, bias, grid).equal(value * silu(gate))
