"""``convert``: every layout becomes one file that ``inspect`` and ``edit`` read; what it says and what it refuses."""

import json
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
import video_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.weights.dit import save_dit
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import save_vae
from vae_files import LATER, original

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def dit_state(toy):
    return load_file(toy / "dit" / "model.safetensors")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def convert(capsys, *arguments):
    """Standard output of a run that must succeed."""
    capsys.readouterr()
    assert main(["convert", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["convert", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def inspected(capsys, *arguments):
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def write_shards(state, folder, index):
    keys = sorted(state)
    parts = {"a-00001-of-00002.safetensors": keys[::2], "a-00002-of-00002.safetensors": keys[1::2]}
    for name, members in parts.items():
        save_file({key: state[key].contiguous() for key in members}, folder / name)
    weight_map = {key: name for name, members in parts.items() for key in members}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder / index


TRANSFORMERS = {
    "generator, as the release": lambda state, folder: torch.save(
        {"generator": {f"model.{key}": value for key, value in state.items()}, "critic": {}, "step": 3}, folder / "x.pth"
    ),
    "state_dict": lambda state, folder: torch.save({"state_dict": state}, folder / "x.pt"),
    "training file with numpy arrays": lambda state, folder: torch.save(
        {"state_dict": state, "state_dict_ema": state, "rng_state": np.random.get_state()}, folder / "x.pth"
    ),
    "module. prefix": lambda state, folder: torch.save({f"module.{key}": v for key, v in state.items()}, folder / "x.bin"),
    "safetensors": lambda state, folder: save_file(state, folder / "x.safetensors"),
    "shards": lambda state, folder: write_shards(state, folder, "x.safetensors.index.json"),
}  # fmt: skip


@pytest.mark.parametrize("layout", TRANSFORMERS)
def test_transformers_of_every_layout(toy, dit_state, tmp_path, capsys, layout):
    (tmp_path / "in").mkdir()
    source = TRANSFORMERS[layout](dit_state, tmp_path / "in") or next((tmp_path / "in").iterdir())
    target = tmp_path / "out.safetensors"
    said = convert(capsys, source, target).splitlines()
    assert said[0].startswith(f"{source}: transformer of long_streaming, {len(dit_state)} tensors, float32, ")
    assert said[1] == f"{target}: float32, {target.stat().st_size / 1e6:.2f} MB"
    assert all(value.equal(dit_state[key]) for key, value in load_file(target).items())
    assert inspected(capsys, target) == inspected(capsys, toy)
    # As any new file, whatever library wrote it.
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_other_transformer(tmp_path, capsys):
    config = replace(toy_configs(24)["dit"], variant="bidirectional")
    source = save_dit(random_dit(config, 0, dtype=torch.float32), tmp_path / "dit")
    said = convert(capsys, source, tmp_path / "out.safetensors", "--dtype", "bf16")
    assert ": transformer of bidirectional_short, " in said and "out.safetensors: bfloat16, " in said
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert {key: metadata[key] for key in ("format", "variant", "source")} == {
        "format": "pt",
        "variant": "bidirectional",
        "source": source.name,
    }
    assert metadata["sha256"] in said and set(metadata) == {"format", "variant", "source", "sha256", "config"}


def vae_in_a_checkpoint(vae, folder):
    state = {f"vae.{key}": value for key, value in load_file(vae / VAE_WEIGHTS).items()}
    settings = {"vae": json.loads((vae / "config.json").read_text()), "transformer": {}}
    save_file(state | {"model.x": torch.zeros(2)}, folder / "ltx.safetensors", {"config": json.dumps(settings)})


def vae_of_the_original_layout(vae, folder):
    config = toys.CONFIGS["vae"]
    settings = {
        "causal_decoder": config.decoder_causal,
        "encoder_spatial_padding_mode": config.encoder_spatial_padding_mode,
        "decoder_spatial_padding_mode": config.decoder_spatial_padding_mode,
    }
    state = original(load_file(vae / VAE_WEIGHTS), config)
    save_file(state, folder / "x.safetensors", {"config": json.dumps({"vae": settings})})


def vae_in_shards(vae, folder):
    shutil.copy(vae / "config.json", folder)
    return write_shards(load_file(vae / VAE_WEIGHTS), folder, f"{VAE_WEIGHTS}.index.json")


def vae_as_a_torch_file(vae, folder):
    shutil.copy(vae / "config.json", folder)
    torch.save(load_file(vae / VAE_WEIGHTS), folder / "vae.pth")
    return folder / "vae.pth"


@pytest.mark.parametrize(
    "layout",
    [None, vae_in_a_checkpoint, vae_of_the_original_layout, vae_in_shards, vae_as_a_torch_file],
    ids=lambda layout: layout.__name__ if layout else "vae_in_diffusers_folder",
)
def test_vaes_of_every_layout(toy, tmp_path, capsys, layout):
    (tmp_path / "in").mkdir()
    source = toy / "vae"
    if layout:
        source = layout(toy / "vae", tmp_path / "in") or next((tmp_path / "in").iterdir())
    target = tmp_path / "out.safetensors"
    said = convert(capsys, source, target)
    assert ": VAE with causal decoder, " in said.splitlines()[0]
    whole = load_file(toy / "vae" / VAE_WEIGHTS)
    assert all(value.equal(whole[key]) for key, value in load_file(target).items())
    found = inspected(capsys, target)
    assert found["config"] == json.loads((toy / "vae" / "config.json").read_text())
    assert found == inspected(capsys, toy / "vae")


def test_a_vae_without_config(toy, tmp_path, capsys):
    shutil.copy(toy / "vae" / VAE_WEIGHTS, tmp_path / "x.safetensors")
    target = tmp_path / "out.safetensors"
    assert "say which decoder it has, causal or chunk_tile" in refused(capsys, tmp_path / "x.safetensors", target)
    said = convert(capsys, tmp_path / "x.safetensors", target, "--decoder", "chunk_tile")
    assert "VAE with chunk_tile decoder" in said
    assert inspected(capsys, target)["config"]["decoder_causal"] is False


def test_the_results_edit_a_video(toy, tmp_path, capsys):
    """In bfloat16, as the sources do when they are rounded to it."""
    video_files.write_clip(tmp_path / "in.mp4", toys.frames(9, 64, 64))
    for name in ("dit", "vae"):
        convert(capsys, toy / name, tmp_path / f"{name}.safetensors", "--dtype", "bf16")
    paths = {"--model": tmp_path / "dit.safetensors", "--vae": tmp_path / "vae.safetensors"}
    edited = []
    for files in ({"--model": toy}, {**paths, "--text-encoder": toy / "text_encoder"}):
        options = {**files, "--prompt": "x", "--height": 64, "--width": 64, "--steps": 1, "--crf": 0}
        options |= {"--device": "cpu", "--dtype": "bfloat16"}
        words = [str(word) for pair in options.items() for word in pair]
        assert main(["edit", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), *words]) == 0
        edited.append(torch.as_tensor(video_files.read_frames(tmp_path / "out.mp4")))
    assert edited[0].equal(edited[1])


class TestRefusals:
    def test_nothing_is_overwritten_without_force(self, toy, tmp_path, capsys):
        target = tmp_path / "out.safetensors"
        target.write_text("precious")
        message = refused(capsys, toy / "dit", target)
        assert f"{target} is there already; add --force to replace it, or choose another name" in message
        assert target.read_text() == "precious"
        convert(capsys, toy / "dit", target, "--force")
        assert inspected(capsys, target) == inspected(capsys, toy)

    def test_a_source_is_not_replaced_even_so(self, toy, tmp_path, capsys):
        shutil.copytree(toy / "dit", tmp_path / "dit")
        file = tmp_path / "dit" / "model.safetensors"
        assert "are the same file" in refused(capsys, tmp_path / "dit", file, "--force")

    def test_input(self, toy, tmp_path, capsys):
        target = tmp_path / "out.safetensors"
        assert "gone.pth does not exist" in refused(capsys, "gone.pth", target)
        assert "more than one network; name the weight file itself" in refused(capsys, toy, target)
        assert "is not a SANA-Streaming transformer" in refused(
            capsys, toy / "text_encoder" / "model.safetensors", target
        )
        (tmp_path / "page.pth").write_text("<!doctype html>")
        assert "is a web page; download the file itself" in refused(capsys, tmp_path / "page.pth", target)
        (tmp_path / "notes.txt").write_text("x")
        assert "is not a weight file that can be read" in refused(capsys, tmp_path / "notes.txt", target)
        assert "is not an address" in refused(capsys, "hf://x", target)
        assert not target.exists()

    @pytest.mark.parametrize("layout", ["diffusers", "original"])
    def test_the_vae_of_a_later_model(self, toy, tmp_path, capsys, layout):
        """By any command that reads one; by its decoder's key, or by shapes where latents have LTX-2's size."""
        vae = CausalVAE(LATER)
        save_vae(vae, tmp_path / "later")
        path = tmp_path / "later"
        if layout == "original":
            path = tmp_path / "ltx-2.5.safetensors"
            save_file(original(vae.state_dict(), LATER) | {"decoder.conv_in_x_t.weight": torch.ones(2)}, path)
        reason = (
            "LTX-2.3 and later" if layout == "diffusers" else "VAE of a later LTX model (decoder.conv_in_x_t.weight)"
        )
        message = refused(capsys, path, tmp_path / "out.safetensors")
        assert reason in message and "use the VAE of LTX-2" in message
        video_files.write_clip(tmp_path / "in.mp4", toys.frames(9, 64, 64))
        edit = ["edit", tmp_path / "in.mp4", tmp_path / "out.mp4", "--prompt", "x", "--height", 64, "--width", 64]
        for command in (
            ["inspect", path],
            ["evaluate", "--model", toy, "--vae", path],
            [*edit, "--model", toy, "--vae", path],
        ):
            assert main([str(word) for word in command]) == 2
            assert message.split("error: ")[1] in capsys.readouterr().err

    def test_output(self, toy, tmp_path, capsys):
        assert "call it out.safetensors" in refused(capsys, toy / "dit", tmp_path / "out.pth")
        assert "there is no folder" in refused(capsys, toy / "dit", tmp_path / "gone" / "out.safetensors")


def test_the_built_in_model(tmp_path, capsys):
    assert main(["convert", "nano", str(tmp_path / "n.safetensors"), "--dtype", "fp16"]) == 0
    assert "transformer of long_streaming" in capsys.readouterr().out
