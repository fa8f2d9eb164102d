"""The registry, its baselines, and a run of rows; no time is asserted."""

from typing import get_args

import pytest
import torch
from compare import relative_rms
from sana_streaming.kernels.gdn import Implementation, gdn
from sana_streaming.sana_core.benchmark import networks, operators, released
from sana_streaming.sana_core.benchmark.end_to_end import TIMED_CHUNKS
from sana_streaming.sana_core.benchmark.measure import measure_case, run_rows
from sana_streaming.sana_core.benchmark.registry import BASELINES, Case, Row, Variant, all_rows, chosen
from sana_streaming.sana_core.benchmark.results import Results, check_results
from sana_streaming.sana_core.benchmark.sizes import SIZES, Bench, Size
from sana_streaming.sana_core.benchmark.timing import Ceilings, Timing, time_in_turns
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.attention import GDNAttention
from sana_streaming.sana_core.streaming.passes import PLAIN_CALLS
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPERATORS = {
    "gdn",
    "gdn_fused",
    "mix_ffn_middle",
    "norm_modulate",
    "qk_norm_relu_rope",
    "qk_norm_rope",
    "output_gate",
    "gated_residual",
    "vae_norm_silu_pad",
}
NETWORKS = {"block_gdn", "block_softmax", "pass", "chunk", "vae_encode", "vae_decode", "end_to_end"}


@pytest.fixture
def bench():
    return Bench.on(CPU, budget=0.0)


@pytest.fixture
def toy_size(monkeypatch):
    """64 x 96 pixels with networks of toy size; as an operator's size its channels are those of the toy."""
    configs = toy_configs(32)
    monkeypatch.setattr(Size, "dit", property(lambda size: configs["dit"]))
    monkeypatch.setattr(Size, "vae", property(lambda size: configs["vae"]))
    return Size("toy", 64, 96, "toy")


def test_the_registry_is_complete():
    rows = {row.name: row.group for row in all_rows()}
    assert {name for name, group in rows.items() if group == "operator"} == OPERATORS
    assert {name for name, group in rows.items() if group == "network"} == NETWORKS
    assert len(all_rows()) == len(rows)
    assert all(row.formula and row.what for row in all_rows())
    assert {row.name for row, size in chosen(None, CUDA) if size.name == "704x1280"} == set(rows)
    assert {row.name for row, size in chosen(None, CUDA) if size.name == "384x640"} == set(rows)
    assert {row.name for row, _ in chosen(None, CPU)} == set(rows)


def test_rows_are_chosen_by_name_and_size():
    assert [(row.name, size.name) for row, size in chosen(["pass@384x640"], CUDA)] == [("pass", "384x640")]
    assert [size.name for _, size in chosen(["gdn"], CUDA)] == ["704x1280", "384x640"]
    with pytest.raises(InputError, match="--only gdm is no row"):
        chosen(["gdn", "gdm"], CPU)
    with pytest.raises(InputError, match="pass@384x640"):
        chosen(["pass@384x640"], CPU)


@pytest.mark.parametrize("name", sorted((OPERATORS | NETWORKS) - {"end_to_end"}))
def test_every_row_runs_on_toy_networks(bench, toy_size, name):
    (row,) = (row for row in all_rows() if row.name == name)
    case = row.prepare(bench, toy_size)
    with torch.no_grad():
        timings, _, failed = measure_case(bench, case, flush=False)
    assert failed.keys() <= set(get_args(Implementation)) - {"eager", "naive"}
    assert "eager" in timings
    assert all(timing.median > 0 and timing.repeats >= 3 for timing in timings.values())
    assert all(step.bytes > 0 and step.flops > 0 for step in case.work)


@pytest.mark.slow
def test_end_to_end_runs_on_toy_networks(bench, toy_size):
    (row,) = (row for row in all_rows() if row.name == "end_to_end")
    case = row.prepare(bench, toy_size)
    with torch.no_grad():
        timings, details, failed = measure_case(bench, case, flush=False)
    assert "eager" in timings and "eager" not in failed
    assert timings["eager"].repeats == 2 * TIMED_CHUNKS["cpu"]
    assert {"encode", "denoise", "decode", "write"} <= details["eager"]["stage_seconds_per_chunk"].keys()
    assert case.frames == 24


def test_the_released_form_has_the_same_numbers(bench, toy_size):
    inputs = operators.gdn_inputs(bench, toy_size)
    for memory in (inputs.memory, None):
        (got, got_memory), (expected, expected_memory) = (
            call(*inputs[:-1], memory) for call in (released.gdn_released, lambda *a: gdn(*a, implementation="naive"))
        )
        assert relative_rms(got, expected) < 1e-5
        assert all(relative_rms(a, b) < 1e-5 for a, b in zip(got_memory, expected_memory, strict=True))


def test_the_released_form_of_the_layer_has_the_same_numbers(bench, toy_size):
    case = operators.gdn_fused_case(bench, toy_size)
    (got, got_memory), (expected, expected_memory) = (case.variants[name].run() for name in ("released", "eager"))
    assert relative_rms(got, expected) < 1e-5
    assert all(relative_rms(a, b) < 1e-5 for a, b in zip(got_memory, expected_memory, strict=True))


def test_the_released_network_has_the_same_numbers_and_weights():
    model = random_dit(toy_configs(32)["dit"])
    other = released.released_model(model)
    assert sum(isinstance(block.attn, GDNAttention) for block in model.blocks) == 3
    assert sum(isinstance(block.attn, released.ReleasedGDNAttention) for block in other.blocks) == 3
    assert other.x_embedder.proj.weight.data_ptr() == model.x_embedder.proj.weight.data_ptr()
    x = torch.randn(1, 16, 2, 3, 5)
    prompt = model.prompt_context(torch.randn(1, 4, 32))
    with torch.no_grad():
        (got, _), (expected, _) = (net(x, torch.full((1,), 500.0), x, prompt) for net in (other, model))
    assert relative_rms(got, expected) < 1e-5


def test_every_operator_has_an_eager_form():
    assert set(operators.IMPLEMENTATIONS) == OPERATORS - {"gdn", "gdn_fused"}
    assert all("eager" in loaders for loaders in operators.IMPLEMENTATIONS.values())
    assert set(operators.fast_implementations()) == set(get_args(Implementation)) - {"auto", "naive"}


def test_ceilings_are_positive():
    ceilings = Ceilings.measure(CPU, torch.float32)
    assert ceilings.copy_bytes_per_second > 0 and ceilings.matmul_flops_per_second > 0


def test_the_best_ceilings_of_a_run_hold_for_all_its_rows(bench, monkeypatch):
    measured = iter([Ceilings(5.0, 1.0), Ceilings(1.0, 2.0), Ceilings(10.0, 0.5)])
    monkeypatch.setattr(Ceilings, "measure", lambda device, dtype: next(measured))
    case = Case({"eager": Variant(list)}, (operators.counts.Work(20, 8, calls=3), operators.counts.Work(50, 4)))
    results = Results.open(bench, None)
    run_rows(bench, [(row_of(name, case), SIZES["256x448"]) for name in "ab"], results, lambda line: None)
    for record in results.rows.values():
        assert record["ceilings"] == {"copy_bytes_per_second": 10.0, "matmul_flops_per_second": 2.0}
        assert record["floor_ms"] == pytest.approx(1000 * (3 * 4 + 5)) and record["bound"] == "compute"
        assert record["bytes"] == 110 and record["flops"] == 28


def test_timing_of_samples():
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(3.0, 2.0, 5)
    assert Timing.of([2.0]) == Timing(2.0, 0.0, 1)


def test_runs_are_timed_in_turns_within_their_budget():
    called = []
    seconds = {"slow": 1.0, "quick": 0.25}

    def clock(run):
        return seconds[run()]

    runs = {name: lambda name=name: called.append(name) or name for name in seconds}
    timings = time_in_turns(runs, clock, budget=2.0)
    assert timings == {"slow": Timing(1.0, 0.0, 3), "quick": Timing(0.25, 0.0, 8)}
    assert called == ["slow", "quick"] * 3 + ["quick"] * 5


def fails():
    raise ImportError("no such\npackage")


def stops():
    raise KeyboardInterrupt


def row_of(name, case):
    return Row(name, "operator", "what", "formula", lambda bench, size: case, ("256x448",))


def test_what_fails_is_written_down_and_costs_nothing_else(bench):
    work = operators.counts.Work(8, 2)
    both = Case(
        {"eager": Variant(list), "released": Variant(list), "triton": Variant(fails)}, (work,), {"fla": "absent"}
    )
    results = Results.open(bench, None)
    run_rows(bench, [(row_of("a", both), SIZES["256x448"])], results, lambda line: None)
    check_results(results.values, "results")
    record = results.rows["a@256x448"]
    assert record["skipped"] == {"fla": "absent", "triton": "ImportError: no such package"}
    assert record["timings"].keys() == {"eager", "released"}
    own, baseline = record["timings"]["eager"], record["timings"]["released"]
    assert own["speedup"] == {"released": baseline["median_ms"] / own["median_ms"]}
    assert own["of_floor"] == pytest.approx(record["floor_ms"] / own["median_ms"])
    assert baseline["baseline"] and not own["baseline"]
    assert record["bytes"] == 8 and record["flops"] == 2


def test_an_interrupted_run_keeps_its_finished_rows(bench, tmp_path):
    work = (operators.counts.Work(8, 2),)
    rows = [row_of("a", Case({"eager": Variant(list)}, work)), row_of("b", Case({"eager": Variant(stops)}, work))]
    file = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        run_rows(bench, [(row, SIZES["256x448"]) for row in rows], Results.open(bench, file), lambda line: None)
    assert Results.open(bench, file).rows.keys() == {"a@256x448"}


def test_baselines_are_explained():
    assert {"released", "compiled", "fla", "naive"} == set(BASELINES)


def test_a_graph_is_recorded_before_it_is_timed():
    calls = []
    run = networks._recorded_first(lambda: calls.append(1))
    run()
    assert len(calls) == PLAIN_CALLS + 1
    run()
    assert len(calls) == PLAIN_CALLS + 2
