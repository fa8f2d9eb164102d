"""Norm, SiLU, history and border of the VAE without a GPU: plain form, kernel under triton's interpreter, its compilation.

The interpreter's casts to bfloat16 cut off, so bfloat16 is tested in test_vae_norm_cuda.py.
"""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import compare
import pytest
import torch
import torch.nn.functional as F
import vae_norm_cases
from sana_streaming.kernels.vae_norm import norm_silu_pad, norm_silu_pad_eager, norm_silu_pad_naive, rms_norm

SUPPORT = Path(vae_norm_cases.__file__).parent
CASES = vae_norm_cases.covering_cases()

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is missing")


def run_script(name, environment):
    """Rows that a script of tests/support prints; a process of its own, one thread."""
    done = subprocess.run(
        [sys.executable, SUPPORT / name],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def interpreted():
    rows = {row["name"]: row for row in run_script("vae_norm_cases.py", {"TRITON_INTERPRET": "1"})}
    if "trouble" in rows:
        pytest.skip(f"triton's interpreter does not work here: {rows['trouble']['reason']}")
    return rows


def assert_small(errors, tolerance):
    for name, error in errors.items():
        assert math.isfinite(error) and error <= tolerance, f"{name}: {error:.3g}"


def test_cases_cover_every_pair():
    for (i, first), (j, second) in itertools.combinations(enumerate(vae_norm_cases.PROPERTIES), 2):
        assert set(itertools.product(first, second)) <= {(case[i], case[j]) for case in CASES}, (first, second)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_the_definition(interpreted, case):
    assert_small(interpreted[case.name]["errors"], vae_norm_cases.TOLERANCES[case.dtype])


@needs_triton
def test_a_whole_vae_with_the_kernel(interpreted):
    errors = interpreted["vae"]["errors"]
    assert len(errors) > 30
    assert_small(errors, 1e-5)


@needs_triton
def test_kernel_compiles_for_every_gpu(tmp_path):
    """With loads and stores of 16 bytes where channels allow it, and no spilled registers."""
    rows = run_script("vae_norm_compile.py", {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})
    assert len({tuple(row["capability"]) for row in rows}) == 5 and len(rows) == 40
    for row in rows:
        assert row["stack"] == 0 and row["shared"] <= 4096, row
        assert (row["wide"] > 0) == (row["name"] != "log-variance"), row


@pytest.mark.parametrize("case", vae_norm_cases.covering_cases(("float32",)), ids=lambda case: case.name)
def test_plain_form_is_the_definition(case):
    arguments, options = vae_norm_cases.inputs(case)
    expected, expected_total = norm_silu_pad_naive(*arguments, **options)
    for implementation in ("auto", "eager"):
        padded, total = norm_silu_pad(*arguments, **options, implementation=implementation)
        for got, want in ((padded, expected), (total, expected_total)):
            assert got.shape == want.shape and compare.relative_rms(got, want) <= 1e-6
        bare, same = norm_silu_pad(*arguments, **options, keep_sum=False, implementation=implementation)
        assert bare.equal(padded) and same is arguments[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_plain_form_has_the_bits_of_separate_steps(dtype):
    """What the VAE's tests on vectors of others rest on."""
    case = vae_norm_cases.Case(24, 3, (4, 5), "first", "carried", "", True, True, str(dtype).removeprefix("torch."))
    (x, history), _ = vae_norm_cases.inputs(case)
    hidden = F.silu(rms_norm(x))
    padded, total = norm_silu_pad_eager(x, history, reflect=True)
    assert total is x
    assert padded.equal(F.pad(torch.cat([history, hidden], 2), (1, 1, 1, 1, 0, 0), mode="reflect"))
    fresh = torch.cat([hidden[:, :, :1], hidden[:, :, :1], hidden], 2)
    assert norm_silu_pad_eager(x, reflect=False)[0].equal(fresh)
    around = torch.cat([hidden[:, :, :1], hidden, hidden[:, :, -1:]], 2)
    assert norm_silu_pad_eager(x, history, reflect=False, causal=False)[0].equal(around)
    branch = x.flip(1)
    padded, total = norm_silu_pad_eager(x, history, reflect=False, norm=False, branch=branch)
    assert total.equal(x + branch) and padded.equal(torch.cat([history, x + branch], 2))


def test_gradients_flow_through_the_plain_form():
    x, history, branch = (torch.randn(1, 4, 2, 3, 3, requires_grad=True) for _ in range(3))
    bias = torch.randn(4, requires_grad=True)
    padded, total = norm_silu_pad(x, history, reflect=True, branch=branch, bias=bias)
    (padded.square().sum() + total.sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (x, history, branch, bias))


def test_a_demand_that_cannot_be_met_says_why(monkeypatch):
    x = torch.randn(1, 4, 2, 3, 3)
    with pytest.raises(ValueError, match="on cpu, the kernels need an NVIDIA GPU; use 'auto' or 'eager'"):
        norm_silu_pad(x, reflect=True, implementation="triton")
    with pytest.raises(ValueError, match="gradients are asked for"):
        norm_silu_pad(x.requires_grad_(), reflect=True, implementation="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"torch\.float32 on cpu and torch\.float16 on cpu"):
            norm_silu_pad(x, reflect=True, branch=x.half(), implementation="triton")
        with pytest.raises(ValueError, match=r"dtype is torch\.float64"):
            norm_silu_pad(x.double(), reflect=True, implementation="triton")
