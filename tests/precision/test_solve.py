"""The solver against every plan there is, and against the plans that people write by hand."""

import itertools
import os
import random

import pytest
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.precision.latency import plan_latency, projected
from sana_streaming.sana_core.precision.plan import Plan, preset, preset_names
from sana_streaming.sana_core.precision.profile import QUANTIZED, uniform_plan
from sana_streaming.sana_core.precision.solve import (
    TOLERANCE,
    Choice,
    Problem,
    budgets,
    front,
    least_error,
    least_latency,
    plan_error,
    problems,
)
from sana_streaming.sana_core.precision.units import units

CONFIG = DiTConfig(depth=3, softmax_layers=(2,))
SLACK = 1 + TOLERANCE
MILD = {"fp8": 1e-3, "int8": 3e-4, "int8-hadamard": 2e-4, "mxfp8": 1.1e-3, "nvfp4": 1.2e-2}


def drawn_problem(seed):
    """Six units of three to four choices; three of them share what one format costs."""
    draw = random.Random(seed)
    names = ["a", "b", "c", "d", "e", "f"]
    kinds = ["bf16", "fp8", "int8", "nvfp4"]
    choices = {}
    for number, name in enumerate(names):
        options = [Choice("bf16", draw.uniform(4, 6), 0.0)]
        for kind in kinds[1 : draw.choice((3, 4))]:
            shares = kind if number < 3 else ""
            options.append(Choice(kind, draw.uniform(1, 5), draw.lognormvariate(-6, 2), shares))
        choices[name] = options
    return Problem(choices, {name: [name] for name in names}, {kind: draw.uniform(0.2, 2) for kind in kinds[1:]})


def every_selection(problem):
    return [problem.selection(picks) for picks in itertools.product(*(range(len(c)) for c in problem.choices.values()))]


def drawn_errors(seed=0):
    draw = random.Random(seed)
    return {
        unit.name: {kind: MILD[kind] * draw.lognormvariate(0, 1) * draw.lognormvariate(0, 0.3) for kind in QUANTIZED}
        for unit in units(CONFIG)
    }


@pytest.mark.parametrize("seed", range(8))
def test_no_plan_is_better_by_brute_force(seed):
    problem = drawn_problem(seed)
    found = every_selection(problem)
    latencies, errors = sorted(s.latency for s in found), sorted(s.error for s in found)
    for place in (0.02, 0.3, 0.7, 1.0):
        budget = latencies[int(place * (len(found) - 1))]
        best = min(s.error for s in found if s.latency <= budget)
        answer = least_error([problem], budget)
        assert answer.latency <= budget * SLACK
        assert answer.error == pytest.approx(best, rel=2 * TOLERANCE, abs=1e-15)
        budget = errors[int(place * (len(found) - 1))]
        best = min(s.latency for s in found if s.error <= budget)
        answer = least_latency([problem], budget)
        assert answer.error <= budget * SLACK
        assert answer.latency == pytest.approx(best, rel=2 * TOLERANCE)


def test_a_shared_cost_is_paid_once():
    shared = {"fp8": 3.0}
    options = [Choice("bf16", 4.0, 0.0), Choice("fp8", 1.0, 1.0, "fp8")]
    two = Problem({"a": options, "b": options}, {"a": ["a"], "b": ["b"]}, shared)
    assert two.selection([1, 1]).latency == 5.0
    assert least_latency([two], 2.0).formats == {"a": "fp8", "b": "fp8"}
    # One alone costs what it saves, and errs: neither budget takes it.
    assert least_latency([two], 1.0).formats == {}


def test_equal_plans_are_decided_by_the_order_of_choices():
    options = [Choice("bf16", 2.0, 0.0), Choice("fp8", 1.0, 0.1), Choice("int8", 1.0, 0.1)]
    names = [f"u{number}" for number in range(5)]
    problem = Problem(dict.fromkeys(names, options), {name: [name] for name in names})
    answers = [least_latency([problem], 0.5).formats for _ in range(3)]
    assert answers == [dict.fromkeys(names, "fp8")] * 3


def test_budgets_that_nothing_fits():
    problem = drawn_problem(1)
    fastest = min(s.latency for s in every_selection(problem))
    assert least_error([problem], fastest * 0.99) is None
    assert least_latency([problem], 0.0).formats == {}


@pytest.mark.parametrize("target", ["rtx5090", "h100"])
def test_selections_cost_what_their_plans_cost(target):
    table, errors = projected(CONFIG, 2640, QUANTIZED, target), drawn_errors()
    both = problems(CONFIG, table, errors)
    full = plan_latency(Plan("bf16", {}), CONFIG, table)
    seen = set()
    for share in (0.2, 0.35, 0.5, 0.8):
        answer = least_error(both, share * full)
        if answer is None:
            continue
        plan = Plan("x", answer.formats)
        assert plan_latency(plan, CONFIG, table) == pytest.approx(answer.latency, rel=1e-9)
        assert plan_error(plan.formats, errors) == pytest.approx(answer.error, rel=1e-9)
        assert answer.latency <= share * full * SLACK
        seen.add(plan.layout(CONFIG))
    assert seen


def test_the_fused_layout_is_found_where_it_pays():
    table, errors = projected(CONFIG, 2640, ["fp8"], "h100"), drawn_errors()
    answer = least_latency(problems(CONFIG, table, errors), float("inf"))
    assert Plan("x", answer.formats).layout(CONFIG) == "fused"
    fused, split = problems(CONFIG, table, errors)
    assert least_latency([fused], float("inf")).latency < least_latency([split], float("inf")).latency


@pytest.mark.parametrize("target", ["rtx4090", "rtx5090", "h100"])
def test_the_front_dominates_presets_and_uniform_formats(target):
    table, errors = projected(CONFIG, 2640, QUANTIZED, target), drawn_errors(1)
    both = problems(CONFIG, table, errors)
    plans = [preset(name, CONFIG) for name in preset_names()] + [uniform_plan(kind, CONFIG) for kind in QUANTIZED]
    marks = [(plan.name, plan_latency(plan, CONFIG, table), plan_error(plan.formats, errors)) for plan in plans]
    found = front(both, budgets(both, 6, [latency for _, latency, _ in marks]))
    for name, latency, error in marks:
        assert any(s.latency <= latency * SLACK**2 and s.error <= error * SLACK**2 for s in found), name
    assert [s.latency for s in found] == sorted(s.latency for s in found)
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    assert found[-1].formats == {}


def test_a_format_that_was_not_measured_has_no_error():
    errors = {unit.name: {"fp8": 1e-3} for unit in units(CONFIG)}
    with pytest.raises(InputError, match=r"blocks\.0\.self\.q in int8 was not measured"):
        plan_error(uniform_plan("int8", CONFIG).formats, errors)


def test_what_the_solver_prints_goes_to_stderr(capfd, monkeypatch):
    from scipy import optimize

    solve = optimize.milp

    def talking(*arguments, **options):
        os.write(1, b"solver's remark\n")
        return solve(*arguments, **options)

    monkeypatch.setattr(optimize, "milp", talking)
    assert least_latency([drawn_problem(1)], 0.0).formats == {}
    os.write(1, b"result\n")
    said = capfd.readouterr()
    assert said.out == "result\n" and "solver's remark" in said.err
