"""The training loop: what it computes, and that a run stopped in any way goes on as if it had not been."""

import copy
import errno
import itertools
import json
import math
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.run_folder import CHECKPOINT_FILE, LOSSES_FILE, PREVIOUS_FILE, UNFINISHED_FILE
from sana_streaming.sana_core.training.trainer import DivergedError, Trainer, TrainerOptions, seeded
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

IDENTITY = {"seed": 3, "sizes": (3, 5), "data": {"clips": "shapes", "crop": 16}}
SEED = 3


class Toy:
    """A small network, one parameter that no loss reaches, and a trainer for both."""

    def __init__(self, folder, *, identity=IDENTITY, log=lambda line: None, **options):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        parameters = dict(self.network.named_parameters()) | {"idle": nn.Parameter(torch.ones(2))}
        defaults = {"steps": 12, "learning_rate": 0.05, "save_every": 5, "log_every": 4, "seed": SEED}
        self.trainer = Trainer(folder, parameters, TrainerOptions(**defaults | options), identity=identity, log=log)

    def losses(self, step):
        x = torch.randn(4, 3, generator=seeded(SEED, step, "data"))
        flow = (self.network(x) - x.sum(1, keepdim=True).sin()).square().mean()
        shrink = 0.01 * self.network[0].weight.square().sum()
        return {"loss": flow + shrink, "flow": flow, "shrink": shrink}

    def run(self, before=lambda step: None, **arguments):
        def losses(step):
            before(step)
            return self.losses(step)

        self.trainer.run(losses, **arguments)
        return self

    def weights(self):
        return {name: value.detach().clone() for name, value in self.trainer.parameters.items()}

    def averages(self):
        with self.trainer.averaged():
            return self.weights()


class Crash(Exception):
    pass


def at(step, action):
    """Calls ``action`` before the losses of a step."""
    return lambda number: action() if number == step else None


def crash():
    raise Crash


def interrupt():
    signal.raise_signal(signal.SIGINT)


def log_of(folder):
    lines = [json.loads(line) for line in (folder / LOSSES_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def saved_step(folder, name=CHECKPOINT_FILE):
    with safetensors.safe_open(folder / name, "pt") as file:
        return int(file.metadata()["step"])


def check_same_run(one, other, one_folder, other_folder):
    for values, expected in ((one.weights(), other.weights()), (one.averages(), other.averages())):
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert log_of(one_folder) == log_of(other_folder)


@contextmanager
def refused(kind, *words):
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


MANNER = {"schedule": "cosine", "warmup_steps": 3, "ema_decay": 0.8, "weight_decay": 0.1, "clip_norm": 0.2}


def test_steps_are_those_of_adamw(tmp_path):
    toy = Toy(tmp_path / "run", **MANNER)
    twin = copy.deepcopy(toy.network)
    toy.run()
    plain = Toy(tmp_path / "other")
    plain.network = twin
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.1)
    averages = [value.detach().clone() for value in twin.parameters()]
    for step in range(12):
        rate = 0.05 * (step + 1) / 3 if step < 3 else 0.05 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2
        optimizer.zero_grad()
        losses = plain.losses(step)
        losses["loss"].backward()
        norm = math.sqrt(sum(value.grad.square().sum().item() for value in twin.parameters()))
        for value in twin.parameters():
            value.grad *= min(1, 0.2 / norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        averages = [0.8 * old + 0.2 * new.detach() for old, new in zip(averages, twin.parameters(), strict=True)]
        line = log_of(tmp_path / "run")[step]
        assert line["step"] == step and line["losses"].keys() == losses.keys()
        wanted = (losses["flow"].item(), norm, rate)
        assert (line["losses"]["flow"], line["grad_norm"], line["learning_rate"]) == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(list(toy.network.parameters()), list(twin.parameters()))
    with toy.trainer.averaged():
        torch.testing.assert_close([value.data for value in toy.network.parameters()], averages)
    assert torch.equal(toy.weights()["idle"], torch.ones(2))


def test_learning_rates():
    constant = TrainerOptions(steps=10, learning_rate=2.0, warmup_steps=4)
    assert [constant.learning_rate_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    cosine = TrainerOptions(steps=10, learning_rate=2.0, schedule="cosine")
    rates = [cosine.learning_rate_at(step) for step in range(11)]
    assert rates[0] == 2.0 and rates[5] == pytest.approx(1.0) and rates[10] == 0.0
    assert all(late < early for early, late in itertools.pairwise(rates))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("learning_rate", 0.0), ("learning_rate", math.nan), ("warmup_steps", -1), ("schedule", "linear"),
     ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -0.1), ("clip_norm", 0.0), ("ema_decay", 1.0),
     ("save_every", 0), ("save_minutes", 0.0), ("log_every", 0)],
)  # fmt: skip
def test_options_out_of_range(name, value):
    with refused(InputError, f"{name} is {value!r}", "must be"):
        TrainerOptions(**{"steps": 5, name: value})


def test_averages_are_swapped_in_and_out(tmp_path):
    toy = Toy(tmp_path, ema_decay=0.9).run()
    own = toy.weights()
    with pytest.raises(KeyError), toy.trainer.averaged():
        assert not torch.equal(toy.weights()["0.weight"], own["0.weight"])
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in toy.weights().items())


def test_without_averages_the_weights_stand_for_them(tmp_path):
    toy = Toy(tmp_path).run()
    assert all(torch.equal(value, toy.weights()[name]) for name, value in toy.averages().items())


def test_generators_of_steps():
    # The same numbers on every machine, version and run of Python.
    assert seeded(3, 5, "noise").initial_seed() == 4839329958107128455
    draws = {seeded(*key).initial_seed() for key in [(3, 5), (3, 6), (4, 5), (35, 0), (3, 5, "noise"), (3, 50)]}
    assert len(draws) == 6


@pytest.mark.parametrize("stop", [5, 8, 10])
def test_a_crashed_run_goes_on_as_if_it_had_not(tmp_path, stop):
    whole = Toy(tmp_path / "whole", **MANNER).run()
    with pytest.raises(Crash):
        Toy(tmp_path / "parts", **MANNER).run(at(stop, crash))
    again = Toy(tmp_path / "parts", **MANNER)
    assert again.trainer.step == stop // 5 * 5
    check_same_run(again.run(), whole, tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("lines", [1, 30])
def test_a_killed_process_goes_on_as_if_it_had_not(tmp_path, lines):
    with subprocess.Popen([sys.executable, __file__, tmp_path / "parts"], stdout=subprocess.PIPE, text=True) as child:
        for _ in range(lines):
            child.stdout.readline()
        child.kill()
    assert child.returncode == -signal.SIGKILL
    # It saves after every step, so wherever the kill came there is a checkpoint, and as many log lines or one more.
    again = Toy(tmp_path / "parts", steps=10**6, ema_decay=0.8)
    step = again.trainer.step
    assert step >= lines // 2
    assert len((tmp_path / "parts" / LOSSES_FILE).read_bytes().splitlines()) - step in (0, 1)
    again = Toy(tmp_path / "parts", steps=step + 4, ema_decay=0.8).run()
    whole = Toy(tmp_path / "whole", steps=step + 4, ema_decay=0.8, save_every=10**6).run()
    check_same_run(again, whole, tmp_path / "parts", tmp_path / "whole")


def test_ctrl_c_in_a_step_saves_the_steps_before(tmp_path):
    whole = Toy(tmp_path / "whole", **MANNER).run()
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path / "parts", **MANNER).run(at(7, interrupt))
    assert saved_step(tmp_path / "parts") == 7
    check_same_run(Toy(tmp_path / "parts", **MANNER).run(), whole, tmp_path / "parts", tmp_path / "whole")


def test_ctrl_c_in_an_update_waits_for_its_end(tmp_path):
    whole = Toy(tmp_path / "whole", **MANNER).run()
    toy = Toy(tmp_path / "parts", **MANNER)
    count = itertools.count()
    hook = register_optimizer_step_post_hook(lambda *_: at(7, interrupt)(next(count)))
    try:
        with pytest.raises(KeyboardInterrupt):
            toy.run()
    finally:
        hook.remove()
    assert saved_step(tmp_path / "parts") == 8 == len(log_of(tmp_path / "parts"))
    check_same_run(Toy(tmp_path / "parts", **MANNER).run(), whole, tmp_path / "parts", tmp_path / "whole")


def test_ctrl_c_inside_averaged_saves_the_weights_themselves(tmp_path):
    toy = Toy(tmp_path, ema_decay=0.9)

    def stop():
        with toy.trainer.averaged():
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        toy.run(at(7, stop))
    again = Toy(tmp_path, ema_decay=0.9)
    assert all(torch.equal(value, toy.weights()[name]) for name, value in again.weights().items())


def test_ctrl_c_before_the_first_step_leaves_no_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path).run(at(0, interrupt))
    assert files(tmp_path) == {}


def test_more_steps_than_before(tmp_path):
    Toy(tmp_path / "parts", steps=7).run()
    whole = Toy(tmp_path / "whole", steps=12).run()
    check_same_run(Toy(tmp_path / "parts", steps=12).run(), whole, tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_has_nothing_to_do_but_its_result(tmp_path):
    first, calls = Toy(tmp_path).run(), []
    before = files(tmp_path)
    again = Toy(tmp_path, steps=9).run(crash, on_save=lambda: calls.append(1))
    assert again.trainer.step == 12 and calls == [1] and files(tmp_path) == before
    check_same_run(again, first, tmp_path, tmp_path)


def test_averages_may_be_wanted_later_or_no_more(tmp_path):
    own = Toy(tmp_path, steps=6).run().weights()
    later = Toy(tmp_path, steps=7, ema_decay=0.5)
    assert torch.equal(later.averages()["0.weight"], own["0.weight"])
    later.run()
    assert torch.equal(Toy(tmp_path, steps=7).averages()["0.weight"], later.weights()["0.weight"])


def test_saves_and_their_callback(tmp_path):
    seen = []
    Toy(tmp_path).run(on_save=lambda: seen.append(saved_step(tmp_path)))
    assert seen == [5, 10, 12] and saved_step(tmp_path, PREVIOUS_FILE) == 10
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT_FILE, PREVIOUS_FILE, LOSSES_FILE}


def test_saves_by_the_clock(tmp_path, monkeypatch):
    seconds = itertools.count(step=20.0)
    monkeypatch.setattr("sana_streaming.sana_core.training.trainer.time.monotonic", lambda: next(seconds))
    seen = []
    Toy(tmp_path, steps=8, save_every=100, save_minutes=1.0).run(on_save=lambda: seen.append(saved_step(tmp_path)))
    assert seen == [3, 6, 8]


def test_progress_lines(tmp_path):
    lines = []
    Toy(tmp_path, log=lines.append, steps=6, save_every=100).run()
    log = log_of(tmp_path)
    steps = [line.split("  ") for line in lines if line.startswith("step ")]
    assert [parts[0] for parts in steps] == ["step 4/6", "step 6/6"]
    for parts, records in zip(steps, (log[:4], log[4:]), strict=True):
        for part, name in zip(parts[1:4], ("loss", "flow", "shrink"), strict=True):
            mean = sum(record["losses"][name] for record in records) / len(records)
            assert part == f"{name} {mean:.4g}"
        norm = sum(record["grad_norm"] for record in records) / len(records)
        assert parts[4:6] == ["lr 5.00e-02", f"grad {norm:.3g}"]
        assert parts[6].endswith(" s/step") and parts[7].startswith("ETA ")
    assert steps[-1][-1] == "ETA 0:00:00"


@pytest.mark.parametrize("term", ["loss", "flow"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(tmp_path, term, value):
    toy = Toy(tmp_path)
    with refused(DivergedError, f"{term} is {value} at step 7", "learning_rate"):
        toy.trainer.run(lambda step: toy.losses(step) | ({term: toy.losses(step)[term] * value} if step == 7 else {}))
    check_stopped_at_seven(toy, tmp_path)


def test_a_gradient_that_is_not_finite(tmp_path):
    toy = Toy(tmp_path)

    def losses(step):
        terms = toy.losses(step)
        weight = toy.network[0].weight
        # The root of 0 is 0, its slope infinite.
        return terms | {"loss": terms["loss"] + (weight - weight.detach()).square().sum().sqrt()}

    with refused(DivergedError, "gradient is nan at step 7"):
        toy.trainer.run(lambda step: losses(step) if step == 7 else toy.losses(step))
    check_stopped_at_seven(toy, tmp_path)


def check_stopped_at_seven(toy, folder):
    assert saved_step(folder) == 5 and len(log_of(folder)) == 7
    assert all(value.isfinite().all() for value in toy.weights().values())
    assert Toy(folder).run().trainer.step == 12


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    toy = Toy(tmp_path)

    def spoil():
        toy.trainer.parameters["idle"].data[1] = math.inf

    with refused(DivergedError, "weights.idle", "after step 9"):
        toy.run(at(9, spoil))
    assert saved_step(tmp_path) == 5 and set(files(tmp_path)) == {CHECKPOINT_FILE}


class FullDisk:
    """Takes the first half of what is written to a file of this name, after the first ``spared`` openings."""

    def __init__(self, monkeypatch, name, spared=0):
        real = Path.open

        def opened(path, mode="r", *args, **kwargs):
            file = real(path, mode, *args, **kwargs)
            if path.name == name and mode != "rb":
                self.spared -= 1
                if self.spared < 0:
                    return HalfFile(file)
            return file

        self.spared = spared
        monkeypatch.setattr(Path, "open", opened)


class HalfFile:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_saving(tmp_path, monkeypatch):
    whole = Toy(tmp_path / "whole").run()
    folder = tmp_path / "parts"
    with pytest.raises(Crash):
        Toy(folder).run(at(11, crash))
    before = files(folder)
    with monkeypatch.context() as patch:
        FullDisk(patch, UNFINISHED_FILE)
        with refused(OSError, CHECKPOINT_FILE, "No space left on device", "intact"):
            Toy(folder).run()
    assert files(folder) == before
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT_FILE, PREVIOUS_FILE, LOSSES_FILE}
    check_same_run(Toy(folder).run(), whole, folder, tmp_path / "whole")


def test_a_full_disk_while_writing_losses(tmp_path, monkeypatch):
    whole = Toy(tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        FullDisk(patch, LOSSES_FILE, spared=7)
        with refused(OSError, LOSSES_FILE, "No space left on device"):
            Toy(tmp_path / "parts").run()
    check_same_run(Toy(tmp_path / "parts").run(), whole, tmp_path / "parts", tmp_path / "whole")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_previous_one(tmp_path, damage):
    whole, folder = Toy(tmp_path / "whole").run(), tmp_path / "parts"
    Toy(folder).run()
    damage(folder / CHECKPOINT_FILE)
    # What a kill leaves of a checkpoint is not taken for one.
    (folder / UNFINISHED_FILE).write_bytes((folder / PREVIOUS_FILE).read_bytes())
    previous, lines = (folder / PREVIOUS_FILE).read_bytes(), []
    again = Toy(folder, log=lines.append, save_every=11)
    assert again.trainer.step == 10
    assert "\n" not in lines[0] and all(word in lines[0] for word in ("warning", CHECKPOINT_FILE, PREVIOUS_FILE))
    with pytest.raises(Crash):
        again.run(at(11, crash))
    # The damaged file did not become the previous one.
    assert saved_step(folder) == 11 and (folder / PREVIOUS_FILE).read_bytes() == previous
    check_same_run(Toy(folder).run(), whole, folder, tmp_path / "whole")


def test_no_checkpoint_is_whole(tmp_path):
    Toy(tmp_path).run()
    for name in (CHECKPOINT_FILE, PREVIOUS_FILE):
        cut(tmp_path / name)
    with refused(InputError, CHECKPOINT_FILE, PREVIOUS_FILE, "delete"):
        Toy(tmp_path)


def test_a_run_of_other_settings(tmp_path):
    Toy(tmp_path).run()
    before = files(tmp_path)
    other = {"seed": 4, "sizes": [3, 5], "data": {"clips": "shapes", "crop": None}, "extra": True}
    with refused(
        InputError, "seed is 3 there, 4 here", "data.crop is 16 there, null here", "extra is missing there", "delete"
    ):
        Toy(tmp_path, identity=other)
    assert files(tmp_path) == before and len(log_of(tmp_path)) == 12
    Toy(tmp_path, identity=json.loads(json.dumps(IDENTITY)))


def test_parameters_of_another_network(tmp_path):
    Toy(tmp_path).run()
    parameters = {"0.weight": nn.Parameter(torch.zeros(2, 2))}
    with refused(InputError, "0.weight (5, 3), expected (2, 2)", "surplus"):
        Trainer(tmp_path, parameters, TrainerOptions(steps=5), identity=IDENTITY)


def test_only_float32(tmp_path):
    parameters = {"half": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}
    with refused(InputError, "half is torch.bfloat16", "float32"):
        Trainer(tmp_path, parameters, TrainerOptions(steps=5), identity={})


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with refused(InputError, "file", "folder"):
        Toy(tmp_path / "file")


if __name__ == "__main__":
    torch.set_num_threads(1)
    Toy(
        Path(sys.argv[1]),
        log=lambda line: print(line, flush=True),
        steps=10**6,
        save_every=1,
        log_every=1,
        ema_decay=0.8,
    ).run()
