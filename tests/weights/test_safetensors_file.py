"""Files of our own writer: what the library writes, with a new file's permissions, whole or not at all."""

import errno
import os
import stat

import pytest
import tiny_training
import torch
import toys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.streaming.state import StreamState
from sana_streaming.sana_core.training.config import LoraSettings
from sana_streaming.sana_core.training.lora import Lora
from sana_streaming.sana_core.weights import safetensors_file
from sana_streaming.sana_core.weights.convert import convert
from sana_streaming.sana_core.weights.dit import save_dit
from sana_streaming.sana_core.weights.safetensors_file import save_safetensors
from sana_streaming.sana_core.weights.vae import save_vae


def test_the_bytes_of_the_library(tmp_path):
    tensors = {
        "b": torch.randn(3, 5, dtype=torch.float64),
        "a": torch.randn(7).half(),
        "scalar": torch.tensor(2.5),
        "step": torch.tensor([3]),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "ü": torch.randn(2, 2),
    }
    for kept in (tensors, {name: tensors[name] for name in ("a", "scalar")}):
        save_file(kept, tmp_path / "theirs", {"config": "{}"})
        save_safetensors(tmp_path / "ours", kept, {"config": "{}"})
        with safe_open(tmp_path / "ours", framework="pt") as file:
            assert file.metadata() == {"config": "{}"}
        written = load_file(tmp_path / "ours")
        assert all(value.equal(written[name]) and value.dtype == written[name].dtype for name, value in kept.items())
        assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size
    # Where the library has one order only.
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_any_memory_layout_and_shared_storage(tmp_path):
    base = torch.randn(4, 6)
    tensors = {"t": base.t(), "slice": base[1:3, ::2], "same": base, "again": base, "grad": base.requires_grad_()}
    save_safetensors(tmp_path / "x", tensors, {})
    assert all(value.equal(tensors[name]) for name, value in load_file(tmp_path / "x").items())


def test_a_file_replaces_the_one_that_it_was_read_from(tmp_path):
    save_safetensors(tmp_path / "x", {"a": torch.arange(5.0)}, {})
    save_safetensors(tmp_path / "x", load_file(tmp_path / "x"), {"again": "1"})
    assert load_file(tmp_path / "x")["a"].equal(torch.arange(5.0))


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    save_safetensors(tmp_path / "x", {"a": torch.zeros(2)}, {})
    before = (tmp_path / "x").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors_file, "as_bytes", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'x'}'"):
        save_safetensors(tmp_path / "x", {"a": torch.ones(2)}, {})
    assert (tmp_path / "x").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        dit, vae, _ = toys.networks()
        save_dit(dit, tmp_path / "dit")
        save_vae(vae, tmp_path / "vae")
        convert(tmp_path / "dit", tmp_path / "dit.safetensors")
        network = tiny_training.network().requires_grad_(False)
        Lora(network, LoraSettings(rank=1), 0).save(tmp_path / "lora.safetensors", torch.float32)
        stream = toys.stream(None)
        list(stream.push(toys.frames(33)))
        stream.state.save(tmp_path / "state.safetensors")
    finally:
        os.umask(before)
    assert StreamState.load(tmp_path / "state.safetensors").frames_in == 33
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {
        path.name: 0o666 & ~umask for path in files
    }
