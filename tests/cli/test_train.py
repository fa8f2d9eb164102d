"""``train`` and ``train-vae`` from the command line: exit codes, one-line messages, stopping and going on."""

import json

import pytest
import toys
import training_runs
import video_files
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.training import edit_training, vae_training
from sana_streaming.sana_core.weights.toy_text import make_toy_text_encoder

TRAINER = {"steps": 3, "learning_rate": 1e-3, "save_every": 1, "log_every": 1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pairs, a VAE, and stand-ins for the text encoder and for drawn clips; the working directory is the folder."""
    training_runs.write_pairs(tmp_path / "pairs", frames=training_runs.FRAMES)
    training_runs.write_vae(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edit_training, "GemmaTextEncoder", training_runs.StandInEncoder)
    monkeypatch.setattr(vae_training, "open_clips", lambda data, size, device: StandInClips())
    return tmp_path


class StandInClips:
    def clip(self, seed, number):
        return training_runs.moving_clips(1)[0]


def config(folder, **changes):
    return str(training_runs.write_config(folder / "c.yaml", **{"trainer": TRAINER, **changes}))


def losses(run):
    return [json.loads(line)["losses"] for line in (run / "losses.jsonl").read_text().splitlines()]


def refused(capsys, *arguments, code=2, word="error: "):
    assert main([*arguments, "--device", "cpu"]) == code
    message = capsys.readouterr().err
    assert message.startswith(word) and message.count("\n") == 1
    return message


def test_a_run_from_start_to_end(folder, capsys):
    assert main(["train", config(folder), "--device", "cpu"]) == 0
    run = folder / "runs" / "c"
    printed = capsys.readouterr().out
    assert "wrote runs/c/model" in printed and "step 3/3" in printed
    assert (run / "model" / "model.safetensors").is_file() and (run / "checkpoint.safetensors").is_file()
    assert len(losses(run)) == 3


def test_more_steps_go_on(folder):
    assert main(["train", config(folder), "--folder", "more", "--steps", "1", "--device", "cpu"]) == 0
    assert main(["train", config(folder), "--folder", "more", "--device", "cpu"]) == 0
    assert main(["train", config(folder), "--folder", "once", "--device", "cpu"]) == 0
    assert losses(folder / "more") == losses(folder / "once")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_ctrl_c_and_the_same_command_again(folder, capsys, monkeypatch, lora):
    whole = edit_training.EditTraining.losses
    stopped = []

    def interrupted(self, step):
        if step == 2 and not stopped:
            stopped.append(step)
            raise KeyboardInterrupt
        return whole(self, step)

    monkeypatch.setattr(edit_training.EditTraining, "losses", interrupted)
    command = ["train", config(folder, lora=lora, trainer={**TRAINER, "save_every": 100}), "--device", "cpu"]
    assert main([*command, "--folder", "run"]) == 130
    message = capsys.readouterr().err
    assert message == "stopped; the same command goes on with the run in run\n"
    assert len(losses(folder / "run")) == 2
    assert main([*command, "--folder", "run"]) == 0
    assert main([*command, "--folder", "whole"]) == 0
    assert losses(folder / "run") == losses(folder / "whole")


def test_a_vae(folder, capsys):
    path = training_runs.write_vae_config(folder / "v.yaml", trainer=TRAINER)
    assert main(["train-vae", str(path), "--folder", "deep/run", "--device", "cpu"]) == 0
    assert "wrote deep/run/vae" in capsys.readouterr().out
    assert (folder / "deep" / "run" / "vae" / "config.json").is_file()


def test_bad_settings_and_bad_data(folder, capsys):
    assert "unknown key btach" in refused(capsys, "train", config(folder, btach=2))
    assert "none.yaml" in refused(capsys, "train-vae", "none.yaml")
    assert "--steps -1" in refused(capsys, "train", config(folder), "--steps", "-1")
    (folder / "pairs" / "manifest.jsonl").write_text("{}")
    assert "line 1: id is missing" in refused(capsys, "train", config(folder))
    assert not (folder / "runs" / "c" / "checkpoint.safetensors").exists()


def test_a_folder_that_cannot_be_made(folder, capsys):
    (folder / "taken").write_text("")
    assert "taken" in refused(capsys, "train", config(folder), "--folder", "taken")


def test_a_device_that_is_not_there(folder, capsys):
    assert main(["train", config(folder), "--device", "tpu"]) == 2
    assert "--device tpu" in capsys.readouterr().err


def test_a_full_disk_leaves_the_last_result(folder, capsys, monkeypatch):
    assert main(["train", config(folder), "--steps", "1", "--device", "cpu"]) == 0
    model = folder / "runs" / "c" / "model" / "model.safetensors"
    before = model.read_bytes()
    capsys.readouterr()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edit_training, "save_dit", full)
    assert "No space left on device" in refused(capsys, "train", config(folder), code=1, word="failed: ")
    assert model.read_bytes() == before
    monkeypatch.undo()
    assert len(losses(folder / "runs" / "c")) == 2


@pytest.mark.parametrize("error", [MemoryError("3 GiB"), RuntimeError("CUDA out of memory")])
def test_too_little_memory_names_settings_of_the_config(folder, capsys, monkeypatch, error):
    def losses(*_):
        raise error

    monkeypatch.setattr(edit_training.EditTraining, "losses", losses)
    message = refused(capsys, "train", config(folder), code=1, word="failed: ")
    assert "make size, crop or batch smaller" in message and "--height" not in message


def test_progress_leaves_a_pipe_at_once(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("builtins.print", lambda line, **options: seen.append((line.split()[0], options.get("flush"))))
    assert main(["train", config(folder), "--steps", "1", "--device", "cpu"]) == 0
    assert ("step", True) in seen


@pytest.mark.slow
def test_the_trained_model_edits_a_video(tmp_path, monkeypatch):
    """With the real text encoder's code, on a toy encoder."""
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path / "cache"))
    training_runs.write_vae(tmp_path / "vae")
    training_runs.write_pairs(tmp_path / "pairs", frames=training_runs.FRAMES)
    make_toy_text_encoder(tmp_path / "text_encoder", hidden_size=training_runs.TEXT_CHANNELS)
    path = config(tmp_path, trainer={"steps": 1}, model={"new": {**training_runs.DIT, "max_text_tokens": 300}})
    assert main(["train", path, "--folder", str(tmp_path), "--device", "cpu"]) == 0
    video_files.write_clip(tmp_path / "in.mp4", toys.frames(9, 64, 64))
    command = [
        "edit",
        tmp_path / "in.mp4",
        tmp_path / "out.mp4",
        "--model",
        tmp_path / "model",
        "--prompt",
        "make it 1",
    ]
    command += ["--height", 64, "--width", 64, "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    assert len(video_files.read_frames(tmp_path / "out.mp4")) == 9
