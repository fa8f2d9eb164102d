"""Formats of matrices: their numbers, their bytes, and where their products run."""

import sys

import pytest
import torch
import torch.nn.functional as F
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.precision import probe as probes
from sana_streaming.sana_core.precision.formats import FORMATS
from sana_streaming.sana_core.precision.probe import probe
from small_dit import distance

CPU = torch.device("cpu")
# Relative error of a Gaussian weight, and of a product whose input is quantized too.
ERRORS = {
    "fp8": (0.028, 0.040),
    "int8": (0.010, 0.014),
    "int8-hadamard": (0.010, 0.014),
    "mxfp8": (0.028, 0.040),
    "nvfp4": (0.100, 0.141),
}


def gaussian(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 128), (50, 40)], ids=["even", "padded"])
@pytest.mark.parametrize("name", ERRORS)
def test_weights_and_products(name, shape, dtype):
    kind, (of_weight, of_product) = FORMATS[name], ERRORS[name]
    weight, x, bias = gaussian(*shape, dtype=dtype), gaussian(2, 37, shape[1], seed=1, dtype=dtype), gaussian(shape[0])
    quantized = kind.quantize(weight)
    back = kind.dequantize(quantized, dtype)
    assert back.dtype == dtype and back.shape == weight.shape
    assert 0.1 * of_weight < distance(back, weight) < of_weight
    want = F.linear(x.float(), weight.float(), bias)
    only_weight = kind.linear(x, quantized, bias.to(dtype), how="dequantized")
    both = kind.linear(x, quantized, bias.to(dtype), how="simulated")
    assert both.dtype == dtype and both.shape == (2, 37, shape[0])
    assert distance(only_weight, want) < of_weight and distance(only_weight, want) < distance(both, want) < of_product


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("bf16", 2 * 2240 * 6720),
        ("fp8", 2240 * 6720 + 4),
        ("int8", 2240 * 6720 + 4 * 2240),
        # 2240 rows fill 18 tiles of 128.
        ("mxfp8", 2240 * 6720 + 18 * 128 * 212),
        ("nvfp4", 2240 * 6720 // 2 + 18 * 128 * 420 + 4),
    ],
)
def test_bytes(name, num_bytes):
    assert FORMATS[name].num_bytes(2240, 6720) == num_bytes
    assert FORMATS[name].bits(2240, 6720) == pytest.approx(8 * num_bytes / (2240 * 6720))
    if name != "bf16":
        assert FORMATS[name].quantize(gaussian(50, 40)).num_bytes == FORMATS[name].num_bytes(50, 40)


@pytest.mark.parametrize("name", ERRORS)
def test_zeros_stay_zeros(name):
    kind = FORMATS[name]
    zeros = kind.linear(torch.zeros(3, 64), kind.quantize(torch.zeros(32, 64)), None, how="simulated")
    assert zeros.equal(torch.zeros(3, 32))


def test_input_scale_is_the_given_one_else_the_inputs_own():
    kind, x = FORMATS["fp8"], gaussian(40, 64)
    own = kind.quantize_input(x, None)
    given = kind.quantize_input(x, kind.input_scale(x.abs().amax()))
    assert own.params.scale.item() == given.params.scale.item() == pytest.approx(x.abs().max().item() / 448)
    assert own.data.view(torch.uint8).equal(given.data.view(torch.uint8))
    # Beyond a calibrated range values are cut off.
    narrow = kind.restore_input(kind.quantize_input(x, kind.input_scale(torch.tensor(1.0))))
    assert narrow.abs().max() == 1.0
    # The scale of ComfyUI for a missing one would be 1: a tenth of the inputs' precision is gone there.
    small = x * 1e-3
    assert distance(kind.restore_input(kind.quantize_input(small, None)), small) < 0.03
    assert distance(kind.restore_input(kind.quantize_input(small, torch.ones(()))), small) > 0.3


@pytest.mark.parametrize(("columns", "group"), [(2240, 64), (224, 16), (40, 0)])
def test_rotation_spreads_outliers(columns, group):
    kind, plain = FORMATS["int8-hadamard"], FORMATS["int8"]
    assert (kind.rotation(columns), plain.rotation(columns)) == (group, 0)
    weight, x = gaussian(48, columns), gaussian(9, columns, seed=1)
    x[:, 5] *= 100
    want = F.linear(x, weight)
    rotated, straight = (distance(k.linear(x, k.quantize(weight), None), want) for k in (kind, plain))
    assert kind.quantize(weight).rotation == group
    assert rotated < 0.6 * straight if group else rotated == straight


def test_fp8_product_of_the_cpu_is_the_simulated_one():
    kind, x = FORMATS["fp8"], gaussian(37, 64)
    weight = kind.quantize(gaussian(48, 64, seed=1))
    fast, simulated = (kind.linear(x, weight, gaussian(48), how=how) for how in ("fast", "simulated"))
    assert distance(fast, simulated) < 1e-6


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_few_rows_are_filled_up(name):
    kind, x = FORMATS[name], gaussian(3, 64)
    quantized = kind.quantize_input(x, None)
    assert len(quantized.data) == 128 and kind.restore_input(quantized).shape == x.shape
    assert distance(kind.restore_input(quantized), x) < 0.1


@pytest.fixture
def fresh_probes(monkeypatch):
    monkeypatch.setattr(probes, "_probes", {})
    monkeypatch.setattr(probes, "_told", set())


def test_probe_says_once_what_does_not_run(fresh_probes, caplog):
    assert probe("int8", CPU, 32, 64, torch.float32).fast
    for rows in (32, 64):
        assert probe("nvfp4", CPU, rows, 64, torch.bfloat16) == (False, "cpu has no fast product in nvfp4")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("nvfp4 weights save memory here but no time")


class CompilationError(Exception):
    """As triton's, whose errors have no base but this."""


@pytest.mark.parametrize("fault", ["wrong", "raises", "raises otherwise", "nan", "no bias"])
@pytest.mark.parametrize("name", ["fp8", "int8", "int8-hadamard"])
def test_probe_believes_only_what_it_saw(fresh_probes, monkeypatch, name, fault):
    monkeypatch.setattr(probes, "obstacle", lambda *_: "")
    assert probe(name, CPU, 48, 64, torch.bfloat16) == (True, "")
    kind = type(FORMATS[name])
    method = "_product" if name == "fp8" else "_linear"
    product = getattr(kind, method)

    def broken(self, x, weight, bias, *rest, **options):
        if fault.startswith("raises"):
            raise (RuntimeError if fault == "raises" else CompilationError)("no kernel image\nmore")
        out = product(self, x, weight, None if fault == "no bias" else bias, *rest, **options)
        return out * {"wrong": 2, "nan": float("nan")}.get(fault, 1)

    monkeypatch.setattr(kind, method, broken)
    found = probe(name, CPU, 96, 64, torch.bfloat16)
    reasons = {
        "raises": "RuntimeError: no kernel image",
        "raises otherwise": "CompilationError: no kernel image",
        "nan": "the product of [96, 64] is off by nan",
    }
    assert not found.fast and found.reason.startswith(reasons.get(fault, "the product of [96, 64] is off by"))
    # The shape that was seen to run still does.
    assert probe(name, CPU, 48, 64, torch.bfloat16).fast


def test_a_lack_of_memory_says_nothing_of_the_product(fresh_probes, monkeypatch):
    kind = type(FORMATS["int8"])

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(kind, "quantize", full)
        with pytest.raises(torch.OutOfMemoryError):
            probe("int8", CPU, 48, 64, torch.float32)
    assert probe("int8", CPU, 48, 64, torch.float32).fast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ERRORS)
def test_weights_are_quantized_in_float32(name, dtype):
    """As the profile measures them: the bits of the weight's dtype, and no rounding but the format's."""
    kind, weight = FORMATS[name], gaussian(50, 64, dtype=dtype)
    ours, wanted = kind.quantize(weight).tensors, kind.quantize(weight.float()).tensors
    for end, value in wanted.items():
        assert ours[end].dtype == value.dtype
        assert ours[end].reshape(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8)), end


@pytest.mark.parametrize("name", ERRORS)
def test_small_weights_and_inputs_in_float16(name):
    """Scales that float16 itself would hold with few digits."""
    kind, small = FORMATS[name], 1e-3 * gaussian(64, 64, dtype=torch.float16)
    weight = kind.quantize(small)
    back = kind.dequantize(weight, torch.float16)
    assert back.dtype == torch.float16 and distance(back, kind.dequantize(weight, torch.float32)) < 1e-3
    if name in ("mxfp8", "nvfp4"):
        seen, wanted = (kind.restore_input(kind.quantize_input(x, None)) for x in (small, small.float()))
        assert seen.dtype == torch.float16 and distance(seen, wanted) < 1e-3


def test_fp8_without_the_newer_product_of_torch(monkeypatch):
    kind, x, bias = FORMATS["fp8"], gaussian(37, 64), gaussian(48)
    weight = kind.quantize(gaussian(48, 64, seed=1))
    want = kind.linear(x, weight, bias)
    monkeypatch.delattr(F, "scaled_mm", raising=False)
    assert kind.linear(x, weight, bias).equal(want)


def test_without_comfy_kitchen(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    with pytest.raises(InputError, match=r'pip install "sana-streaming\[precision\]"'):
        FORMATS["fp8"].quantize(gaussian(32, 32))
