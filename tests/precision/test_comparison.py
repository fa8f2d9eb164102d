"""Free runs under plans, what their frames are compared by, times of passes, charts, and footage to calibrate on."""

import math

import pytest
import torch
from sana_streaming.sana_core.benchmark.timing import Timing
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.evaluation.editor import StreamEditor
from sana_streaming.sana_core.precision import chart, pass_time
from sana_streaming.sana_core.precision.apply import twin
from sana_streaming.sana_core.precision.comparison import FLOOR, compare_plans
from sana_streaming.sana_core.precision.footage import NUM_FRAMES, calibration_clips, scenes
from sana_streaming.sana_core.precision.free_running import flicker, ssim
from sana_streaming.sana_core.precision.journal import Journal
from sana_streaming.sana_core.precision.latency import projected
from sana_streaming.sana_core.precision.pass_time import pass_times
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.profile import Point
from sana_streaming.sana_core.precision.reference import record
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.training.data.edits import EDITS
from sana_streaming.sana_core.training.data.scenes import Shot, make_scene
from sana_streaming.sana_core.training.data.sources import FIRST_TRAINING_SEED, HELD_OUT_SEEDS, Clip, make_sample
from toys import CONFIGS, SIZE, networks

CONFIG = CONFIGS["dit"]
OPTIONS = StreamOptions(steps=1)
TIMES = {"bf16": Timing(1.0, 0.0, 3)}


@pytest.fixture(scope="module")
def parts():
    model, vae, text = networks()
    clips = calibration_clips(scenes(1, SIZE, SIZE), vae, text, SIZE, SIZE)
    shot = Shot(make_scene(3, SIZE, SIZE), range(9))
    sample = make_sample(Clip("scene", shot.frames(), shot), EDITS["sepia"], {}, "make it sepia", "undo")
    return record(twin(model, split=True), clips, OPTIONS), [sample], clips


def editor():
    model, vae, text = networks()
    return StreamEditor(model, vae, text, height=SIZE, width=SIZE, options=OPTIONS)


def test_drawn_clips_are_no_held_out_ones():
    found = list(scenes(2, SIZE, SIZE))
    assert [len(each.frames) for each in found] == [NUM_FRAMES] * 2
    assert found[0].instruction != found[1].instruction
    assert max(HELD_OUT_SEEDS) < FIRST_TRAINING_SEED
    with pytest.raises(InputError, match="0 calibration scenes are out of range"):
        list(scenes(0, SIZE, SIZE))


def test_calibration_clips_have_three_chunks(parts):
    reference, _, clips = parts
    assert clips[0].source.shape == (1, CONFIG.source_channels, 9, 2, 2)
    assert [chunk.place for chunk in reference.chunks] == ["first", "early", "late"]


def test_rows_of_a_comparison(parts, tmp_path, monkeypatch):
    reference, samples, _ = parts
    journal, steps = Journal.open(tmp_path / "rows.json", {"a": 1}), []
    plans = {name: preset(name, CONFIG) for name in ("int8", "fp8")}
    edits = editor()

    def rows(journal):
        return compare_plans(
            edits, plans, reference, samples, journal=journal, on_step=lambda *s: steps.append(s), seconds=0
        )

    found = rows(journal)
    assert list(found) == ["bf16", FLOOR, "int8", "fp8"]
    assert edits.model is networks()[0]
    exact = found["bf16"]["free_run"]
    assert (exact["psnr"], exact["ssim"], exact["flicker"]) == (100.0, 1.0, 0.0) and found["bf16"]["noise_power"] == 0
    assert 0 < found["int8"]["noise_power"] < found["fp8"]["noise_power"]
    assert found["fp8"]["free_run"]["psnr"] < 100 and found["fp8"]["unit_bytes"] < 0.51 * found["bf16"]["unit_bytes"]
    assert found["bf16"]["pass"]["ratio"] == 1 and "fp8" in found["fp8"]["pass"]["emulated"]
    assert "pass" not in found[FLOOR]
    assert found["bf16"]["pass"]["num_bytes"] > found["int8"]["pass"]["num_bytes"]
    # Everything is in the journal: nothing runs again.
    steps.clear()
    assert rows(Journal.open(tmp_path / "rows.json", {"a": 1})) == found and steps == []


def test_a_pass_runs_on_weights_that_stay_as_they_are(parts):
    reference, _, _ = parts
    model = networks()[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    times = pass_times(model, {"bf16": Plan("bf16", {}), "int8": preset("int8", CONFIG)}, reference, seconds=0)
    assert set(times) == {"bf16", "int8"} and all(time.milliseconds > 0 for time in times.values())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_ssim_is_that_of_others():
    metrics = pytest.importorskip("skimage.metrics")
    draw = torch.Generator().manual_seed(0)
    one = torch.randint(0, 256, (1, 24, 31, 3), generator=draw, dtype=torch.uint8)
    other = (one.float() + 40 * torch.randn(one.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    luma = [
        (frames[0].double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).numpy()
        for frames in (one, other)
    ]
    wanted = metrics.structural_similarity(*luma, win_size=7, data_range=255, use_sample_covariance=False)
    assert ssim(one, other) == pytest.approx(wanted, abs=1e-9)
    assert ssim(one, one) == 1


def test_flicker_is_what_changes_from_frame_to_frame():
    base = torch.full((4, 2, 2, 3), 100, dtype=torch.uint8)
    assert flicker(base + 9, base) == 0
    blinking = base.clone()
    blinking[1::2] += 6
    assert flicker(blinking, base) == pytest.approx(6)
    assert math.isclose(flicker(base, blinking), 6)


def test_charts_say_what_is_projected():
    table = projected(CONFIG, 100, ["fp8"], "h100")
    plans = {"fp8": {f"blocks.{block}.ffn.in": "fp8" for block in range(4)}}
    points = [Point("fp8", plans["fp8"], 1.0, 1e-3, 1, 2e-3), Point("bf16", {}, 2.0, 0.0, 2, 0.0)]
    figure = chart.front_figure(table, points[:1], points, floor=1e-4)
    axes = figure.axes[0]
    assert "pass of 100 tokens in matrices, projected from the data sheet of H100 SXM" in axes.get_xlabel()
    assert {text.get_text() for text in axes.texts} == {"fp8", "bf16"}
    assert axes.lines[0].get_ydata()[0] == pytest.approx(26.99, abs=0.01)
    blocks = chart.map_figure(CONFIG, plans)
    cells = blocks.axes[0].collections[0].get_array()
    names = list(chart.COLORS)
    assert cells.shape == (11, 4)
    assert [names[int(value)] for value in cells[8]] == ["fp8"] * 4 and int(cells[0, 0]) == names.index("bf16")


def test_charts_are_files(tmp_path):
    target = tmp_path / "map.png"
    chart.save(chart.map_figure(CONFIG, {"bf16": {}}), target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_passes_are_timed_on_their_own_device(parts, monkeypatch):
    asked = []
    monkeypatch.setattr(pass_time, "timed", lambda runs, device, seconds: asked.append((list(runs), device)) or TIMES)
    pass_times(networks()[0], {"bf16": Plan("bf16", {})}, parts[0])
    assert asked == [(["bf16"], torch.device("cpu"))]
