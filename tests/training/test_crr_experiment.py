"""The CRR experiment: its world is exact, its metrics and its rule are what they say, its settings differ in one thing."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training import reverse
from sana_streaming.sana_core.training.crr_experiment import __main__ as command
from sana_streaming.sana_core.training.crr_experiment import experiment, latent_world, metrics, runner
from sana_streaming.sana_core.training.crr_experiment.decision import decide
from sana_streaming.sana_core.training.crr_experiment.experiment import SETTINGS, SMOKE, ExperimentConfig
from sana_streaming.sana_core.training.crr_experiment.report import markdown

BORDERS = [0, 5, 8, 11]
CLIPS = latent_world.make_clips("test", 7, 9, 11)


def test_world_is_a_function_of_its_seed():
    same, other = (latent_world.make_clips("test", seed, 9, 11) for seed in (7, 8))
    assert torch.equal(CLIPS.source, same.source)
    assert not torch.equal(CLIPS.source, other.source)
    assert not torch.equal(CLIPS.source, latent_world.make_clips("train", 7, 9, 11).source)


def test_appearances_of_training_and_test_differ():
    train, test = (
        torch.cat([bank.flatten(1) for bank in latent_world._bank(split)], 1)[:16] for split in ("train", "test")
    )
    assert torch.cdist(train, test).min() > 1


def test_everything_moves_by_the_known_motion():
    """Visible pixels are found again bit for bit, in the source and in the edit, and most pixels are visible."""
    for video in (CLIPS.source, CLIPS.target):
        assert metrics.warping_errors(video, CLIPS).max() == 0
    assert 0.6 < CLIPS.visible.float().mean() < 0.95
    still = torch.arange(64).expand_as(CLIPS.landing)
    assert (CLIPS.landing != still).all()
    hidden = replace(CLIPS, visible=torch.ones_like(CLIPS.visible))
    assert metrics.warping_errors(CLIPS.source, hidden).min() > 0


def test_edits_stay_in_their_place_and_can_be_undone():
    unlike = (CLIPS.source != CLIPS.target).any(1, keepdim=True)
    assert not (unlike & ~CLIPS.touched).any()
    assert [CLIPS.edits.tolist().count(kind) for kind in range(3)] == [3, 3, 3]
    kinds = [CLIPS.edits == kind for kind in range(3)]
    style, fog = (CLIPS.target[kinds[kind]] for kind in (0, 2))
    offset = latent_world._STYLE_OFFSET.view(1, -1, 1, 1, 1)
    undone = (style - offset)[:, [3, 0, 1, 2]]
    torch.testing.assert_close(undone, CLIPS.source[kinds[0]])
    undone = (fog - 0.8) / 0.3
    behind = CLIPS.touched[kinds[2]].expand_as(undone)
    torch.testing.assert_close(undone[behind], CLIPS.source[kinds[2]][behind])
    # The recoloured blob keeps its texture: what is added lies on one line in colour space.
    added = (CLIPS.target - CLIPS.source)[kinds[1]].movedim(1, -1).reshape(-1, 4)
    assert torch.linalg.matrix_rank(added.double(), rtol=1e-5) == 1


def test_metrics_of_exact_and_of_bad_outputs():
    perfect = metrics.edit_metrics(CLIPS.target, CLIPS, BORDERS)
    assert {name for name, value in perfect.items() if value == 0} == {
        *("warping_error", "preservation_error", "edit_error"),
        *(f"edit_error_{kind}" for kind in latent_world.EDITS),
    }
    assert perfect["drift"] == perfect["colour_drift"] == perfect["boundary_jump"] == 1
    copied = metrics.edit_metrics(CLIPS.source, CLIPS, BORDERS)
    assert copied["edit_error"] == pytest.approx(1)
    assert copied["preservation_error"] == copied["warping_error"] == 0
    frozen = CLIPS.target[:, :, :1].expand_as(CLIPS.target)
    assert metrics.edit_metrics(frozen, CLIPS, BORDERS)["warping_error"] > 0.2
    half = metrics.edit_metrics((CLIPS.source + CLIPS.target) / 2, CLIPS, BORDERS)
    assert half["edit_error"] == pytest.approx(0.25)


def test_known_jumps_and_drifts():
    """Offsets per frame give errors that can be counted."""

    def shifted(levels):
        return CLIPS.target + torch.tensor(levels).view(1, 1, -1, 1, 1)

    # Each border is a step of 2, each other frame a step of 1.
    steps = [0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12]
    errors = metrics.warping_errors(shifted([float(level) for level in steps]), CLIPS)
    assert metrics.boundary_jump(errors, BORDERS) == pytest.approx(4, rel=1e-4)
    growing = metrics.warping_errors(shifted([0.1 * frame**2 for frame in range(11)]), CLIPS)
    # Steps of 0.1, 0.3, 0.5 against 1.5, 1.7, 1.9.
    assert metrics.drift(growing) == pytest.approx((1.5**2 + 1.7**2 + 1.9**2) / (0.1**2 + 0.3**2 + 0.5**2), rel=1e-4)
    colours = metrics.colour_errors(shifted([float(frame) for frame in range(11)]), CLIPS.target)
    torch.testing.assert_close(colours[0], torch.arange(11.0).square() / 2, atol=1e-4, rtol=1e-4)


def seeds(warping, drift=1.2, edit=0.1):
    """Five made-up runs; ``warping`` etc. are given per seed or once."""
    columns = [value if isinstance(value, list) else [value] * 5 for value in (warping, drift, edit)]
    names = ("warping_error", "drift", "edit_error")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


A = [0.50, 0.52, 0.48, 0.51, 0.49]
WOBBLE = [0.001, -0.001, 0.002, -0.002, 0.001]


def less(by):
    return [value - by + wobble for value, wobble in zip(A, WOBBLE, strict=True)]


@pytest.mark.parametrize(
    ("verdict", "a", "b", "c"),
    [
        ("helps", seeds(A), seeds(less(0.1)), seeds(less(0.05))),
        ("helps", seeds(A, 1.5), seeds(A, 0.9), seeds(A, 1.4)),
        # Seeds differ much more than settings do; they are paired.
        ("helps", seeds(A), seeds(less(0.005)), seeds(A)),
        ("null", seeds(A), seeds(A), seeds(A)),
        ("null", seeds(A), seeds(less(0.001)), seeds(A)),
        # Better than A, but so is training longer.
        ("null", seeds(A), seeds(less(0.1)), seeds(less(0.1))),
        ("does not help", seeds(A), seeds(less(0.1)), seeds(less(0.2))),
        ("does not help", seeds(A), seeds(less(-0.1)), seeds(A)),
        # Steadier because it edits less.
        ("does not help", seeds(A), seeds(less(0.1), edit=[0.2, 0.21, 0.2, 0.2, 0.2]), seeds(A)),
        # A drift as far below 1 as the others are above it is no gain.
        ("null", seeds(A, 1.25), seeds(A, 0.75), seeds(A, 1.25)),
    ],
)
def test_decision(verdict, a, b, c):
    assert decide({"A": a, "B": b, "C": c, "D": seeds(0.0)}).verdict == verdict


def test_guard_of_one_standard_error():
    """The edit error may be worse by one standard error of the paired differences, not by more."""
    worse = [0.0, 0.0, 0.0, 0.0, 1.0]
    mean, error = 0.2, 1 / math.sqrt(5) / math.sqrt(5)
    for extra, verdict in ((error - mean - 1e-6, "helps"), (error - mean + 1e-6, "does not help")):
        edit = [0.1 + value + extra for value in worse]
        results = {"A": seeds(A), "B": seeds(less(0.1), edit=edit), "C": seeds(A)}
        assert decide(results).verdict == verdict


def test_decision_needs_seeds():
    with pytest.raises(InputError, match="'B': 1"):
        decide({"A": seeds(A)[:1], "B": seeds(A)[:1], "C": seeds(A)[:1]})
    with pytest.raises(InputError, match="equally many"):
        decide({"A": seeds(A), "B": seeds(A)[:4], "C": seeds(A)})


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke form through the command; its file, and the reverse streams that ran."""
    path = tmp_path_factory.mktemp("crr") / "deep" / "crr.json"
    windows = []
    with pytest.MonkeyPatch.context() as patch:
        original = reverse.ReverseStream.run_window

        def spy(self, source, edited, prompt, window, step_index, generator):
            result = original(self, source, edited, prompt, window, step_index, generator)
            windows.append(
                (id(self), self.state.num_frames, torch.equal(source, edited), result.velocity.requires_grad)
            )
            return result

        patch.setattr(reverse.ReverseStream, "run_window", spy)
        assert command.main(["--smoke", "--json", str(path)]) == 0
    return path, windows


def test_smoke_runs_every_setting(smoke, capsys):
    path, windows = smoke
    report = json.loads(path.read_text())
    assert report["config"] == asdict(SMOKE)
    assert [(run["setting"], run["seed"]) for run in report["runs"]] == [(s, seed) for seed in (0, 1) for s in SETTINGS]
    for run in report["runs"]:
        assert all(math.isfinite(value) for value in (*run["metrics"].values(), run["last_loss"]))
        # C does as much work as B, counted in passes.
        assert run["steps"] * run["work_per_step"] == (SMOKE.steps * 12 if run["setting"] == "A" else SMOKE.steps * 24)
    for seed in (0, 1):
        assert len({run["initial_weights"] for run in report["runs"] if run["seed"] == seed}) == 1
    assert report["runs"][0]["initial_weights"] != report["runs"][-1]["initial_weights"]
    assert report["decision"]["seeds"] == 2
    # B alone runs it: once per step, a new one each time, to the end of the clip, on its own edit, with gradient;
    # and once when its cost is counted.
    assert len(windows) == 2 * SMOKE.steps + 1
    assert all(frames == SMOKE.train_frames and not same and grad for _, frames, same, grad in windows)
    table = markdown(report["runs"])
    assert f"Decision: **{report['decision']['verdict']}**" in table
    assert "| work per step, over A's | 1.00 | 2.00 | 1.00 | 2.00 |" in table


def test_finished_runs_are_not_run_again(smoke, monkeypatch):
    path, _ = smoke
    whole = json.loads(path.read_text())
    cut = path.with_name("cut.json")
    cut.write_text(json.dumps({**whole, "runs": whole["runs"][:-1]}))
    made = []

    def fake(config, setting, seed, log):
        made.append((setting, seed))
        return experiment.Run(**whole["runs"][-1])

    monkeypatch.setattr(runner, "run_one", fake)
    assert runner.run_all(SMOKE, range(2), cut)["runs"] == whole["runs"]
    assert made == [("D", 1)]
    assert json.loads(cut.read_text())["decision"] == whole["decision"]
    assert [file.name for file in cut.parent.iterdir() if "part" in file.name] == []


def test_files_of_other_configs_are_refused(smoke, tmp_path, capsys):
    with pytest.raises(InputError, match=r"was made with the config .* give another file"):
        runner.run_all(ExperimentConfig(), range(2), smoke[0])
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    assert command.main(["--smoke", "--json", str(damaged)]) == 2
    assert command.main(["--seeds", "1", "--json", str(tmp_path / "new.json")]) == 2
    assert "--seeds 1 is too few" in capsys.readouterr().err


def losses(setting):
    """The loss of one step, and its gradient."""
    model = experiment.new_model(SMOKE, 3)
    loss = experiment.step_loss(model, setting, experiment.train_clips(SMOKE, 3, 0), SMOKE, 3, 0)
    loss.backward()
    return loss.item(), model


def test_settings_differ_in_the_second_term_alone():
    """A and C are one loss; B and D add to it; with weight 0 nothing is added."""
    values = {setting: losses(setting)[0] for setting in SETTINGS}
    assert values["A"] == values["C"]
    assert min(values["B"], values["D"]) > values["A"]
    assert values["B"] != values["D"]
    model = experiment.new_model(SMOKE, 3)
    off = replace(SMOKE, weight=0.0)
    clips = experiment.train_clips(SMOKE, 3, 0)
    assert experiment.step_loss(model, "B", clips, off, 3, 0).item() == values["A"]


def test_crr_gets_the_networks_own_edit_and_the_reverse_instruction(monkeypatch):
    model = experiment.new_model(SMOKE, 3)
    clips = experiment.train_clips(SMOKE, 3, 0)
    forward, given = [], []
    denoise = experiment._denoise
    monkeypatch.setattr(experiment, "_denoise", lambda *inputs: forward.append(denoise(*inputs)) or forward[-1])
    monkeypatch.setattr(experiment, "weighted_crr", lambda *inputs: given.append(inputs) or torch.zeros(()))
    experiment.step_loss(model, "B", clips, SMOKE, 3, 0)
    ((_, weight, source, edited, prompt, *_),) = given
    assert weight == 0.5
    assert torch.equal(source, clips.source)
    assert edited is forward[0].x0
    assert not edited.requires_grad
    instruction, reverse_instruction = experiment.prompt_contexts(model, clips)
    assert torch.equal(prompt.keys_values[0][0], reverse_instruction.keys_values[0][0])
    assert not torch.equal(prompt.keys_values[0][0], instruction.keys_values[0][0])


def test_sizes_are_those_of_the_proposal():
    config = ExperimentConfig()
    model = experiment.new_model(config, 0)
    assert 3e5 < sum(parameter.numel() for parameter in model.parameters()) < 1e6
    assert model.config.softmax_layers == (3,)
    assert model.layout == "split"
    assert config.batch_size % len(latent_world.EDITS) == config.test_clips % len(latent_world.EDITS) == 0
    assert experiment.learning_rate(config, config.steps, config.steps) == 0
    assert experiment.learning_rate(config, 0, 100) == config.learning_rate / config.warmup_steps
