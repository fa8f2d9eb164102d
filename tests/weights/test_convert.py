"""Conversion to one safetensors file: what is kept, what is said about it, what is refused."""

import hashlib
import json
import random
import shutil
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch
import toys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.weights.checkpoint import read_checkpoint
from sana_streaming.sana_core.weights.convert import convert
from sana_streaming.sana_core.weights.dit import load_dit, official_state
from sana_streaming.sana_core.weights.vae import load_vae, save_vae


@pytest.fixture
def state():
    return {key: value.clone() for key, value in official_state(toys.networks()[0])}


def training_file(state, path, core="_core"):
    """As the release's DDP trainer writes it; ``core`` is how the numpy of that day spells its inner module."""
    random_states = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    content = {
        "state_dict": state,
        "state_dict_ema": {key: value + 1 for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 1,
        "rng_state": random_states,
    }
    written = path.with_suffix(".tmp")
    torch.save(content, written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            here = np._core.multiarray._reconstruct.__module__.split(".")[1]
            new.writestr(name, data.replace(f"numpy.{here}.multi".encode(), f"numpy.{core}.multi".encode()))
    return path


def sha256(*paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("core", ["_core", "core"])
def test_training_files_with_a_numpy_random_state(state, tmp_path, core):
    source = training_file(state, tmp_path / "epoch_1_step_2.pth", core)
    with pytest.raises(
        CheckpointError, match=f"numpy arrays .*: python -m sana_streaming convert {source} .*safetensors"
    ):
        load_dit(source)
    done = convert(source, tmp_path / "dit.safetensors")
    assert (done.variant, done.num_tensors, done.dtypes) == ("streaming", len(state), (torch.float32,))
    written = load_file(done.target)
    assert set(written) == set(state)
    assert all(torch.equal(written[key], value) for key, value in state.items())
    said = metadata(done.target)
    config = json.loads(said.pop("config"))
    assert config["variant"] == "streaming" and config["hidden_size"] == toys.CONFIGS["dit"].hidden_size
    assert said == {
        "format": "pt",
        "source": "epoch_1_step_2.pth",
        "sha256": sha256(source),
        "variant": "streaming",
    }
    assert done.sha256 == said["sha256"] and done.num_bytes == done.target.stat().st_size


def test_what_numpy_files_may_name_stays_listed(state, tmp_path):
    """Objects of other classes, and arrays of other dtypes, are refused by the conversion too."""

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for stranger in (Payload(), np.zeros(2, dtype=object), np.datetime64("2020-01-01")):
        torch.save({"state_dict": state, "rng_state": [np.random.get_state(), stranger]}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="never executed"):
            convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "x.safetensors").exists()
    # And what was allowed for one file is not allowed afterwards.
    convert(training_file(state, tmp_path / "a.pth"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="numpy arrays"):
        read_checkpoint(tmp_path / "a.pth")


def test_bfloat16_in_equal_files(state, tmp_path):
    torch.save({"generator": {f"model.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    files = [
        convert(tmp_path / "x.pth", tmp_path / name, torch.bfloat16).target
        for name in ("a.safetensors", "b.safetensors")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert all(torch.equal(value, state[key].bfloat16()) for key, value in load_file(files[0]).items())
    expected = load_dit(tmp_path / "x.pth", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in load_dit(files[0]).state_dict().items())
    again = convert(files[0], tmp_path / "again.safetensors")
    assert again.dtypes == (torch.bfloat16,) and metadata(again.target)["source"] == "a.safetensors"


def test_mixed_dtypes_shared_storages_and_odd_buffers(state, tmp_path):
    """Each tensor keeps its dtype, every one is aligned and lies alone, however it was stored."""
    state = {key: value.half() if key.endswith(".bias") else value for key, value in state.items()}
    state["blocks.0.attn.q_norm.weight"] = state["blocks.0.attn.k_norm.weight"] = torch.rand_like(
        state["blocks.0.attn.k_norm.weight"]
    )
    state["final_layer.linear.weight"] = state["final_layer.linear.weight"].t().contiguous().t()
    state["pos_embed"] = torch.zeros(1, 4, toys.CONFIGS["dit"].hidden_size, dtype=torch.float64)
    torch.save(state, tmp_path / "x.pth")
    done = convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    written = load_file(done.target)
    for key, value in state.items():
        assert torch.equal(written[key], value.float() if key == "pos_embed" else value), key
        assert written[key].dtype is (torch.float32 if key == "pos_embed" else value.dtype), key
    head = done.target.read_bytes()
    size = int.from_bytes(head[:8], "little")
    entries = [entry for name, entry in json.loads(head[8 : 8 + size]).items() if name != "__metadata__"]
    assert size % 8 == 0
    assert all(entry["data_offsets"][0] % {"F32": 4, "F16": 2}[entry["dtype"]] == 0 for entry in entries)
    assert max(entry["data_offsets"][1] for entry in entries) == len(head) - 8 - size
    assert load_dit(done.target, dtype=torch.float32).fingerprint


def test_shards_become_one_file(state, tmp_path):
    keys = sorted(state)
    parts = {"b.safetensors": keys[::2], "a.safetensors": keys[1::2]}
    for name, members in parts.items():
        save_file({key: state[key].contiguous() for key in members}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, members in parts.items() for key in members}}))
    (tmp_path / "whole").mkdir()
    done = convert(tmp_path, tmp_path / "whole" / "x.safetensors")
    assert metadata(done.target)["source"] == index.name
    assert done.sha256 == sha256(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in load_file(done.target).items())
    with pytest.raises(InputError, match="are the same file"):
        convert(index, tmp_path / "a.safetensors")


@pytest.mark.parametrize("prefix", [None, "vae."], ids=["folder", "inside a checkpoint"])
def test_vaes(tmp_path, prefix):
    vae = toys.networks()[1]
    save_vae(vae, tmp_path / "vae")
    source = tmp_path / "vae"
    if prefix:
        inside = {
            prefix + key: value for key, value in load_file(source / "diffusion_pytorch_model.safetensors").items()
        }
        source = tmp_path / "ltx.safetensors"
        config = json.dumps({"vae": vae.config.to_dict(), "transformer": {}})
        save_file(inside | {"model.diffusion_model.x": torch.zeros(2)}, source, metadata={"config": config})
    done = convert(source, tmp_path / "out.safetensors", torch.bfloat16)
    assert done.variant == metadata(done.target)["variant"] == "vae"
    again = load_vae(done.target)
    assert again.config == vae.config
    expected = load_vae(tmp_path / "vae").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_progress_and_stopping(state, tmp_path):
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    seen = []
    done = convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", on_progress=lambda *now: seen.append(now))
    counts = [now for _, now, _ in seen]
    assert counts == sorted(counts) and {total for *_, total in seen} == {counts[-1]}
    assert {name for name, *_ in seen} == {"x.safetensors", "y.safetensors"}

    class Stop(Exception):
        pass

    def stop(name, *_):
        if name == "y.safetensors":
            raise Stop

    before = done.target.read_bytes()
    with pytest.raises(Stop):
        convert(tmp_path / "x.safetensors", done.target, torch.bfloat16, on_progress=stop)
    assert done.target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


class TestRefusals:
    @pytest.fixture
    def source(self, state, tmp_path):
        torch.save(state, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    def refused(self, expected, *arguments, **options):
        with pytest.raises(InputError, match=expected) as error:
            convert(*arguments, **options)
        assert "\n" not in str(error.value)

    def test_targets(self, source, tmp_path):
        self.refused("is not named as a safetensors file; call it y.safetensors", source, tmp_path / "y.pth")
        self.refused("there is no folder", source, tmp_path / "gone" / "y.safetensors")
        (tmp_path / "y.safetensors").mkdir()
        self.refused("is a folder: give the name of a file", source, tmp_path / "y.safetensors")

    def test_dtypes(self, source, state, tmp_path):
        self.refused("torch.float64 cannot be stored", source, tmp_path / "y.safetensors", torch.float64)
        state["final_layer.linear.bias"][0] = 1e6
        torch.save(state, source)
        expected = "final_layer.linear.bias has values that float16 cannot hold; convert to bfloat16"
        self.refused(expected, source, tmp_path / "y.safetensors", torch.float16)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]

    def test_no_network(self, source, state, tmp_path):
        torch.save({"a.b": torch.zeros(2)}, source)
        self.refused("is not a SANA-Streaming transformer", source, tmp_path / "y.safetensors")
        state.pop("final_layer.linear.bias")
        torch.save(state, source)
        self.refused("1 missing: final_layer.linear.bias", source, tmp_path / "y.safetensors")
        self.refused("does not exist", tmp_path / "gone.pth", tmp_path / "y.safetensors")
        (tmp_path / "empty").mkdir()
        self.refused("no weights of a transformer or a VAE", tmp_path / "empty", tmp_path / "y.safetensors")
        save_vae(toys.networks()[1], tmp_path / "vae")
        self.refused("more than one network; name the weight file", tmp_path, tmp_path / "y.safetensors")

    def test_no_space(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10))
        self.refused("bytes are to be written, 10 are free; choose another disk", source, tmp_path / "y.safetensors")

    def test_disk_full_half_way(self, source, tmp_path, monkeypatch):
        from sana_streaming.sana_core.weights import convert as module

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_as_bytes", full)
        self.refused(r"writing failed \(No space left on device\) and left nothing", source, tmp_path / "y.safetensors")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]
