"""Training of a causal VAE: losses, start, resume, the file that it makes."""

import json

import pytest
import torch
import training_runs
import video_files
from sana_streaming.sana_core.training.config import read_vae_training
from sana_streaming.sana_core.training.trainer import seeded
from sana_streaming.sana_core.training.vae_init import to_video
from sana_streaming.sana_core.training.vae_training import (
    border_excess,
    decoder_losses,
    start_vae,
    train_vae,
    vae_losses,
)
from sana_streaming.sana_core.weights.vae import load_vae


class StandInClips:
    """A few moving clips; nothing is drawn or read."""

    def __init__(self):
        self.clips = training_runs.moving_clips(4)

    def clip(self, seed, number):
        return self.clips[number % 4]


@pytest.fixture(autouse=True)
def _clips(monkeypatch):
    monkeypatch.setattr(
        "sana_streaming.sana_core.training.vae_training.open_clips", lambda data, size, device: StandInClips()
    )


def config(tmp_path, steps=None, **changes):
    return read_vae_training(training_runs.write_vae_config(tmp_path / "vae.yaml", **changes), steps)


def train(settings, folder):
    train_vae(settings, folder, torch.device("cpu"), log=lambda text: None)
    return [json.loads(line)["losses"] for line in (folder / "losses.jsonl").read_text().splitlines()]


TRAINER = {"steps": 4, "learning_rate": 1e-3, "save_every": 1, "log_every": 1}


@pytest.mark.parametrize("init", ["pca", "random"])
def test_the_start_is_the_same_each_time_and_of_unit_size(tmp_path, init):
    settings = config(tmp_path, init=init)
    first, second = (start_vae(settings, training_runs.moving_clips(2)) for _ in range(2))
    assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())
    clips = torch.cat([to_video(clip) for clip in training_runs.moving_clips(2)])
    with torch.no_grad():
        assert 0.8 < first.encode(clips)[0].square().mean() < 1.25


def test_losses_by_hand(tmp_path):
    vae = start_vae(config(tmp_path), training_runs.moving_clips(2))
    video = to_video(training_runs.moving_clips(1)[0])
    with torch.no_grad():
        losses = vae_losses(vae, video, generator=seeded(0, 0), latent_noise=0.25, kl_weight=0.1)
        latents, _ = vae.encode(video)
        noise = torch.randn(latents.shape, generator=seeded(0, 0))
        mse = (vae.decode(latents + 0.25 * noise)[0] - video).square().mean()
        kl = latents.square().mean() / 2
    del losses["change"], losses["border"]
    assert losses == {"loss": mse + 0.1 * kl, "mse": mse, "kl": kl}


def test_principal_components_are_a_better_start(tmp_path):
    mse = {}
    for init in ("pca", "random"):
        vae = start_vae(config(tmp_path, init=init), training_runs.moving_clips(2))
        video = to_video(training_runs.moving_clips(1)[0])
        mse[init] = vae_losses(vae, video, generator=seeded(0, 0), latent_noise=0, kl_weight=0)["mse"].item()
    assert mse["pca"] < 0.5 * mse["random"]


def test_it_learns(tmp_path):
    trainer = {"steps": 12, "learning_rate": 3e-3, "log_every": 1}
    rows = train(config(tmp_path, init="random", trainer=trainer), tmp_path / "run")
    assert sum(row["mse"] for row in rows[-4:]) < 0.8 * sum(row["mse"] for row in rows[:4])


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path):
    changes = {"latent_noise": 0.1, "kl_weight": 0.01, "crop": 16, "batch": 2, "trainer": TRAINER}
    whole = train(config(tmp_path, **changes), tmp_path / "whole")
    train(config(tmp_path, 2, **changes), tmp_path / "parts")
    parts = train(config(tmp_path, **changes), tmp_path / "parts")
    assert parts == whole and len(whole) == 4
    files = [tmp_path / run / "vae" / "diffusion_pytorch_model.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_is_a_vae_in_the_dtype_asked_for(tmp_path):
    settings = config(tmp_path, save_dtype="float16", trainer={"steps": 1})
    made = train_vae(settings, tmp_path / "run", torch.device("cpu"), log=lambda text: None)
    assert made == tmp_path / "run" / "vae"
    vae = load_vae(made, dtype=torch.float32)
    assert vae.config == settings.sizes() and vae.decodes_causally
    video = to_video(training_runs.moving_clips(1)[0])
    with torch.no_grad():
        latents, _ = vae.encode(video)
    assert 0.8 < latents.square().mean() < 1.25


def test_the_file_holds_the_average(tmp_path):
    changes = {"steps": 2, "learning_rate": 1e-2, "ema_decay": 0.9999}
    settings = config(tmp_path, trainer=changes)
    train(settings, tmp_path / "run")
    start, made = (
        start_vae(settings, training_runs.moving_clips(2)),
        load_vae(tmp_path / "run" / "vae", dtype=torch.float32),
    )
    for name, value in made.named_parameters():
        torch.testing.assert_close(value, start.get_parameter(name), atol=1e-4, rtol=1e-4)


def test_video_files(tmp_path, monkeypatch):
    monkeypatch.undo()
    frames = torch.cat(training_runs.moving_clips(2))
    video_files.write_clip(tmp_path / "a.mp4", frames)
    settings = config(tmp_path, data={"videos": "a.mp4"}, trainer={"steps": 1, "log_every": 1})
    assert len(train(settings, tmp_path / "run")) == 1


def test_a_decoder_alone_is_trained_further(tmp_path):
    """Its latents stay to the last bit, and so what was trained on them."""
    start = training_runs.write_vae(tmp_path / "vae")
    settings = config(tmp_path, vae=..., decoder_of=str(start), save_dtype="float32", trainer=TRAINER)
    train(settings, tmp_path / "run")
    before, after = (load_vae(folder, dtype=torch.float32) for folder in (start, tmp_path / "run" / "vae"))
    video = to_video(training_runs.moving_clips(1)[0])
    with torch.no_grad():
        latents = before.encode(video)[0]
        assert after.encode(video)[0].equal(latents)
        assert not after.decode(latents)[0].equal(before.decode(latents)[0])


def test_change_is_the_error_of_the_steps_between_frames_over_the_clips_own(tmp_path):
    vae = start_vae(config(tmp_path), training_runs.moving_clips(2))
    video = torch.cat([to_video(clip) for clip in training_runs.moving_clips(2)])
    video[1] = video[1, :, :1]
    with torch.no_grad():
        got = vae_losses(vae, video, generator=seeded(0, 0), latent_noise=0.0, kl_weight=0.0, change_weight=3.0)
        error = vae.decode(vae.encode(video)[0])[0] - video
    steps = [(x[:, :, 1:] - x[:, :, :-1]).square().mean((1, 2, 3, 4)) for x in (error, video)]
    moving, still = steps[0][0] / (steps[1][0] + 2e-3), steps[0][1] / 2e-3
    change = (moving + still) / 2
    assert got["change"].item() == pytest.approx(change.item(), rel=1e-4)
    assert got["loss"].item() == pytest.approx((error.square().mean() + 3 * change).item(), rel=1e-4)


def test_border_is_how_much_more_changes_where_latent_frames_begin(tmp_path):
    steps = torch.ones(2, 16)
    steps[1, ::8] = 3
    video = torch.cat([torch.zeros(2, 1), steps.cumsum(1)], 1)[:, None, :, None, None].expand(2, 3, 17, 4, 4)
    torch.testing.assert_close(border_excess(video, 8), torch.tensor([0.0, 9.0]).clamp_min(1).log(), atol=1e-3, rtol=0)
    vae = start_vae(config(tmp_path), training_runs.moving_clips(2))
    clip = to_video(training_runs.moving_clips(1)[0])
    with torch.no_grad():
        options = {"generator": seeded(0, 0), "latent_noise": 0.0}
        latents = vae.encode(clip)[0]
        got = decoder_losses(vae, latents, clip, border_weight=3.0, **options)
        excess = border_excess(vae.decode(latents)[0], 8) - border_excess(clip, 8)
        evened = decoder_losses(vae, latents, vae.decode(latents)[0], border_weight=3.0, **options)
    assert got["border"].item() == pytest.approx(max(0.0, excess.item()), rel=1e-4)
    assert got["loss"].item() == pytest.approx((got["mse"] + 3 * got["border"]).item(), rel=1e-4)
    assert evened["border"] == 0
