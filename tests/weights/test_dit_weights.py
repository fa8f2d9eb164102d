"""Transformer files: their config in every broken form, sizes from shapes, stored dtypes, folders."""

import json
from dataclasses import replace

import golden_files
import pytest
import torch
import toys
from safetensors.torch import save_file
from sana_streaming.sana_core.config import DIT_PRESETS, DiTConfig, softmax_layer_indices
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.weights.checkpoint import shapes
from sana_streaming.sana_core.weights.dit import (
    DEAD_KEYS,
    load_dit,
    official_shapes,
    official_state,
    read_dit,
    save_dit,
)
from sana_streaming.sana_core.weights.dit_sizes import infer_config
from sana_streaming.sana_core.weights.locate import locate
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

TOY = toys.CONFIGS["dit"]


@pytest.fixture(scope="module")
def state():
    return {key: value.contiguous() for key, value in official_state(toys.networks()[0])}


def refused(call, *arguments):
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_VALUES = [
    ("depth", "x", "of type int"),
    ("depth", 4.0, "of type int"),
    ("depth", True, "of type int"),
    ("depth", 0, "positive"),
    ("hidden_size", None, "of type int"),
    ("hidden_size", -224, "positive"),
    ("in_channels", [16], "of type int"),
    ("source_channels", 0, "positive"),
    ("pos_embed_size", -1, "positive"),
    ("num_heads", 0, "positive"),
    ("num_heads", 3, "such that hidden_size 224 is heads of an even width"),
    ("num_heads", 32, "such that hidden_size 224 is heads of an even width"),
    ("softmax_layers", None, "a list"),
    ("softmax_layers", 3, "a list"),
    ("softmax_layers", ["3"], "of type int"),
    ("softmax_layers", [[3]], "of type int"),
    ("softmax_layers", [4], "from 0 to 3"),
    ("softmax_layers", [-1], "from 0 to 3"),
    ("variant", "weird", "one of streaming, bidirectional"),
    ("variant", 1, "of type str"),
    ("mlp_ratio", "2", "of type float"),
    ("mlp_ratio", 0, "1 or more channels"),
    ("mlp_ratio", -2.0, "1 or more channels"),
    ("mlp_ratio", float("nan"), "1 or more channels"),
    ("mlp_ratio", 1e307, "1 or more channels"),
]


@pytest.mark.parametrize("place", ["inside", "beside"])
@pytest.mark.parametrize(("key", "value", "accepted"), BAD_VALUES)
def test_bad_sizes_in_a_config_name_file_key_and_value(state, tmp_path, key, value, accepted, place):
    text = json.dumps(TOY.to_dict() | {key: value})
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"config": text} if place == "inside" else None)
    (tmp_path / "config.json").write_text(text if place == "beside" else "{}")
    message = refused(load_dit, path)
    assert f"DiT config has {key} = " in message and accepted in message
    assert repr(value).strip("[]") in message
    assert str(path if place == "inside" else tmp_path / "config.json") in message
    assert "use the config" in message


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "not JSON"), ("", "not JSON"), ("[]", "list, not"), ("7", "int, not"), ("null", "None")]
)
def test_a_damaged_config_names_its_file(state, tmp_path, text, reason):
    save_file(state, tmp_path / "x.safetensors", metadata={"config": text})
    message = refused(load_dit, tmp_path / "x.safetensors")
    assert "x.safetensors" in message and reason in message and "download it again" in message
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path / "config.json") in refused(load_dit, tmp_path)


def test_the_constructor_refuses_what_files_may_not_say():
    for key, value in (("variant", "weird"), ("num_heads", 0), ("num_heads", 3), ("softmax_layers", (20,))):
        assert f"{key} = {value!r}" in refused(lambda k=key, v=value: DiTConfig(**{k: v}))


# Sizes from shapes


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("x_embedder.proj.weight", (224,)),
        ("x_embedder.proj.weight", ()),
        ("x_embedder.proj.weight", (0, 32, 1, 1, 1)),
        ("x_embedder.proj.weight", (224, 16, 1, 1, 1)),
        ("final_layer.linear.weight", ()),
        ("final_layer.linear.weight", (0, 224)),
        ("y_embedder.y_proj.fc1.weight", (224,)),
        ("y_embedder.y_embedding", ()),
        ("blocks.0.mlp.inverted_conv.conv.weight", ()),
        ("blocks.0.mlp.inverted_conv.conv.weight", (1, 224, 1, 1)),
        ("blocks.0.attn.A_log", ()),
        ("blocks.0.attn.A_log", (32,)),
        ("blocks.3.attn.q.weight", ()),
        ("blocks.3.attn.q.weight", (224,)),
        ("pos_embed", (224,)),
        ("pos_embed", (1, 0, 224)),
    ],
)
def test_misshapen_keys_are_refused_without_a_config(state, tmp_path, key, shape):
    """None of them stops the reader by itself: a file that says nothing else wrong is refused by its keys."""
    save_file(state | {key: torch.zeros(shape)}, tmp_path / "x.safetensors")
    refused(read_dit, tmp_path / "x.safetensors")


@pytest.mark.parametrize("key", ["x_embedder.proj.weight", "blocks.0.attn.A_log", "pos_embed"])
def test_the_misshapen_key_is_named(key):
    shapes_of = dict(official_shapes(TOY)) | {key: (5, 5)}
    message = refused(infer_config, shapes_of, "some.pth")
    assert f"some.pth has {key} of shape (5, 5)" in message


@pytest.mark.parametrize("inner", [15, 30, 49, 66])
def test_widths_that_are_no_round_multiple_come_back(inner):
    """15 / 22 * 22 is a little less than 15 in floating point."""
    config = replace(TOY, hidden_size=22, num_heads=1, mlp_ratio=inner / 22)
    listed = official_shapes(config)
    assert listed["blocks.0.mlp.inverted_conv.conv.weight"] == (2 * inner, 22, 1, 1)
    assert infer_config(listed, "x") == config


def test_every_width_comes_back():
    for width in range(2, 130, 2):
        for inner in range(1, 4 * width):
            assert DiTConfig(hidden_size=width, num_heads=1, mlp_ratio=inner / width).mlp_width == inner


def without_blocks(listed, *gone):
    return {key: shape for key, shape in listed.items() if not key.startswith(tuple(f"blocks.{i}." for i in gone))}


@pytest.mark.parametrize(("depth", "ratio"), [(4, 0.25), (8, 0.25), (5, 0.2), (6, 0.5), (7, 0.5), (30, 0.4), (3, 1.0)])
def test_released_spacing_is_recognised(depth, ratio):
    softmax = softmax_layer_indices(depth, ratio)
    config = replace(TOY, depth=depth, softmax_layers=softmax)
    listed = official_shapes(config)
    if len(softmax) == depth:
        # Without a single gated block nothing tells the number of heads.
        assert "0 heads" in refused(infer_config, listed, "x")
    else:
        assert infer_config(listed, "x") == config


@pytest.mark.parametrize("gone", [(7,), (6, 7), (5, 6, 7), (2,), (0, 1)])
def test_a_file_that_lost_blocks_is_not_taken_for_a_shallower_network(gone):
    listed = official_shapes(replace(TOY, depth=8, softmax_layers=(3, 7)))
    message = refused(infer_config, without_blocks(listed, *gone), "cut.pth")
    assert "cut.pth" in message
    if 0 not in gone:
        assert "blocks are missing" in message and "config.json" in message


def test_a_file_that_lost_a_softmax_block_misses_its_keys(tmp_path):
    listed = without_blocks(official_shapes(replace(TOY, depth=8, softmax_layers=(3, 7))), 3)
    save_file({key: torch.zeros(shape) for key, shape in listed.items()}, tmp_path / "x.safetensors")
    assert "missing: blocks.3." in refused(read_dit, tmp_path / "x.safetensors")


def test_the_remedy_for_sizes_that_do_not_follow_works(tmp_path):
    """With its config beside it the same file loads."""
    config = replace(TOY, softmax_layers=(1,))
    tensors = {key: torch.zeros(shape) for key, shape in official_shapes(config).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "config.json" in refused(read_dit, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert read_dit(tmp_path)[1] == config


@pytest.mark.golden
@pytest.mark.parametrize("name", ["streaming_forward", "bidirectional_forward", "streaming_sampler"])
def test_official_files_need_no_config(name):
    case, tensors = golden_files.load(f"dit/{name}.safetensors")
    config = infer_config(shapes(golden_files.weights(tensors)), name)
    assert (config.depth, config.variant) == (case["depth"], case["kind"])
    assert config.softmax_layers == tuple(case["softmax_layer_indices"])


def test_presets_need_no_config():
    for preset in DIT_PRESETS.values():
        assert infer_config(official_shapes(preset), "x") == preset


# Stored dtypes


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_quantized_weights_are_refused(state, tmp_path, dtype, suffix):
    key = "blocks.0.attn.q.weight"
    # Scales that come with quantized weights are not the news.
    stored = state | {key: torch.ones(state[key].shape).to(dtype), "blocks.0.attn.q.scale": torch.ones(1)}
    path = tmp_path / f"x{suffix}"
    save_file(stored, path) if suffix == ".safetensors" else torch.save(stored, path)
    message = refused(read_dit, path)
    assert f"stores 1 tensors as other than float32, float16 or bfloat16: {key} {dtype}; use a file" in message


def test_unused_buffers_may_be_stored_in_any_way(state, tmp_path):
    listed = official_shapes(TOY)
    dead = {key: torch.zeros(listed[key], dtype=torch.float64) for key in DEAD_KEYS}
    save_file(state | dead, tmp_path / "x.safetensors")
    assert read_dit(tmp_path / "x.safetensors")[1] == TOY


# Folders


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("bundle"))


def test_every_loader_takes_the_bundle_and_its_own_folder(bundle):
    for folder in (bundle, str(bundle), bundle / "dit", bundle / "dit" / "model.safetensors"):
        assert load_dit(folder).fingerprint == load_dit(bundle / "dit").fingerprint
        assert read_dit(folder)[1].depth == 4
    for folder in (bundle, str(bundle), bundle / "vae"):
        assert load_vae(folder).fingerprint == load_vae(bundle / "vae").fingerprint
    rows = GemmaTextEncoder(bundle / "text_encoder").encode("a cat").rows
    for folder in (bundle, str(bundle)):
        assert torch.equal(GemmaTextEncoder(folder).encode("a cat").rows, rows)
    found = locate(bundle, bundle, bundle)
    assert (found.model, found.vae, found.text_encoder) == (bundle / "dit" / "model.safetensors", bundle, bundle)
    assert locate(bundle / "dit").text_encoder == bundle / "text_encoder"


def test_a_folder_with_one_checkpoint_of_any_form(state, tmp_path):
    message = refused(load_dit, tmp_path)
    assert str(tmp_path) in message and "name the file" in message
    torch.save(state, tmp_path / "sana.pth")
    (tmp_path / "notes.txt").write_text("x")
    # Without the unused buffer its size is the released one.
    expected = replace(TOY, pos_embed_size=22)
    assert read_dit(tmp_path)[1] == expected == read_dit(locate(tmp_path, tmp_path, tmp_path).model)[1]
    torch.save(state, tmp_path / "other.pth")
    assert "no single transformer checkpoint" in refused(read_dit, tmp_path)
    save_dit(toys.networks()[0], tmp_path)
    assert read_dit(tmp_path)[1] == TOY


def test_a_folder_of_shards(state, tmp_path):
    names = {key: f"{'ab'[index % 2]}.safetensors" for index, key in enumerate(state)}
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, tmp_path / name)
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert set(read_dit(tmp_path)[0]) == set(state)


@pytest.mark.parametrize(
    "shard", [None, 5, 1.5, True, ["a.safetensors"], {"a": 1}, "", ".", "..", "../a.safetensors", "/a.safetensors", "a"]
)
def test_an_index_with_other_things_than_shard_names(tmp_path, shard):
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"final_layer.linear.bias": "a.safetensors", "pos_embed": shard}}))
    message = refused(read_dit, index)
    assert f"{index} names the shard {shard!r} for pos_embed" in message and "copy the index again" in message


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a.safetensors"]}, {"weight_map": None}])
def test_an_index_without_shards(tmp_path, content):
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps(content))
    assert "has no weight_map" in refused(read_dit, index)
