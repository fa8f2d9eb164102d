"""The evaluation over editors whose faults are known: a perfect one, one that hears wrongly, one that does nothing."""

import json
import math
from dataclasses import replace

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.evaluation import held_out
from sana_streaming.sana_core.evaluation.long_run import LOOP_EDIT, check_loop_frames, measure_long_run
from sana_streaming.sana_core.evaluation.report import AVERAGED, Report
from sana_streaming.sana_core.evaluation.sheet import EvaluationSheet
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.training.data.edits import EDITS
from sana_streaming.sana_core.training.data.sources import held_out_samples

SIZE = (41, 32, 48)
GLOBAL = {edit.instructions({})[0]: edit for edit in EDITS.values() if not edit.masked}
SCENES = 4


class Oracle:
    """Gives the true edit of a whole picture, chunk by chunk, after ``fault(number of the frame, frame)``."""

    def __init__(self, fault=lambda number, frame: frame, hears=lambda instruction: instruction):
        self.fault, self.hears = fault, hears

    def plan(self, total_frames):
        return ChunkPlan(total_frames)

    def edit(self, blocks, instruction, total_frames):
        edit, plan = GLOBAL[self.hears(instruction)], self.plan(total_frames)
        waiting, done, chunk = torch.zeros(0, dtype=torch.uint8), 0, 0
        for block in blocks:
            waiting = torch.cat([waiting, block]) if len(waiting) else block
            while len(waiting) >= plan.pixel_frames(chunk):
                yield self._faulty(edit, waiting[: plan.pixel_frames(chunk)], done)
                done, waiting = done + plan.pixel_frames(chunk), waiting[plan.pixel_frames(chunk) :]
                chunk += 1
        if len(waiting):
            yield self._faulty(edit, waiting, done)

    def _faulty(self, edit, frames, first):
        edited = edit.apply(frames, None, {})
        return torch.stack([self.fault(first + i, frame) for i, frame in enumerate(edited)])

    def round_trip(self, frames):
        for part in frames.split(17):
            yield torch.where(part > 127, part - 4, part + 4)


def dimmed(number, frame):
    """One level away, and never over the edge."""
    return torch.where(frame > 127, frame - 1, frame + 1)


@pytest.fixture(scope="module")
def scene():
    """The samples of the last clip, a scene, masked ones too."""
    return [sample for sample in held_out_samples(*SIZE) if sample.clip.name == "scene 10"]


def measured(editor, samples):
    whole = [sample for sample in samples if sample.mask is None]
    return [scores for _, _, scores in held_out.measure_clip(editor, whole)]


def test_a_perfect_editor(scene):
    for scores in measured(Oracle(), scene):
        assert scores.psnr == 100 and scores.nearest == scores.edit
        assert scores.boundary_jump == pytest.approx(1)
        assert scores.warping_error == scores.truth_warping_error > 0
        assert (scores.source_psnr == 100) == (scores.edit == "keep")
        assert scores.psnr_inside is scores.psnr_outside is None


def test_one_level_off(scene):
    for scores in measured(Oracle(dimmed), scene):
        assert scores.psnr == pytest.approx(20 * math.log10(255))
        assert scores.nearest == scores.edit


def test_an_editor_that_hears_sunset_as_night_is_confused(scene):
    night, sunset = EDITS["night"].wordings[0], EDITS["sunset"].wordings[0]
    editor = Oracle(hears=lambda instruction: night if instruction == sunset else instruction)
    report = Report({}, samples=measured(editor, scene))
    for asked, row in report.confusion().items():
        assert {name for name, count in row.items() if count} == {"night" if asked == "sunset" else asked}
        assert list(row) == list(held_out.GLOBAL_EDITS) and sum(row.values()) == 1
    assert report.by_edit()["sunset"]["nearest_own"] == 0 and report.overall()["nearest_own"] == 6
    assert "sunset for night (1)" in report.table()


def test_flicker_and_jumps_show(scene):
    flicker = Oracle(lambda number, frame: frame // 2 + 20 * (number % 2))
    assert all(scores.warping_error > 15 for scores in measured(flicker, scene))
    start = held_out.chunk_starts(ChunkPlan(SIZE[0]), SIZE[0])
    assert start == [17]
    jump = Oracle(lambda number, frame: frame // 2 + 60 * (number >= start[0]))
    assert all(scores.boundary_jump > 5 for scores in measured(jump, scene))
    inside = Oracle(lambda number, frame: frame // 2 + 60 * (number >= start[0] + 4))
    assert all(scores.boundary_jump < 0.5 for scores in measured(inside, scene))


def test_masked_edits_are_scored_inside_and_outside(scene):
    scorer = held_out.ClipScorer(scene, [17])
    masked = [sample for sample in scene if sample.mask is not None]
    assert {sample.edit for sample in masked} == {"object_color", "plain_background"}
    for sample in masked:
        idle = scorer.score(sample, sample.source)
        assert idle.psnr == idle.source_psnr < 100 and idle.psnr_outside == idle.source_psnr_outside == 100
        assert idle.psnr_inside == idle.source_psnr_inside < idle.psnr and idle.nearest is None
        spoiled = torch.where(sample.mask[..., None], sample.truth, sample.truth ^ 1)
        scores = scorer.score(sample, spoiled)
        assert scores.psnr_inside == 100 and scores.psnr_outside == pytest.approx(20 * math.log10(255))
        assert scores.source_psnr_inside == idle.psnr_inside


def test_real_clips_have_no_known_motion():
    _, samples = next(held_out.samples_by_clip([0], 3, 32, 48))
    assert {sample.clip.name for sample in samples} == {"bikes.mp4 from 30"}
    scores = held_out.ClipScorer(samples, []).score(samples[0], samples[0].truth)
    assert scores.warping_error is scores.truth_warping_error is scores.boundary_jump is None


def test_round_trip(scene):
    assert held_out.measure_round_trip(Oracle(), scene[0].clip) == pytest.approx(20 * math.log10(255 / 4))


def test_clips_are_spread_and_counted():
    assert held_out.chosen_clips(None) == held_out.chosen_clips(10) == list(range(10))
    assert held_out.chosen_clips(1) == [0] and held_out.chosen_clips(3) == [0, 4, 9]
    for count in range(1, 11):
        clips = held_out.chosen_clips(count)
        assert len(set(clips)) == count
        groups = list(held_out.samples_by_clip(clips, 2, 32, 48))
        assert [rank for rank, _ in groups] == list(range(count))
        assert sum(len(samples) for _, samples in groups) == held_out.expected_samples(clips)
    assert held_out.expected_samples(list(range(10))) == 78
    for count in (0, 11, -1):
        with pytest.raises(InputError, match=rf"^--clips {count} is out of range; use 1 to 10[^\n]*$"):
            held_out.chosen_clips(count)


def test_drift_of_a_perfect_and_of_a_fading_editor():
    counts = []
    perfect = measure_long_run(Oracle(), 130, 32, 48, on_frames=counts.append)
    assert counts == [33, 24, 24, 24, 24, 1]
    assert (perfect.frames, perfect.period, perfect.edit) == (130, 65, LOOP_EDIT)
    assert perfect.psnr_start == perfect.psnr_end == 100 and perfect.difference == 0
    assert perfect.boundary_jump == pytest.approx(1)
    fading = Oracle(lambda number, frame: dimmed(0, frame) if number >= 65 else frame)
    faded = measure_long_run(fading, 130, 32, 48)
    assert faded.psnr_start == 100 and faded.psnr_end == pytest.approx(20 * math.log10(255))
    assert faded.difference == pytest.approx(faded.psnr_end - 100)
    jumps = Oracle(lambda number, frame: frame // 2 + 60 * ((number + 15) // 24 % 2))
    assert measure_long_run(jumps, 130, 32, 48).boundary_jump > 5


def test_the_long_run_repeats_its_pictures():
    """So that start and end have the same sources, at whatever length."""
    seen = []
    measure_long_run(Oracle(lambda number, frame: seen.append(frame) or frame), 2 * 240 + 50, 16, 24)
    assert all(torch.equal(a, b) for a, b in zip(seen[-240:], seen[50 + 240 - 240 : 290], strict=True))
    assert sorted(f.numpy().tobytes() for f in seen[:240]) == sorted(f.numpy().tobytes() for f in seen[-240:])


def test_loop_lengths():
    check_loop_frames(0)
    check_loop_frames(64)
    with pytest.raises(InputError, match="--loop-frames 63 is too few; use 64 or more"):
        check_loop_frames(63)


def test_report_averages(scene):
    first, second = measured(Oracle(dimmed), scene)[:2]
    samples = [replace(first, psnr=20.0, boundary_jump=None), replace(first, psnr=26.0), second]
    report = Report({"seed": 3}, samples=samples, round_trip={"a": 30.0, "b": 27.0})
    row = report.by_edit()["keep"]
    assert row["psnr"] == 23 and row["samples"] == 2 and row["boundary_jump"] == first.boundary_jump
    assert row["psnr_inside"] is None and set(AVERAGED) <= set(row)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["complete"] is False and found["seed"] == 3 and found["clips"] == ["a", "b"]
    assert found["vae_round_trip"]["mean"] == 28.5 and found["long_run"] is None
    assert found["overall"]["psnr"] == pytest.approx((46 + second.psnr) / 3)
    assert not [name for name in found["overall"] if name.startswith("source")]
    assert set(found["definitions"]) > {"psnr", "confusion", "boundary_jump"}
    table = report.table()
    assert "23.00" in table and "worst 27.00 (b)" in table and "no edit for another" in table
    assert "PSNR" in Report({}).table()


def test_a_report_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    Report({"seed": 1}).write(path)
    monkeypatch.setattr(json, "dump", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Report({"seed": 2}).write(path)
    assert json.loads(path.read_text())["seed"] == 1 and list(tmp_path.iterdir()) == [path]


def test_the_sheet_shows_each_edit_on_another_clip(scene, tmp_path):
    from PIL import Image

    sheet = EvaluationSheet()
    assert not sheet.draw(tmp_path / "none.png") and not list(tmp_path.iterdir())
    scores = measured(Oracle(), scene)[0]
    for rank in range(3):
        for sample in scene[:4]:
            sheet.offer(rank, sample, torch.full_like(sample.truth, rank), scores)
    shown = {name: int(row.pictures[2][0, 0, 0]) for name, row in sheet._rows.items()}
    assert list(shown.values()) == [0, 1, 2, 2]
    assert sheet.draw(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 3 * 288 and picture.height > 4 * 192
