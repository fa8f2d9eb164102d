"""The fused kernels on a machine without a GPU: their numbers under triton's interpreter, their compilation, the dispatch.

The interpreter's bfloat16 products are wrong and its casts to bfloat16 cut off, so bfloat16 is tested in
test_triton_gdn_cuda.py.
"""

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import gdn_cases
import pytest
import sana_streaming
import scripts
import torch
from sana_streaming.kernels.deferred_jit import DeferredJit
from sana_streaming.kernels.gdn import gdn_fused, gdn_operator

CASES = gdn_cases.covering_cases()
# Bytes that one program may take (CUDA programming guide, "compute capabilities").
SHARED_MEMORY = {(8, 0): 166912, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448, (12, 0): 101376}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is missing")


@pytest.fixture(scope="module")
def interpreted():
    return scripts.interpreted_rows("gdn_cases.py")


def assert_small(errors, dtype):
    for name, error in errors.items():
        assert math.isfinite(error) and error <= gdn_cases.TOLERANCES[dtype], f"{name}: {error:.3g}"


def test_cases_cover_every_pair():
    sides = (
        gdn_cases.DIMS,
        gdn_cases.TOKENS,
        gdn_cases.FRAMES,
        gdn_cases.BATCHES,
        ("float32", "float16"),
        (False, True),
    )
    for (i, first), (j, second) in itertools.combinations(enumerate(sides), 2):
        pairs = {(case[i], case[j]) for case in CASES}
        assert set(itertools.product(first, second)) <= pairs, (first, second)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernels_are_the_literal_recurrence(interpreted, case):
    assert_small(interpreted[case.name]["errors"], case.dtype)


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_split_equals_whole(interpreted, dtype):
    assert_small(interpreted[f"split-{dtype}"]["errors"], dtype)


@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layout_repetition_and_zero_memory_change_no_bit(interpreted, dtype):
    assert interpreted[f"equal-{dtype}"]["unequal"] == []


@needs_triton
@pytest.mark.parametrize("ahead_of_time", [False, True])
def test_a_compiled_block_is_one_graph_with_the_same_bits(interpreted, ahead_of_time):
    assert interpreted[f"graph-{ahead_of_time}"]["troubles"] == []


@needs_triton
def test_kernels_compile_for_every_gpu_of_the_table(tmp_path):
    """Within the shared memory of each, and next to no spilled registers: tiles too large spill thousands of bytes."""
    rows = scripts.rows("gdn_compile.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert {tuple(row["capability"]) for row in rows} == set(SHARED_MEMORY) and len(rows) == 4 * len(SHARED_MEMORY)
    for row in rows:
        assert row["stack"] <= 128 and row["shared"] <= SHARED_MEMORY[tuple(row["capability"])], row


@pytest.mark.parametrize("implementation", ["auto", "eager"])
def test_plain_form_is_the_literal_recurrence(implementation):
    case = gdn_cases.Case(24, 20, 3, 2, "float32", True)
    arguments, memory = gdn_cases.inputs(case), gdn_cases.earlier_memory(case)
    expected, expected_after = gdn_cases.truth(arguments, memory)
    out, after = gdn_fused(**arguments, memory=memory, **gdn_cases.OPTIONS, implementation=implementation)
    pairs = {"out": (out, expected), "kv": (after[0], expected_after[0]), "z": (after[1], expected_after[1])}
    assert_small({name: gdn_cases.compare.relative_rms(*pair) for name, pair in pairs.items()}, "float32")


def test_a_demand_that_cannot_be_met_says_why():
    arguments = gdn_cases.inputs(gdn_cases.Case(16, 4, 1, 1, "float32", False))
    with pytest.raises(ValueError, match="on cpu, the kernels need an NVIDIA GPU; use 'auto' or 'eager'"):
        gdn_fused(**arguments, norm_eps=1e-5, implementation="triton")
    arguments["q_weight"].requires_grad_()
    with pytest.raises(ValueError, match="gradients are asked for"):
        gdn_fused(**arguments, norm_eps=1e-5, implementation="triton")


def test_missing_triton_is_an_import_error_on_use_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    jit = DeferredJit({})
    jit(lambda pointer: pointer)
    with pytest.raises(ImportError):
        jit.load()


def test_a_copy_of_the_package_may_have_a_path_for_a_name(monkeypatch):
    """As in ComfyUI; its operator is its own."""
    folder, name = Path(sana_streaming.__file__).parent, "9 clips/日本/pack"
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
    try:
        copy = importlib.import_module(f"{name}.kernels.gdn")
    finally:
        for module in set(sys.modules) - before - {name}:
            if module.startswith(name):
                del sys.modules[module]
    assert copy.gdn_operator is not gdn_operator
    arguments = gdn_cases.inputs(gdn_cases.Case(16, 2, 1, 1, "float32", False))
    arguments |= {"kv": None, "z": None, **gdn_cases.OPTIONS, "implementation": "eager"}
    assert copy.gdn_operator(**arguments)[0].equal(gdn_operator(**arguments)[0])


@needs_triton
def test_calls_that_the_kernels_refuse(monkeypatch):
    """Head dimension and dtype are looked at before any launch."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with torch.no_grad():
        for dim, dtype, words in ((130, "float32", "head dimension is 130"), (15, "float32", "head dimension is 15")):
            arguments = gdn_cases.inputs(gdn_cases.Case(dim, 2, 1, 1, dtype, False))
            with pytest.raises(ValueError, match=words):
                gdn_fused(**arguments, norm_eps=1e-5, implementation="triton")
        arguments = gdn_cases.inputs(gdn_cases.Case(16, 2, 1, 1, "float32", False))
        wide = {name: tensor.double() for name, tensor in arguments.items()}
        with pytest.raises(ValueError, match="dtype is torch.float64"):
            gdn_fused(**wide, norm_eps=1e-5, implementation="triton")
