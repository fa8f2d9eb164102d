"""A decoder that learns from a transformer's edits: the right frames for the right latents, made once."""

import json

import pytest
import torch
import training_runs
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import sample_clip
from sana_streaming.sana_core.training import edit_training, edited_clips
from sana_streaming.sana_core.training.config import read_vae_training
from sana_streaming.sana_core.training.edit_training import encode_clip
from sana_streaming.sana_core.training.pairs import TrainingPair
from sana_streaming.sana_core.training.trainer import seeded
from sana_streaming.sana_core.training.vae_training import train_vae
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.vae import load_vae

CPU = torch.device("cpu")
SIZE = {"height": 32, "width": 40, "frames": 17}
TRAINER = {"steps": 4, "learning_rate": 1e-3, "save_every": 1, "log_every": 1}


class StandInPairs:
    """Frames whose every pixel tells its place in time and space."""

    def __init__(self, frames, height, width, device):
        count = torch.arange(frames * height * width * 3).reshape(frames, height, width, 3)
        self.frames = (count * 7919 % 256).to(torch.uint8)

    def sample(self, seed, number):
        return TrainingPair(self.frames.roll(number, 1), self.frames, f"edit {number}", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    training_runs.write_vae(tmp_path / "vae")
    save_dit(random_dit(DiTConfig.from_dict(training_runs.DIT), seed=0), tmp_path / "dit")
    monkeypatch.setattr(edit_training, "GemmaTextEncoder", training_runs.StandInEncoder)
    monkeypatch.setattr(edited_clips, "BuiltinPairs", StandInPairs)
    return tmp_path


def config(folder, steps=None, **changes):
    edited = {"model": "dit", "text_encoder": "text", "frames": 41, "samples": 2}
    changes = {"vae": ..., "data": ..., "decoder_of": "vae", "edited": edited, "size": SIZE, "crop": 16, **changes}
    return read_vae_training(training_runs.write_vae_config(folder / "vae.yaml", trainer=TRAINER, **changes), steps)


def open_edited(folder, log=lambda text: None):
    vae = load_vae(folder / "vae", dtype=torch.float32)
    data, place = config(folder).edited, folder / "kept"
    return edited_clips.EditedClips(data, vae, place, 32, 40, seed=0, device=CPU, log=log)


def train(settings, folder):
    train_vae(settings, folder, CPU, log=lambda text: None)
    return [json.loads(line)["losses"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_frames_are_those_that_the_latents_stand_for(folder):
    """Latent frame t > 0 ends with frame 8t, and a pixel's latent is its place over 8."""
    edited = open_edited(folder)
    whole, pixels = edited.clip(0, 41, None)
    assert whole.shape == (4, 6, 4, 5) and pixels.shape == (41, 32, 40, 3)
    starts = set()
    for number in range(0, 40, 2):
        whole, pixels = edited.clip(number, 41, None)
        latents, frames = edited.clip(number, 17, 16)
        assert latents.shape == (4, 3, 2, 2) and frames.shape == (17, 16, 16, 3)
        (place,) = [
            (time, top, left)
            for time in range(4)
            for top in range(3)
            for left in range(4)
            if whole[:, time : time + 3, top : top + 2, left : left + 2].equal(latents)
        ]
        time, top, left = (8 * index for index in place)
        assert frames.equal(pixels[time : time + 17, top : top + 16, left : left + 16])
        starts.add(place)
    assert {time for time, _, _ in starts} == {0, 1, 2, 3} and len(starts) > 5


def test_latents_are_the_edit_that_a_stream_makes_of_the_source(folder):
    edited = open_edited(folder)
    vae, model = load_vae(folder / "vae", dtype=torch.float32), load_dit(folder / "dit", dtype=torch.float32)
    made = []
    for number in range(2):
        pair = StandInPairs(41, 32, 40, CPU).sample(0, number)
        source = encode_clip(vae, pair.source, CPU)[None]
        noise = torch.randn(source.shape, generator=seeded(0, number))
        prompt = training_runs.StandInEncoder(None).encode(pair.prompt)
        context = model.prompt_context(prompt.embeds, prompt.mask)
        with torch.no_grad():
            made.append(sample_clip(model, context, noise, source, StreamOptions())[0].half().float())
    for number in range(2):
        latents, _ = edited.clip(number, 41, None)
        assert any(torch.allclose(latents, one, atol=2e-3) for one in made)


def test_each_is_edited_once_also_over_two_runs(folder):
    made = []
    for _ in range(2):
        edited = open_edited(folder, made.append)
        clips = [edited.clip(number, 17, None) for number in range(6)]
    assert sorted(made) == ["edited clip 1 of 2", "edited clip 2 of 2"] and len(clips) == 6


def test_a_run_in_two_parts_is_the_run_in_one(folder):
    settings = {"latent_noise": 0.1, "change_weight": 0.5, "batch": 2}
    whole = train(config(folder, **settings), folder / "whole")
    train(config(folder, 2, **settings), folder / "parts")
    assert train(config(folder, **settings), folder / "parts") == whole
    before, after = (load_vae(place, dtype=torch.float32) for place in (folder / "vae", folder / "whole" / "vae"))
    frames = torch.rand(1, 3, 9, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert after.encode(frames)[0].equal(before.encode(frames)[0])
        assert not after.decode(torch.ones(1, 4, 2, 2, 2))[0].equal(before.decode(torch.ones(1, 4, 2, 2, 2))[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"builtin": "scenes"}}, "give either data"),
        ({"edited": ...}, "give either data"),
        ({"vae": training_runs.VAE, "decoder_of": ...}, "edited is given without decoder_of"),
        (
            {"size": {**SIZE, "frames": 49}},
            "edited.frames is 41; it must be 1 [+] 8k and not less than size.frames, 49",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, changes, words):
    with pytest.raises(InputError, match=words):
        config(folder, **changes)


def test_networks_that_do_not_fit_are_refused(folder):
    save_dit(random_dit(DiTConfig.from_dict({**training_runs.DIT, "in_channels": 5}), seed=0), folder / "dit")
    with pytest.raises(InputError, match="decoder_of makes latents of 4 channels"):
        open_edited(folder)
