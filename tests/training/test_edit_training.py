"""Training of the transformer on pairs: batches, cache, resume, the files that it makes."""

import json

import pytest
import torch
import training_runs
from safetensors.torch import load_file
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.dit import SanaStreamingDiT
from sana_streaming.sana_core.training import edit_training
from sana_streaming.sana_core.training.config import read_edit_training
from sana_streaming.sana_core.training.dit_init import initialize
from sana_streaming.sana_core.training.edit_training import EditTraining, encode_clip
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.lora import apply_lora
from sana_streaming.sana_core.weights.random_init import random_dit
from sana_streaming.sana_core.weights.vae import load_vae

CPU = torch.device("cpu")
TRAINER = {"steps": 4, "learning_rate": 1e-3, "save_every": 1, "log_every": 1}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pairs, a VAE, and a stand-in for the text encoder."""
    training_runs.write_pairs(tmp_path / "pairs", frames=training_runs.FRAMES)
    training_runs.write_vae(tmp_path / "vae")
    monkeypatch.setattr(edit_training, "GemmaTextEncoder", training_runs.StandInEncoder)
    return tmp_path


def training(folder, run="run", steps=None, **changes):
    config = read_edit_training(training_runs.write_config(folder / "c.yaml", **{"trainer": TRAINER, **changes}), steps)
    return EditTraining(config, folder / run, CPU, log=lambda text: None)


def rows(folder, run="run"):
    lines = (folder / run / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


def test_a_batch_holds_what_the_vae_makes_of_the_pairs(folder):
    run = training(folder, batch=2)
    batch = run.batch(1)
    vae = load_vae(folder / "vae", dtype=torch.float32)
    for index, number in enumerate((2, 3)):
        pair = run.pairs.sample(0, number)
        assert batch.source[index].equal(encode_clip(vae, pair.source, CPU))
        assert batch.target[index].equal(encode_clip(vae, pair.target, CPU))
        assert (batch.prompts[index], batch.reverse_prompts[index]) == (pair.prompt, pair.reverse_prompt)
    assert batch.source.shape == (2, 4, 6, 2, 3) and batch.source.dtype == torch.float32


def test_a_clip_is_encoded_in_pieces_as_it_is_whole(folder):
    vae = load_vae(folder / "vae", dtype=torch.float32)
    frames = torch.from_numpy(training_runs.clip(73))
    whole, _ = vae.encode(frames.permute(3, 0, 1, 2)[None] / 127.5 - 1)
    torch.testing.assert_close(encode_clip(vae, frames, CPU), whole[0])


def test_a_square_is_cut_before_encoding(folder):
    assert training(folder, crop=16).batch(0).source.shape == (1, 4, 6, 2, 2)


def test_each_text_is_encoded_once_before_the_first_step(folder):
    run = training(folder)
    run.run()
    encoded = run.prompts._encoder.encoded
    assert encoded == [text for index in range(3) for text in (f"make it {index}", f"undo {index}")]


def test_a_run_in_two_parts_is_the_run_in_one(folder):
    changes = {"batch": 2, "trainer": {**TRAINER, "ema_decay": 0.5, "warmup_steps": 2}}
    training(folder, "whole", **changes).run()
    training(folder, "parts", 2, **changes).run()
    training(folder, "parts", **changes).run()
    assert rows(folder, "parts") == rows(folder, "whole") and len(rows(folder, "whole")) == 4
    files = [folder / run / "model" / "model.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_killed_run_goes_on_with_the_same_losses(folder):
    training(folder, "whole").run()
    killed = training(folder, "killed", trainer={**TRAINER, "save_every": 2})

    def losses(step):
        if step == 3:
            raise SystemExit
        return killed.losses(step)

    with pytest.raises(SystemExit):
        killed.trainer.run(losses)
    assert len(rows(folder, "killed")) == 3
    training(folder, "killed").run()
    assert rows(folder, "killed") == rows(folder, "whole")


def test_another_run_in_the_same_folder_is_refused(folder):
    training(folder, steps=1).run()
    with pytest.raises(InputError, match="crr_weight"):
        training(folder, crr_weight=0)


def test_each_step_has_noise_of_its_own(folder):
    training_runs.write_pairs(folder / "pairs", count=1, frames=training_runs.FRAMES)
    run = training(folder)
    first, again, second = (run.losses(step)["flow"].item() for step in (0, 0, 1))
    assert first == again != second


def test_it_learns(folder):
    trainer = {"steps": 30, "learning_rate": 1e-2, "log_every": 1}
    training(folder, trainer=trainer, crr_weight=0, batch=2).run()
    flow = [row["flow"] for row in rows(folder)]
    assert sum(flow[-10:]) < 0.9 * sum(flow[:10])


@pytest.mark.parametrize("init", ["keep", "random"])
def test_both_starts(folder, init):
    model = training(folder, model={"new": training_runs.DIT, "init": init}).model
    x, source = torch.randn(2, 1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    velocity, _ = model(x, torch.tensor([999.0]), source, model.prompt_context(torch.ones(1, 2, 8)))
    wanted = x - source if init == "keep" else torch.zeros_like(x)
    assert (velocity - wanted).abs().max() < 0.5


def test_products_in_half_precision(folder):
    """Losses near those of float32 but not the same; weights, their updates and the file stay float32."""
    plain, half = training(folder, "plain"), training(folder, "half", autocast="bfloat16")
    exact, got = plain.losses(0), half.losses(0)
    assert all(0 < abs(got[name] - exact[name]) < 0.03 * exact[name] for name in ("flow", "crr"))
    half.run()
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}
    assert {value.dtype for value in load_file(folder / "half" / "model" / "model.safetensors").values()} == {
        torch.float32
    }
    with pytest.raises(InputError, match="autocast"):
        training(folder, "half")


def test_the_model_folder_holds_the_average_in_the_dtype_asked_for(folder):
    run = training(folder, trainer={**TRAINER, "ema_decay": 0.5}, save_dtype="bfloat16")
    assert run.run() == folder / "run" / "model"
    stored = load_file(folder / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    loaded = load_dit(folder / "run" / "model", layout="split", dtype=torch.float32)
    assert loaded.config == DiTConfig.from_dict(training_runs.DIT)
    latest = dict(run.model.named_parameters())
    with run.trainer.averaged():
        averaged = {key: value.detach().clone() for key, value in latest.items()}
    assert all(value.equal(averaged[key].bfloat16().float()) for key, value in loaded.named_parameters())
    assert not all(value.equal(latest[key].bfloat16().float()) for key, value in loaded.named_parameters())
    assert sorted(path.name for path in (folder / "run" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_lora_of_given_weights(folder):
    model = random_dit(DiTConfig.from_dict(training_runs.DIT), 3, layout="split")
    save_dit(model, folder / "dit")
    run = training(folder, model="dit", lora={"rank": 2}, trainer={**TRAINER, "learning_rate": 1e-2})
    assert run.run() == folder / "run" / "lora.safetensors"
    assert all(value.equal(model.state_dict()[key]) for key, value in run.model.state_dict().items())
    merged = load_dit(folder / "dit", dtype=torch.float32)
    apply_lora(merged, folder / "run" / "lora.safetensors")
    x, source = torch.randn(2, 1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    context = [net.prompt_context(torch.ones(1, 2, training_runs.TEXT_CHANNELS)) for net in (run.model, merged, model)]
    nets = zip((run.model, merged, model), context, strict=True)
    adapted, same, base = (net(x, torch.tensor([500.0]), source, text)[0] for net, text in nets)
    torch.testing.assert_close(same, adapted)
    assert not torch.allclose(base, adapted)


class TestLatentsCache:
    def test_so_many_samples_are_encoded_once(self, folder, monkeypatch):
        calls = []
        monkeypatch.setattr(edit_training, "encode_clip", lambda *a: (calls.append(a), encode_clip(*a))[1])
        run = training(folder, latents={"samples": 2})
        run.run()
        assert len(calls) == 4 and len(list((folder / "run" / "latents").iterdir())) == 2
        again = training(folder, "run", 6, latents={"samples": 2})
        again.run()
        assert len(calls) == 4 and len(rows(folder)) == 6

    def test_latents_are_those_of_the_pairs(self, folder):
        plain, cached = training(folder, "a"), training(folder, "b", latents={"samples": 3})
        of_plain = {plain.batch(step).prompts[0]: plain.batch(step) for step in range(3)}
        of_cached = {cached.batch(step).prompts[0]: cached.batch(step) for step in range(3)}
        assert of_plain.keys() == of_cached.keys() and len(of_plain) == 3
        for prompt, batch in of_plain.items():
            torch.testing.assert_close(of_cached[prompt].source, batch.source, atol=5e-3, rtol=1e-3)
            torch.testing.assert_close(of_cached[prompt].target, batch.target, atol=5e-3, rtol=1e-3)
            assert of_cached[prompt].reverse_prompts == batch.reverse_prompts

    def test_damaged_and_foreign_files_are_made_again(self, folder):
        settings = {"latents": {"samples": 1}}
        wanted = training(folder, **settings).batch(0).source
        (file,) = (folder / "run" / "latents").iterdir()
        file.write_bytes(file.read_bytes()[:50])
        assert training(folder, **settings).batch(0).source.equal(wanted)
        assert training(folder, crop=16, **settings).batch(0).source.shape != wanted.shape
        assert training(folder, **settings).batch(0).source.equal(wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"new": {**training_runs.DIT, "in_channels": 5, "source_channels": 5}}},
            "vae makes latents of 4 channels",
        ),
        ({"model": {"new": {**training_runs.DIT, "caption_channels": 5}}}, "text_encoder gives 8 channels"),
        ({"model": {"new": {**training_runs.DIT, "variant": "bidirectional"}}}, "bidirectional"),
        ({"model": {"new": {**training_runs.DIT, "hidden_size": 8}}}, "model.init is keep, but hidden_size 8"),
        ({"model": {"new": {**training_runs.DIT, "source_channels": 3}}}, "model.init is keep, but source_channels 3"),
        ({"size": {"height": 16, "width": 24, "frames": 10}}, "size.frames is 10; it must be 1 [+] 8k"),
        ({"size": {"height": 16, "width": 20, "frames": 9}}, "size.width is 20; it must be a multiple of 8"),
        ({"crop": 12}, "crop is 12; it must be a multiple of 8"),
        ({"vae": "nowhere"}, "nowhere"),
        ({"data": {"pairs": "nowhere"}}, "manifest.jsonl is not there"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(folder, changes, words):
    with pytest.raises(InputError, match=words):
        training(folder, **changes)
    assert not (folder / "run" / "losses.jsonl").exists()


def test_random_start():
    def start(seed):
        model = SanaStreamingDiT(DiTConfig.from_dict(training_runs.DIT), layout="split")
        initialize(model, seed)
        return model

    model, same, other = start(0), start(0), start(1)
    assert all(value.equal(same.state_dict()[key]) for key, value in model.state_dict().items())
    assert not all(value.equal(other.state_dict()[key]) for key, value in model.state_dict().items())
    x, source = torch.randn(2, 1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    velocity, _ = model(x, torch.tensor([500.0]), source, model.prompt_context(torch.ones(1, 2, 8)))
    assert velocity.equal(torch.zeros_like(velocity))
