"""Products, graphs and passes in formats of fewer bits on an NVIDIA GPU; what the card has no product in is left out."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.prompt import PromptEmbedding
from sana_streaming.sana_core.precision.apply import HEADROOM, quantized
from sana_streaming.sana_core.precision.formats import FORMATS
from sana_streaming.sana_core.precision.latency import graphed
from sana_streaming.sana_core.precision.pass_time import pass_times
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.probe import obstacle, probe
from sana_streaming.sana_core.precision.reference import CalibrationClip, float32_products, record
from sana_streaming.sana_core.precision.units import block_units
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.weights.random_init import random_dit
from small_dit import CONFIG, distance

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if importlib.util.find_spec("comfy_kitchen") is None:
    pytest.skip("the package comfy-kitchen is missing", allow_module_level=True)

CUDA, DTYPE = torch.device("cuda", 0), torch.bfloat16
FAST = [name for name, kind in FORMATS.items() if name != "bf16" and not obstacle(kind, CUDA, DTYPE)]
# Distinct [N, K] of the released network, with q, k, v and gate as one.
SHAPES = sorted({(unit.rows, unit.columns) for unit in block_units(DiTConfig(), 0)} | {(8960, 2240)})


def gaussian(*size, seed=0, dtype=DTYPE):
    return torch.randn(size, generator=torch.Generator(CUDA).manual_seed(seed), device=CUDA).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", FAST)
@torch.inference_mode()
def test_products_are_those_of_full_precision(name, shape):
    kind, (rows, columns) = FORMATS[name], shape
    found = probe(name, CUDA, rows, columns, DTYPE)
    assert found.fast, found.reason
    weight, bias = kind.quantize(gaussian(rows, columns) / columns**0.5), gaussian(rows, seed=1)
    full = kind.dequantize(weight, torch.float32)
    for tokens in (128, 300, 2640, 4400):
        x = gaussian(1, tokens, columns, seed=2)
        fast = kind.linear(x, weight, bias)
        assert fast.dtype == DTYPE and fast.shape == (1, tokens, rows) and fast.isfinite().all()
        if kind.quantizes_inside:
            with float32_products(False):
                assert distance(fast, F.linear(x.float(), full, bias.float())) < 0.03
        else:
            assert distance(fast, kind.linear(x, weight, bias, how="simulated")) < 0.01


@pytest.mark.parametrize("name", FAST)
@torch.inference_mode()
def test_a_graph_gives_what_the_layer_gives(name):
    layer = quantized(gaussian(2240, 2240), gaussian(2240, seed=1), name, amax=6.0)
    x, out = gaussian(300, 2240, seed=2), torch.full((300, 2240), float("nan"), dtype=DTYPE, device=CUDA)
    assert layer.prepare(CUDA, DTYPE) == "fast"
    replay = graphed(lambda: out.copy_(layer(x)))
    x.copy_(gaussian(300, 2240, seed=3))
    replay()
    torch.cuda.synchronize()
    assert out.equal(layer(x))


@pytest.mark.parametrize("name", [name for name in FAST if name in ("fp8", "nvfp4")])
@torch.inference_mode()
def test_values_beyond_the_scale_are_cut_off(name):
    kind, x = FORMATS[name], gaussian(128, 64)
    x[3, 5], x[7, 9] = 1e4, -3e4
    scale = kind.input_scale(torch.tensor(HEADROOM * 4.0, device=CUDA))
    seen = kind.restore_input(kind.quantize_input(x, scale))
    assert seen.isfinite().all() and seen.abs().max() <= HEADROOM * 4.0 * 1.01
    assert (seen[3, 5] > 7 and seen[7, 9] < -7) or name == "nvfp4"
    out = kind.linear(x, kind.quantize(gaussian(64, 64, seed=1)), None, scale)
    assert out.isfinite().all()


def test_whole_passes_under_the_published_plan():
    model = random_dit(CONFIG, 0, device=CUDA, dtype=DTYPE)
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(1, CONFIG.source_channels, 9, 6, 10, generator=draw)
    rows = torch.randn(7, CONFIG.caption_channels, generator=draw)
    clip = CalibrationClip("noise", source, PromptEmbedding.from_rows(rows, CONFIG.max_text_tokens))
    reference = record(model, [clip], StreamOptions(steps=1), places=("late",))
    plans = {name: preset(name, CONFIG) for name in ("fp8", "int8", "paper-mpq")}
    amax = reference.input_amax(model)
    plans = {"bf16": Plan("bf16", {}), **{name: plan.with_amax(amax) for name, plan in plans.items()}}
    times = pass_times(model, plans, reference, seconds=0.01)
    assert times.keys() == plans.keys() and times["bf16"].ratio == 1
    assert all(time.milliseconds > 0 for time in times.values())
    assert times["fp8"].num_bytes < 0.7 * times["bf16"].num_bytes
    assert set(times["paper-mpq"].emulated) >= {"fp8", "nvfp4"} - set(FAST)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@torch.inference_mode()
def test_the_second_gpu_has_its_own_graphs():
    from sana_streaming.sana_core.precision.latency import key, measure_entry

    entry = measure_entry(key(128, 256, 256, "int8"), torch.device("cuda", 1), DTYPE, budget=0.01)
    assert entry.road == "fast" and entry.linear > 0
