"""Weight files: containers, wrappers, strictness, and the release's layout in and out."""

import json
import pickle

import golden_dit
import golden_files
import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.config import DIT_PRESETS, DiTConfig, softmax_layer_indices
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.weights.checkpoint import fingerprint, read_checkpoint, unwrap
from sana_streaming.sana_core.weights.dit import DEAD_KEYS, load_dit, official_shapes, official_state, save_dit


@pytest.mark.golden
def test_official_wrappers():
    """As the release unwraps, but prefixes under ``state_dict`` are taken off too."""
    for case in golden_files.load_json("text/checkpoint_keys.json")["cases"]:
        expected = case["normalised"]
        inside = case["checkpoint"].get("generator", case["checkpoint"])
        if "state_dict" in inside:
            expected = {k.removeprefix("model.").removeprefix("module."): v for k, v in expected.items()}
        assert unwrap(case["checkpoint"]) == expected


def official_tensors():
    _, tensors = golden_files.load("dit/streaming_forward.safetensors")
    return golden_files.weights(tensors)


WRAPPERS = {
    "bare": lambda state: state,
    "generator": lambda state: {"generator": {f"model.{k}": v for k, v in state.items()}, "critic": {}, "step": 5},
    "state_dict": lambda state: {"state_dict": state, "state_dict_ema": {}, "epoch": 1},
    "both prefixes": lambda state: {"state_dict": {f"model.module.{k}": v for k, v in state.items()}},
}


@pytest.mark.golden
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_torch_files_of_every_form_load(tmp_path, wrapper, stored):
    state = {key: value.to(stored) for key, value in official_tensors().items()}
    torch.save(WRAPPERS[wrapper](state), tmp_path / "dit.pth")
    model = load_dit(tmp_path / "dit.pth", dtype=torch.float32)
    written = dict(official_state(model))
    for key, value in written.items():
        expected = state[key].float()
        if value.ndim == 3 and value.shape[-1] == 3:
            value, expected = value[..., 1], expected[..., 1]
        assert torch.equal(value, expected), key
    assert set(written) == set(state) - DEAD_KEYS


@pytest.mark.golden
def test_sharded_safetensors_load(tmp_path):
    state = official_tensors()
    keys = sorted(state)
    shards = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, members in shards.items():
        save_file({key: state[key] for key in members}, tmp_path / name)
    index = {"weight_map": {key: name for name, members in shards.items() for key in members}}
    (tmp_path / "dit.safetensors.index.json").write_text(json.dumps(index))
    model = load_dit(tmp_path / "dit.safetensors.index.json", dtype=torch.float32)
    _, _, expected = golden_dit.load("streaming_forward")
    assert model.fingerprint == expected.fingerprint
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="b.safetensors does not exist"):
        load_dit(tmp_path / "dit.safetensors.index.json")


@pytest.mark.golden
@pytest.mark.parametrize("name", ["streaming_forward", "bidirectional_forward"])
def test_fused_and_split_save_the_same_file(tmp_path, name):
    files = []
    for layout in ("fused", "split"):
        _, tensors, model = golden_dit.load(name, layout)
        files.append(save_dit(model, tmp_path / layout))
    assert files[0].read_bytes() == files[1].read_bytes()
    saved, official = load_file(files[0]), golden_files.weights(tensors)
    assert set(saved) == set(official)
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in official.items()}
    again = load_dit(tmp_path / "fused", dtype=torch.float32)
    for key, value in again.state_dict().items():
        assert torch.equal(value, load_dit(files[1], dtype=torch.float32).state_dict()[key]), key


def test_presets_have_the_released_keys():
    """588 keys; parameters, dead buffers and dead taps as counted in the release."""
    counts = {"streaming-2b": (2_259_529_648, 2_261_305_008), "bidirectional-2b": (2_159_177_648, 2_160_953_008)}
    for name, (parameters, with_buffers) in counts.items():
        keys = official_shapes(DIT_PRESETS[name])
        sizes = {key: np.prod(shape, dtype=np.int64) for key, shape in keys.items()}
        assert len(keys) == 588
        assert sum(sizes.values()) == with_buffers
        assert sum(size for key, size in sizes.items() if key not in DEAD_KEYS) == parameters
    streaming = official_shapes(DIT_PRESETS["streaming-2b"])
    assert streaming["pos_embed"] == (1, 484, 2240)
    assert streaming["y_embedder.y_embedding"] == (300, 2304)
    assert streaming["x_embedder.proj.weight"] == (2240, 256, 1, 1, 1)
    assert streaming["blocks.3.attn.q.weight"] == (2240, 2240, 3)
    assert streaming["blocks.0.attn.q.weight"] == (2240, 2240, 1)
    assert streaming["blocks.0.mlp.t_conv.weight"] == (2240, 2240, 3, 1)
    assert streaming["blocks.0.mlp.depth_conv.conv.weight"] == (13440, 1, 3, 3)
    assert official_shapes(DIT_PRESETS["bidirectional-2b"])["blocks.3.attn.q.weight"] == (2240, 2240)


@pytest.mark.parametrize(("depth", "ratio", "expected"), [(20, 0.25, (3, 7, 11, 15, 19)), (4, 0.25, (3,)), (8, 0, ())])
def test_softmax_blocks(depth, ratio, expected):
    assert softmax_layer_indices(depth, ratio) == expected


class TestRefusals:
    @pytest.fixture
    def state(self):
        return dict(official_state(toys.networks()[0]))

    def load(self, state, tmp_path, config=True):
        metadata = {"config": json.dumps(toys.CONFIGS["dit"].to_dict())} if config else None
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "x.safetensors", metadata=metadata)
        return load_dit(tmp_path / "x.safetensors")

    def test_every_kind_of_wrong_key_in_one_message(self, state, tmp_path):
        missing = [key for key in state if ".cross_attn." in key]
        for key in missing:
            del state[key]
        state["stranger"] = torch.zeros(2)
        state["final_layer.linear.bias"] = torch.zeros(3)
        with pytest.raises(CheckpointError) as error:
            self.load(state, tmp_path)
        message = str(error.value)
        assert "\n" not in message
        assert f"{len(missing)} missing: {'; '.join(sorted(missing)[:10])}; ..." in message
        assert sorted(missing)[10] not in message
        assert "1 surplus: stranger" in message
        assert "1 misshapen: final_layer.linear.bias (3,), expected (16,)" in message

    def test_half_a_checkpoint(self, state, tmp_path):
        half = dict(list(state.items())[: len(state) // 2])
        with pytest.raises(CheckpointError, match="missing"):
            self.load(half, tmp_path)
        with pytest.raises(CheckpointError, match="incomplete SANA-Streaming transformer: missing"):
            self.load({k: v for k, v in state.items() if "final_layer" not in k}, tmp_path, config=False)

    def test_released_width_has_released_depth(self):
        """Blocks that are absent altogether are missed, not taken for a shallower network."""
        from sana_streaming.sana_core.weights.dit_sizes import infer_config

        shapes = {k: s for k, s in official_shapes(DIT_PRESETS["streaming-2b"]).items() if "blocks.19" not in k}
        assert infer_config(shapes, "x") == DIT_PRESETS["streaming-2b"]

    def test_another_network(self, tmp_path):
        vae = toys.networks()[1]
        with pytest.raises(CheckpointError, match="not a SANA-Streaming transformer.*its first keys are"):
            self.load(vae.state_dict(), tmp_path, config=False)

    def test_a_file_cut_short(self, state, tmp_path):
        self.load(state, tmp_path)
        whole = (tmp_path / "x.safetensors").read_bytes()
        (tmp_path / "x.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_dit(tmp_path / "x.safetensors")
        torch.save(state, tmp_path / "x.pth")
        whole = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="not a whole torch weight file"):
            load_dit(tmp_path / "x.pth")

    @pytest.mark.parametrize(("name", "content"), [("a.pth", b"hello"), ("a.safetensors", b"hello"), ("a.pth", b"")])
    def test_no_checkpoint_at_all(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is not a"):
            read_checkpoint(tmp_path / name)

    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
                "is a Git LFS pointer to the weights; run git lfs",
            ),
            (b"\n<!DOCTYPE html><html>", "is a web page; download the file itself"),
        ],
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_what_a_browser_or_git_leaves_in_its_place(self, tmp_path, suffix, start, expected):
        (tmp_path / f"a.{suffix}").write_bytes(start)
        with pytest.raises(CheckpointError, match=expected):
            read_checkpoint(tmp_path / f"a.{suffix}")

    def test_only_copies_that_are_not_used(self, state, tmp_path):
        torch.save({"generator_ema": state, "critic": state, "step": 3}, tmp_path / "a.pth")
        with pytest.raises(
            CheckpointError, match="no tensors .* whose keys are generator_ema, critic, step; EMA copies are"
        ):
            read_checkpoint(tmp_path / "a.pth")

    def test_shards_of_another_release(self, state, tmp_path):
        keys = sorted(state)
        save_file({key: state[key].contiguous() for key in keys[1:]}, tmp_path / "a.safetensors")
        index = {"weight_map": dict.fromkeys(keys[:-1], "a.safetensors")}
        (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(
            CheckpointError, match=f"do not belong together: 2 keys are in one only, {keys[0]}; {keys[-1]}"
        ):
            read_checkpoint(tmp_path / "a.safetensors.index.json")

    def test_other_paths(self, tmp_path):
        with pytest.raises(CheckpointError, match="gone.pth does not exist"):
            read_checkpoint(tmp_path / "gone.pth")
        (tmp_path / "a.gguf").write_bytes(b"x")
        with pytest.raises(CheckpointError, match="accepted are .safetensors"):
            read_checkpoint(tmp_path / "a.gguf")

    def test_python_objects_are_never_executed(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        with (tmp_path / "evil.pth").open("wb") as file:
            pickle.dump({"weights": Payload()}, file)
        with pytest.raises(CheckpointError, match="never executed"):
            read_checkpoint(tmp_path / "evil.pth")
        assert not (tmp_path / "executed").exists()

    def test_unknown_config_key(self):
        with pytest.raises(CheckpointError, match=r"unknown keys \['wings'\]"):
            DiTConfig.from_dict({"wings": 2})


def test_fingerprints_tell_networks_apart():
    state = dict(official_state(toys.networks()[0]))
    first = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == first
    state["final_layer.linear.bias"] = state["final_layer.linear.bias"] + 1
    assert fingerprint(state) != first
