"""What plans cost by a table: arithmetic of shared inputs, projections from data sheets, and the measuring itself."""

import contextlib
import math

import pytest
import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.precision import latency
from sana_streaming.sana_core.precision.formats import FORMATS
from sana_streaming.sana_core.precision.latency import (
    PASSES_PER_PROMPT,
    TARGETS,
    Latency,
    LatencyTable,
    key,
    measure_entry,
    measured_source,
    needed,
    plan_latency,
    projected,
)
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.profile import QUANTIZED
from sana_streaming.sana_core.precision.units import block_units

CONFIG = DiTConfig(depth=2, softmax_layers=(1,))
TOKENS = 2640
C = CONFIG.hidden_size


def table(kinds=("fp8", "int8")):
    """Distinct powers of two, so that a sum shows what is in it."""
    entries = {
        name: Latency(linear=float(3**number), product=float(3**number) / 4, quantize=float(3**number) / 8)
        for number, name in enumerate(needed(CONFIG, TOKENS, kinds))
    }
    return LatencyTable(TOKENS, CONFIG.max_text_tokens, entries, {"kind": "measured"})


def test_a_fused_block_is_one_product_and_a_split_one_shares_inputs():
    costs = table()
    alone = [unit for unit in block_units(CONFIG, 0) if not unit.kind.startswith("self.") or unit.kind == "self.o"]
    fused = sum(costs.unit(unit, "fp8") for unit in alone) + costs.of(4 * C, C, "fp8").linear
    assert plan_latency(preset("fp8", CONFIG), CONFIG, costs) == pytest.approx(2 * fused, rel=1e-12)

    formats = dict(preset("fp8", CONFIG).formats) | {"blocks.0.self.q": "int8"}
    one, other = costs.of(C, C, "fp8"), costs.of(C, C, "int8")
    first = other.product + 3 * one.product + other.quantize + one.quantize
    second = 4 * one.product + one.quantize
    rest = 2 * sum(costs.unit(unit, "fp8") for unit in alone)
    assert plan_latency(Plan("x", formats), CONFIG, costs) == pytest.approx(rest + first + second, rel=1e-12)


def test_what_runs_once_per_prompt_counts_once_per_prompt():
    costs = table()
    unit = next(unit for unit in block_units(CONFIG, 0) if unit.kind == "cross.kv")
    entry = costs.entries[key(CONFIG.max_text_tokens, 2 * C, C, "fp8")]
    assert costs.unit(unit, "fp8") == entry.linear / PASSES_PER_PROMPT


def test_projection_follows_the_data_sheet():
    costs = projected(CONFIG, TOKENS, QUANTIZED, "rtx5090")
    wide = costs.of(6 * C, C, "bf16")
    assert wide.linear == pytest.approx(1000 * 2 * TOKENS * 6 * C * C / (209.5e12 * 0.65))
    int8 = costs.of(6 * C, C, "int8")
    moved = TOKENS * C * 2 + TOKENS * C + 4 * TOKENS
    assert int8.linear == pytest.approx(
        1000 * 2 * TOKENS * 6 * C * C / (838e12 * 0.65) + 1000 * moved / (1.79e12 * 0.8), rel=1e-6
    )
    # int8 is quantized inside its product, fp8 before it.
    assert int8.product == int8.linear and int8.quantize == 0
    rotated = costs.of(6 * C, C, "int8-hadamard")
    assert rotated.linear - int8.linear == pytest.approx(1000 * 4 * TOKENS * C / (1.79e12 * 0.8))
    fp8 = costs.of(6 * C, C, "fp8")
    assert fp8.quantize > 0 and fp8.linear == pytest.approx(fp8.product + fp8.quantize)
    assert costs.source["kind"] == "projected" and costs.source["target"] == "RTX 5090"


def test_a_card_without_the_format_dequantizes():
    costs = projected(CONFIG, TOKENS, QUANTIZED, "h100")
    four, plain = costs.of(C, C, "nvfp4"), costs.of(C, C, "bf16")
    assert four.road == "dequantized" and four.linear > plain.linear
    assert costs.of(C, C, "fp8").road == "fast"


@pytest.mark.parametrize(("card", "capability"), [("rtx4090", (8, 9)), ("rtx5090", (12, 0)), ("h100", (9, 0))])
def test_cards_multiply_in_the_formats_of_their_capability(card, capability):
    assert {*TARGETS[card].rates} == {name for name, kind in FORMATS.items() if kind.min_capability <= capability}


def test_another_card_is_named():
    with pytest.raises(InputError, match="tpu; targets are rtx4090, rtx5090, h100"):
        projected(CONFIG, TOKENS, ["fp8"], "tpu")


@pytest.mark.parametrize(("kind", "road"), [("bf16", "fast"), ("int8", "fast"), ("fp8", "dequantized")])
def test_measuring_says_how_it_ran(kind, road):
    entry = measure_entry(key(5, 64, 32, kind), torch.device("cpu"), torch.float32, budget=0.0)
    assert entry.road == road
    assert math.isfinite(entry.linear) and entry.linear > 0
    assert entry.product == entry.linear and entry.quantize == 0


def test_times_are_those_of_the_device_that_is_named(monkeypatch):
    """Graphs and events go by the current device, which is another one on a machine with two."""
    second, current, seen = torch.device("cuda:1"), [torch.device("cuda:0")], []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    class Clock:
        def __init__(self, on, flush):
            seen.append(current[-1])

        def __call__(self, run):
            seen.append(current[-1])
            run()
            return 1.0

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(latency, "Clock", Clock)
    monkeypatch.setattr(latency, "graphed", lambda run: seen.append(current[-1]) or run)
    timings = latency.timed({"a": lambda: None}, second, 0.0)
    assert timings["a"].median == 1.0 and len(seen) > 2 and {*seen} == {second} and len(current) == 1


def test_a_table_survives_json():
    costs = projected(CONFIG, TOKENS, ["fp8"], "h100")
    assert LatencyTable.from_dict(costs.to_dict()) == costs
    assert costs.formats() == ("bf16", "fp8")
    assert measured_source(torch.device("cpu"), torch.float32)["kind"] == "measured"
