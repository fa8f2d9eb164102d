"""Configs in YAML: what is accepted, what is refused, and in which words."""

import json
from pathlib import Path

import pytest
import training_runs
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.config import (
    LoraSettings,
    identity,
    read_edit_training,
    read_vae_training,
)
from sana_streaming.sana_core.weights import nano


def refused(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_defaults_and_paths(tmp_path):
    config = read_edit_training(training_runs.write_config(tmp_path / "a.yaml"))
    assert config.vae == tmp_path / "vae" and config.data.pairs == tmp_path / "pairs"
    assert config.crr_weight == 0.5 and config.batch == 1 and config.lora is None and config.crop is None
    assert config.autocast == "float32" and config.model.init == "keep"
    assert config.trainer.steps == 4 and config.trainer.seed == 0
    assert config.model.sizes().softmax_layers == (1,)


def test_steps_from_outside(tmp_path):
    path = training_runs.write_config(tmp_path / "a.yaml")
    assert read_edit_training(path, 7).trainer.steps == 7
    with pytest.raises(InputError, match="--steps 0"):
        read_edit_training(path, 0)


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "a.yaml"
    training_runs.write_config(path, crr_weight=0)
    text = path.read_text().replace("learning_rate: 0.001", "learning_rate: 1e-4")
    path.write_text(text)
    config = read_edit_training(path)
    assert config.trainer.learning_rate == 1e-4 and config.crr_weight == 0.0


def test_a_bare_path_is_a_model(tmp_path):
    (tmp_path / "dit").mkdir()
    config = read_edit_training(training_runs.write_config(tmp_path / "a.yaml", model="dit"))
    assert config.model.path == tmp_path / "dit" and config.model.sizes() is None


def test_a_lora(tmp_path):
    config = read_edit_training(training_runs.write_config(tmp_path / "a.yaml", lora={"rank": 4, "alpha": 8}))
    assert config.lora == LoraSettings(rank=4, alpha=8.0) and config.lora.scale == 2
    assert LoraSettings(rank=3).scale == 1


SIZE = {"height": 16, "width": 24, "frames": 9}
TRAINER = {"steps": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bach": 2}, ["unknown key bach", "batch"]),
        ({"trainer": TRAINER | {"rate": 1}}, ["unknown key trainer.rate", "learning_rate"]),
        ({"vae": ...}, ["vae is missing"]),
        ({"size": {"height": 16}}, ["size", "height and width"]),
        ({"size": SIZE | {"bucket": True}}, ["size", "bucket"]),
        ({"size": {"bucket": True}, "batch": 2}, ["bucket", "batch: 1"]),
        ({"size": SIZE | {"frames": 0}}, ["size.frames is 0; it must be a whole number, 1 or more"]),
        ({"batch": 0}, ["batch is 0; it must be a whole number, 1 or more"]),
        ({"batch": 1.5}, ["batch is 1.5", "a whole number"]),
        ({"batch": True}, ["batch is True", "a whole number"]),
        ({"crop": 17}, ["crop is 17", "16 or less"]),
        ({"crr_weight": -1}, ["crr_weight is -1", "0 or more"]),
        ({"crr_weight": float("nan")}, ["crr_weight is 'nan'", "a number"]),
        ({"crr_weight": "much"}, ["crr_weight is 'much'", "a number"]),
        ({"autocast": "float16"}, ["autocast is 'float16'", "float32, bfloat16"]),
        ({"model": {"new": {}, "init": "zero"}}, ["model.init is 'zero'", "keep, random"]),
        ({"dtype": "float16"}, ["dtype is 'float16'", "auto, float32, bfloat16"]),
        ({"vae": 3}, ["vae is 3", "a path"]),
        ({"data": {}}, ["data", "pairs", "builtin: scenes"]),
        ({"data": {"pairs": "a", "builtin": "scenes"}}, ["data", "either"]),
        ({"data": {"builtin": "films"}}, ["data.builtin is 'films'", "scenes"]),
        ({"data": "pairs"}, ["data is 'pairs'", "keys"]),
        ({"model": "nowhere"}, ["model", "nowhere does not exist"]),
        ({"model": {}}, ["model", "one of path, preset, new"]),
        ({"model": {"new": {"depht": 2}}}, ["model", "depht"]),
        ({"model": {"new": {"num_heads": 9}}}, ["model", "num_heads = 9"]),
        ({"model": {"preset": "nano-9b"}}, ["model.preset is 'nano-9b'", "streaming-2b"]),
        ({"lora": {"rank": 0}}, ["lora.rank is 0"]),
        ({"lora": {}}, ["lora.rank is missing"]),
        ({"lora": {"rank": 2, "targets": ["attn.x"]}}, ["lora", "attn.x", "attn.q"]),
        ({"latents": {"samples": 0}}, ["latents.samples is 0"]),
    ],
)
def test_refusals(tmp_path, changes, words):
    message = refused(read_edit_training, training_runs.write_config(tmp_path / "a.yaml", **changes))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["a: [", "\t- x", "", "- 1", "just words"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(read_edit_training, path)


@pytest.mark.parametrize("line", ["batch: 2\nbatch: 3\n", "lora:\n  rank: 2\n  rank: 4\n"])
def test_a_key_that_is_there_twice(tmp_path, line):
    path = training_runs.write_config(tmp_path / "a.yaml")
    path.write_text(path.read_text() + line)
    assert f"key {'batch' if 'batch' in line else 'rank'} is there 2 times" in refused(read_edit_training, path)


def test_a_missing_file_and_a_binary_one(tmp_path):
    assert "not there" in refused(read_edit_training, tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(read_edit_training, tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": {**training_runs.VAE, "patch": 8}}, ["patch"]),
        ({"vae": {**training_runs.VAE, "patch_size": 0}}, ["patch_size = 0"]),
        ({"size": {"height": 32, "width": 32, "frames": 8}}, ["size.frames is 8", "1 + 8k"]),
        ({"size": {"height": 32, "width": 36, "frames": 9}}, ["size.width is 36", "multiple of 8"]),
        ({"size": {"bucket": True}}, ["bucket"]),
        ({"crop": 20}, ["crop is 20", "multiple of 8"]),
        ({"data": {}}, ["data", "videos"]),
        ({"init": "zero"}, ["init is 'zero'", "pca, random"]),
        ({"latent_noise": -0.1}, ["latent_noise is -0.1"]),
    ],
)
def test_refusals_for_a_vae(tmp_path, changes, words):
    message = refused(read_vae_training, training_runs.write_vae_config(tmp_path / "a.yaml", **changes))
    assert all(word in message for word in words), message


def test_videos_are_one_path_or_many(tmp_path):
    one = read_vae_training(training_runs.write_vae_config(tmp_path / "a.yaml", data={"videos": "films"}))
    two = read_vae_training(training_runs.write_vae_config(tmp_path / "a.yaml", data={"videos": ["films", "/b.mp4"]}))
    assert one.data.videos == (tmp_path / "films",) and two.data.videos == (tmp_path / "films", Path("/b.mp4"))


def test_a_run_is_the_same_with_more_steps_and_another_without(tmp_path):
    def of(steps=None, **changes):
        config = read_edit_training(training_runs.write_config(tmp_path / "a.yaml", **changes), steps)
        return json.dumps(identity(config))

    assert of() == of(steps=9) == of(save_dtype="bfloat16")
    assert len({of(), of(crr_weight=0), of(batch=2), of(lora={"rank": 2}), of(trainer={"steps": 4, "seed": 1})}) == 5


def test_a_run_survives_options_that_it_does_not_use(tmp_path, monkeypatch):
    """A default that is written out is no other setting, nor is another way to the same path."""
    plain = training_runs.write_config(tmp_path / "a.yaml")
    written = training_runs.write_config(tmp_path / "b.yaml", most_gap=0, autocast="float32")
    first = identity(read_edit_training(plain))
    assert first == identity(read_edit_training(written)) and "most_gap" not in first
    monkeypatch.chdir(tmp_path)
    assert identity(read_edit_training("a.yaml")) == first


def test_the_built_in_model_has_a_name(tmp_path):
    folder = nano.nano_folder()
    config = read_edit_training(
        training_runs.write_config(tmp_path / "a.yaml", model="nano", vae="nano", text_encoder="nano")
    )
    assert (config.model.path, config.vae, config.text_encoder) == (
        folder / "dit",
        folder / "vae",
        folder / "text_encoder",
    )
    config = read_edit_training(training_runs.write_config(tmp_path / "b.yaml", model={"path": "nano"}, vae="./nano"))
    assert (config.model.path, config.vae) == (folder / "dit", tmp_path / "nano")
