"""Recording passes, measuring errors against them, profiles that go on where they stopped, and choosing from one."""

import dataclasses
import json

import pytest
import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.attention import Window
from sana_streaming.sana_core.models.prompt import PromptEmbedding
from sana_streaming.sana_core.precision.apply import trial, twin
from sana_streaming.sana_core.precision.chart import latency_label
from sana_streaming.sana_core.precision.latency import Latency, LatencyTable
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.profile import (
    Profiler,
    ProfileSettings,
    decibels,
    power,
    uniform_plan,
)
from sana_streaming.sana_core.precision.reference import (
    PLACES,
    CalibrationClip,
    clips_digest,
    in_dtype,
    noise_power,
    record,
)
from sana_streaming.sana_core.precision.units import units
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.weights.random_init import random_dit
from small_dit import CONFIG as LARGER

CONFIG = dataclasses.replace(LARGER, depth=2, softmax_layers=(1,))
STEPS = StreamOptions(steps=2)
SETTINGS = ProfileSettings(formats=("fp8", "int8", "nvfp4"), latency="projected", sizes="2b")


def small_dit(layout="split"):
    return random_dit(CONFIG, 0, layout=layout)


def clip(latents=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    source = torch.randn(1, CONFIG.source_channels, latents, 3, 5, generator=draw)
    rows = torch.randn(7, CONFIG.caption_channels, generator=draw)
    return CalibrationClip(f"clip {seed}", source, PromptEmbedding.from_rows(rows, CONFIG.max_text_tokens))


@pytest.fixture(scope="module")
def reference():
    return record(small_dit(), [clip(11), clip(9, seed=1)], STEPS)


@pytest.fixture(scope="module")
def profiler():
    return Profiler(small_dit(), [clip()], SETTINGS, options=STEPS)


@pytest.fixture(scope="module")
def profile(profiler):
    return profiler.run()


def test_the_reference_is_reproduced_pass_by_pass(reference):
    assert [(chunk.clip, chunk.place) for chunk in reference.chunks] == [(c, p) for c in (0, 1) for p in PLACES]
    assert [len(chunk.passes) for chunk in reference.chunks] == [2] * 6
    assert 0 not in [timestep for timestep, _, _ in reference.chunks[0].passes]
    assert [chunk.border is not None and chunk.border.timestep for chunk in reference.chunks[:3]] == [False, 0, 0]
    assert reference.chunks[0].source.shape[2] == 5 and reference.chunks[3].source.shape[2] == 3
    # The late chunk reads a sink of five frames and a chunk of three.
    assert reference.chunks[2].state.position == 8
    for _ in range(2):
        found = noise_power(small_dit(), reference)
        assert found.mean < 1e-10


def test_noise_is_averaged_over_passes(reference):
    model = small_dit()
    with trial(model, preset("fp8", CONFIG)):
        found = noise_power(model, reference)
        each = [
            ((velocity - wanted).square().sum() / wanted.square().sum()).item()
            for _, _, velocity, wanted in reference.run(model)
        ]
    assert found.mean == pytest.approx(sum(each) / len(each))
    assert found.mean == pytest.approx(sum(found.by_place.values()) / 3)
    assert found.mean == pytest.approx(sum(found.by_timestep.values()) / 2)
    assert list(found.by_place) == list(PLACES) and 1e-6 < found.mean < 0.1


def test_the_state_of_the_chunk_before_is_written_under_the_plan(reference, monkeypatch):
    """With errors in nothing but that pass, the first chunk is exact and later ones are not."""
    model = small_dit()

    forward = type(model).forward

    def partly(self, x, timestep, *rest):
        if timestep.item() != 0:
            return forward(self, x, timestep, *rest)
        with trial(model, preset("fp8", CONFIG)):
            return forward(self, x, timestep, *rest)

    monkeypatch.setattr(type(model), "forward", partly)
    found = noise_power(model, reference)
    assert found.by_place["first"] < 1e-10 < 1e-7 < found.by_place["early"]
    assert found.by_place["late"] > 1e-7


def test_places_and_short_clips():
    only = record(small_dit(), [clip()], STEPS, places=("late",))
    assert [chunk.place for chunk in only.chunks] == ["late"]
    with pytest.raises(InputError, match=r"clip 0 has 8 latent frames, 2 chunks of them; give one of 3"):
        record(small_dit(), [clip(8)], STEPS)
    with pytest.raises(InputError, match="no calibration clip"):
        record(small_dit(), [], STEPS)


def test_a_twin_shares_weights_unless_its_dtype_differs():
    model = small_dit("fused")
    model.use_kernels("naive")
    same, split, half = twin(model), twin(model, split=True), twin(model, torch.bfloat16, split=True)
    assert model.layout == same.layout == "fused" and split.layout == half.layout == "split"
    *shared, own = (m.blocks[0].mlp.t_conv.weight.data_ptr() for m in (same, split, half))
    assert set(shared) == {model.blocks[0].mlp.t_conv.weight.data_ptr()} != {own}
    assert noise_power(split, record(model, [clip()], STEPS, places=("late",))).mean < 1e-9
    assert torch.equal(split.blocks[0].attn.k.weight, model.blocks[0].attn.qkvg.weight.chunk(4)[1])
    for each in (same, split, half):
        assert each.fingerprint == model.fingerprint
        assert {module.kernels for module in each.modules() if hasattr(module, "kernels")} == {"naive"}
    assert half.dtype == torch.bfloat16


def test_a_network_of_16_bits_runs_from_the_reference(reference):
    found = noise_power(twin(small_dit(), torch.bfloat16, split=True), reference)
    assert 20 < decibels(found.mean) < 60
    state = in_dtype(reference.chunks[2].state.read(), torch.bfloat16)
    assert isinstance(state[1].memory, Window) and state[1].memory.keys.dtype == torch.bfloat16
    assert state[0].memory[0].dtype == torch.float32


def test_digest_tells_clips_apart():
    one = clips_digest([clip()])
    assert one == clips_digest([clip()]) != clips_digest([clip(seed=1)])
    louder = dataclasses.replace(clip(), source=clip().source * 1.001)
    assert clips_digest([louder]) != one


def test_every_unit_has_an_error_in_every_format(profile):
    assert set(profile.errors) == {unit.name for unit in units(CONFIG)} == set(profile.amax)
    for name, found in profile.errors.items():
        assert list(found) == list(SETTINGS.formats)
        assert found["int8"] < found["fp8"] < found["nvfp4"], name


def test_the_sum_of_errors_foretells_those_of_plans(profiler, profile):
    for point in profiler.check(profile, [*profile.presets(), *profile.front(5)]):
        if point.formats:
            assert point.noise == pytest.approx(point.error, rel=0.5)
        else:
            assert point.noise == pytest.approx(0, abs=1e-10)


def test_no_hand_made_plan_beats_the_front(profile):
    front = profile.front(5)
    marks = [*profile.presets(), *profile.uniform()]
    assert {"bf16", "fp8", "int8", "paper-mpq", "nvfp4"} == {point.name for point in marks}
    for mark in marks:
        slack = 1 + 1e-5
        assert any(p.latency <= mark.latency * slack and p.error <= mark.error * slack for p in front), mark.name
    assert not front[-1].formats


def test_choosing_within_budgets(profile):
    full = profile.point(Plan("bf16", {})).latency
    half = profile.choose(max_latency=0.5)
    assert half.latency <= 0.5 * full * (1 + 1e-6)
    assert profile.choose(max_latency=1.0).error == 0
    exact = profile.choose(max_error=0.0)
    assert exact.formats == {} and exact.latency == pytest.approx(full)
    auto, fp8 = profile.choose(), profile.point(uniform_plan("fp8", CONFIG))
    assert auto.error <= fp8.error * (1 + 1e-6) and auto.latency < fp8.latency
    with pytest.raises(InputError, match=r"no plan takes 0\.01 of the unquantized latency; the fastest takes 0\.\d+"):
        profile.choose(max_latency=0.01)
    with pytest.raises(InputError, match="not both"):
        profile.choose(max_latency=0.5, max_error=0.1)


def test_the_plan_of_a_choice_is_whole(profiler, profile):
    point = profiler.check(profile, [profile.choose()])[0]
    plan = profile.plan(point)
    plan.check(CONFIG, small_dit().fingerprint)
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    scaled = {name for name, kind in plan.formats.items() if kind in ("fp8", "nvfp4")}
    assert set(plan.input_amax) == scaled
    assert plan.measurements["latency"]["kind"] == "projected"
    assert plan.measurements["teacher_forced_sqnr_db"] == pytest.approx(decibels(point.noise))


class Stop(Exception):
    pass


def test_a_stopped_profile_goes_on_where_it_was(tmp_path, profile):
    path, seen, one = tmp_path / "journal.json", [], dataclasses.replace(SETTINGS, formats=("int8",))

    def stop_at(count):
        def tell(progress):
            if progress.stage == "error":
                seen.append(progress.what)
                if progress.done == count:
                    raise Stop

        return tell

    with pytest.raises(Stop):
        Profiler(small_dit(), [clip()], one, options=STEPS, journal=path, on_progress=stop_at(5)).run()
    kept = json.loads(path.read_text())["sections"]
    assert list(kept["error"]) == seen[:5]
    # What is known is not measured again: a wrong value stays.
    kept["error"][seen[0]]["mean"] = 7.0
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sections": kept}))
    resumed = Profiler(small_dit(), [clip()], one, options=STEPS, journal=path).run()
    unit = seen[0].split("/")[0]
    assert resumed.errors.pop(unit) == {"int8": 7.0}
    for name, values in resumed.errors.items():
        assert values["int8"] == pytest.approx(profile.errors[name]["int8"], rel=1e-3)
    assert not path.with_name("journal.json.part").exists()


def test_a_complete_journal_needs_no_pass(tmp_path, monkeypatch):
    path = tmp_path / "journal.json"
    settings = dataclasses.replace(SETTINGS, formats=("int8",))
    first = Profiler(small_dit(), [clip()], settings, options=STEPS, journal=path).run()
    again = Profiler(small_dit(), [clip()], settings, options=STEPS, journal=path)
    monkeypatch.setattr(again, "reference", lambda: pytest.fail("recorded again"))
    assert again.run().errors == first.errors


def test_a_journal_of_something_else_is_refused(tmp_path):
    path = tmp_path / "journal.json"
    settings = dataclasses.replace(SETTINGS, formats=("int8",))
    profiler = Profiler(small_dit(), [clip()], settings, options=STEPS, journal=path)
    profiler.journal.save()
    with pytest.raises(InputError, match="was measured with clips"):
        Profiler(small_dit(), [clip(seed=1)], settings, options=STEPS, journal=path)
    with pytest.raises(InputError, match="was measured with options"):
        Profiler(small_dit(), [clip()], settings, options=StreamOptions(steps=3), journal=path)
    # More formats go into the same journal, and other latencies.
    Profiler(small_dit(), [clip()], dataclasses.replace(SETTINGS, target="h100"), options=STEPS, journal=path)
    path.write_text("{}")
    with pytest.raises(InputError, match="is no profile of version 1"):
        Profiler(small_dit(), [clip()], settings, options=STEPS, journal=path)


@pytest.fixture
def clocked(monkeypatch):
    """Keys of the latencies that were asked for, none of them measured."""
    asked = []
    module = "sana_streaming.sana_core.precision.profile"
    monkeypatch.setattr(f"{module}.measure_entry", lambda key, *_: asked.append(key) or Latency(2.0, 1.5, 0.5))
    return asked


def measured(path, clocked, **changes):
    """(profile with measured latencies, keys of those that the journal lacked, times that errors were measured)."""
    clocked.clear()
    settings = ProfileSettings(**{"formats": ("int8",), "seconds": 0.0, **changes})
    profiler = Profiler(small_dit(), [clip()], settings, options=STEPS, journal=path)
    noises, noise = [], profiler._noise
    profiler._noise = lambda plan: noises.append(plan) or noise(plan)
    return profiler.run(), list(clocked), len(noises)


def test_latencies_are_those_of_the_size_that_the_network_is_for(tmp_path, clocked):
    """Not of the calibration clip, whose chunks have 45 tokens here."""
    found, keys, _ = measured(tmp_path / "journal.json", clocked)
    assert found.table.tokens == 3 * 20 * 32
    assert {"1920x384x96/int8", "12x192x96/bf16"} < set(keys) and len(keys) == len(found.table.entries)
    _, keys, _ = measured(tmp_path / "journal.json", clocked, sizes="2b")
    assert "2640x8960x2240/int8" in keys
    found, keys, _ = measured(tmp_path / "journal.json", clocked, tokens=7)
    assert "7x384x96/int8" in keys and "12x192x96/int8" not in keys
    plan = found.plan(found.choose(max_latency=1.0))
    assert plan.measurements["latency"]["tokens"] == found.table.tokens == 7


@pytest.mark.parametrize("latency", ["measured", "projected"])
def test_latencies_of_another_network_say_so(tmp_path, clocked, latency):
    path, figures = tmp_path / "journal.json", []
    for sizes in ("own", "2b"):
        found, _, _ = measured(path, clocked, latency=latency, sizes=sizes)
        plan = found.plan(found.choose(max_latency=1.0))
        assert plan.measurements["latency"]["sizes"] == found.table.source["sizes"] == sizes
        figures.append(latency_label(found.table))
    assert "tokens in matrices, " in figures[0] and "tokens in matrices of the 2B network, " in figures[1]
    # The 2B network itself has no others.
    assert ProfileSettings(sizes="2b").sizes_of(DiTConfig()) == "own"
    assert latency_label(LatencyTable(7, 300, {}, {"kind": "measured", "device": "x"})).endswith(
        "matrices, measured on x"
    )


def test_latencies_of_other_conditions_are_measured_again_and_errors_are_not(tmp_path, clocked, monkeypatch):
    path = tmp_path / "journal.json"
    first, keys, noises = measured(path, clocked)
    assert noises == 22
    assert measured(path, clocked)[1:] == ([], 0)
    for changes in ({"seconds": 0.1}, {"tokens": 9}):
        _, again, noises = measured(path, clocked, **changes)
        assert again and noises == 0
    name = "sana_streaming.sana_core.precision.latency.kitchen_backends"
    monkeypatch.setattr(name, lambda: "another one")
    assert measured(path, clocked)[1:] == (keys, 0)
    sections = json.loads(path.read_text())["sections"]
    entry = next(values for name, values in sections.items() if name.startswith("latency / "))["1920x384x96/int8"]
    assert entry["times"]["product"] == 1.5 and entry["date"] == first.table.source["date"]


def test_a_table_says_when_its_entries_were_measured(tmp_path, clocked, monkeypatch):
    path = tmp_path / "journal.json"
    day = "sana_streaming.sana_core.precision.profile.today"
    monkeypatch.setattr(day, lambda: "2000-01-01")
    assert measured(path, clocked)[0].table.source["date"] == "2000-01-01"
    monkeypatch.setattr(day, lambda: "2000-01-02")
    assert measured(path, clocked)[0].table.source["date"] == "2000-01-01"
    found, keys, _ = measured(path, clocked, formats=("int8", "fp8"))
    assert keys and found.table.source["date"] == "2000-01-01 to 2000-01-02"


def test_errors_of_another_comfy_kitchen_are_refused(tmp_path, clocked, monkeypatch):
    path = tmp_path / "journal.json"
    measured(path, clocked)
    monkeypatch.setattr("sana_streaming.sana_core.precision.profile.kitchen_version", lambda: "0.0")
    with pytest.raises(InputError, match=r"was measured with comfy_kitchen .*, this profile has 0\.0"):
        measured(path, clocked)


@pytest.fixture
def tf32_settings():
    """torch's, which monkeypatch would delete in the end."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in settings]
    yield settings
    for each, value in zip(settings, before, strict=True):
        each.allow_tf32 = value


@pytest.mark.parametrize("tf32", [False, True])
def test_errors_are_those_of_float32(monkeypatch, tf32_settings, tf32):
    """Whatever whoever calls has set, which stays."""
    seen = set()
    for each in tf32_settings:
        each.allow_tf32 = not tf32
    forward = type(small_dit()).forward

    def looking(self, *arguments):
        seen.update(each.allow_tf32 for each in tf32_settings)
        return forward(self, *arguments)

    monkeypatch.setattr(type(small_dit()), "forward", looking)
    one = dataclasses.replace(SETTINGS, formats=("int8",))
    profiler = Profiler(small_dit(), [clip()], one, options=STEPS, places=("late",), tf32=tf32)
    profiler.run()
    profiler.floor()
    assert seen == {tf32} == {profiler.journal.identity["tf32"]}
    assert {each.allow_tf32 for each in tf32_settings} == {not tf32}


def test_the_bar_is_fp8_else_the_first_format(profile):
    assert profile.bar == "fp8"
    other = dataclasses.replace(profile, settings=dataclasses.replace(SETTINGS, formats=("nvfp4", "int8")))
    assert other.bar == "nvfp4"
    assert other.choose().error <= other.point(uniform_plan("nvfp4", CONFIG)).error * (1 + 1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"formats": ("int9",)}, "no format is called int9; there are fp8, int8"),
        ({"formats": ()}, "no format to choose from"),
        ({"latency": "guessed"}, "latency guessed at sizes own is unknown"),
        ({"latency": "projected", "target": "tpu"}, "targets are rtx4090"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(InputError, match=message):
        ProfileSettings(**values)


def test_decibels():
    assert decibels(0.01) == pytest.approx(20) and power(20) == pytest.approx(0.01)
    assert decibels(0.0) == 200
