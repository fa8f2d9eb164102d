import json
import logging
import math
import socket
from pathlib import Path

import pytest
import single_files
import torch
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.models.gemma_files import GEMMA_2_2B, decoder_shapes, open_gemma, weights_kind
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder


@pytest.fixture(scope="module")
def single(toy, tmp_path_factory):
    """The toy encoder as a single file."""
    return single_files.write_single_file(toy, tmp_path_factory.mktemp("single") / "toy.safetensors")


def test_the_sizes_are_those_of_gemma_2_2b():
    shapes = decoder_shapes(GEMMA_2_2B)
    assert len(shapes) == 288
    assert sum(math.prod(shape) for shape in shapes.values()) == 2_614_341_888


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_embeddings_as_from_the_folder(toy, single, dtype, monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with GemmaTextEncoder(toy, dtype=dtype) as folder, GemmaTextEncoder(single, dtype=dtype) as file:
        assert file.hidden_size == folder.hidden_size and (file.path, file.folder) == (single, single.parent)
        assert file.weight_bytes == single.stat().st_size and not file.is_loaded
        for ours, theirs in (
            (
                file.encode("Replace the sky\nwith 2 suns", motion_score=3),
                folder.encode("Replace the sky\nwith 2 suns", motion_score=3),
            ),
            (file.encode_negative("  naïve <pad> blur"), folder.encode_negative("  naïve <pad> blur")),
        ):
            assert torch.equal(ours.embeds, theirs.embeds) and torch.equal(ours.mask, theirs.mask)
            assert ours.embeds.dtype == dtype and ours.embeds.any()
        assert file.is_loaded
    assert not file.is_loaded


def test_soft_cap_reaches_the_model(single):
    weak, strong = (
        GemmaTextEncoder(single, dtype=torch.float32, soft_cap=cap).encode("a cat") for cap in (False, True)
    )
    assert (weak.embeds - strong.embeds).abs().max() > 0


def test_other_dtypes_and_an_output_head_change_nothing(toy, single, tmp_path):
    def widen(tensors):
        for key in tensors:
            if key != "spiece_model":
                tensors[key] = tensors[key].float()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    wide = single_files.write_single_file(toy, tmp_path / "wide.safetensors", change=widen)
    assert torch.equal(GemmaTextEncoder(wide).encode("a cat").embeds, GemmaTextEncoder(single).encode("a cat").embeds)


# Refusals


def without(*keys):
    def change(tensors):
        for key in keys:
            del tensors[key]

    return change


def replaced(key, value):
    return lambda tensors: tensors.update({key: value})


def quantized(tensors):
    key = "model.layers.0.mlp.up_proj.weight"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)


def without_a_layer(tensors):
    for key in [key for key in tensors if "layers.1." in key]:
        del tensors[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.layers.0.post_feedforward_layernorm.weight"), "is not a Gemma 2 text encoder"),
        (replaced("model.layers.0.self_attn.q_norm.weight", torch.zeros(4)), "is Gemma 3, not Gemma 2"),
        (quantized, "is quantized"),
        (replaced("model.layers.0.mlp.up_proj.weight_scale", torch.ones(1)), "is quantized"),
        (without("spiece_model"), "has no tokenizer inside"),
        (replaced("spiece_model", torch.zeros(4)), "not made of bytes"),
        (without_a_layer, "11 missing: model.layers.1"),
        (replaced("model.norm.weight", torch.zeros(3).bfloat16()), "1 misshapen: model.norm.weight"),
        (replaced("visual.weight", torch.zeros(3).bfloat16()), "1 surplus: visual.weight"),
    ],
)
def test_an_unusable_file_is_refused_at_once(toy, tmp_path, change, message):
    path = single_files.write_single_file(toy, tmp_path / "odd.safetensors", change=change)
    with pytest.raises(CheckpointError, match=message) as caught:
        GemmaTextEncoder(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        # Without a config the sizes must be those of gemma-2-2b.
        ({"format": "pt"}, "misshapen: model.embed_tokens.weight"),
        ({"config": "{"}, "metadata 'config' that is not JSON"),
        ({"config": '{"model_type": "gemma3"}'}, "model_type 'gemma3', not 'gemma2'"),
        ({"config": json.dumps(GEMMA_2_2B | {"head_dim": 0})}, "head_dim 0 in its config"),
    ],
)
def test_an_unusable_config_is_refused_at_once(toy, tmp_path, metadata, message):
    path = single_files.write_single_file(toy, tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        GemmaTextEncoder(path)


def test_damaged_contents_are_refused(toy, single, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(single.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        GemmaTextEncoder(cut)
    with pytest.raises(CheckpointError, match="is not a folder or a file"):
        GemmaTextEncoder(tmp_path / "absent.safetensors")
    garbled = single_files.write_single_file(
        toy, tmp_path / "garbled.safetensors", change=replaced("spiece_model", torch.full((9,), 255, dtype=torch.uint8))
    )
    with pytest.raises(CheckpointError, match="no readable SentencePiece model"):
        GemmaTextEncoder(garbled).encode("a cat")
    long = [*single_files.pieces_of(toy), *((f"x{index}", -9999, single_files.NORMAL) for index in range(3))]
    data = torch.tensor(list(single_files.sentence_piece(long)), dtype=torch.uint8)
    too_long = single_files.write_single_file(toy, tmp_path / "long.safetensors", change=replaced("spiece_model", data))
    with pytest.raises(CheckpointError, match="tokens, the model"):
        GemmaTextEncoder(too_long).encode("a cat")


# Which model it is


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("text_encoders/gemma_2_2b_it_elm_bf16.safetensors", "instruct"),
        ("gemma-2-2b-it", "instruct"),
        ("hub/models--Efficient-Large-Model--gemma-2-2b-it/snapshots/0123abc", "instruct"),
        ("gemma-2-2b-it/text_encoder", "instruct"),
        ("Gemma2-2B-Instruct-bf16.safetensors", "instruct"),
        ("text_encoders/gemma_2_2b_fp16.safetensors", "base"),
        ("gemma-2-2b", "base"),
        ("hub/models--google--gemma-2-2b/snapshots/0123abc", "base"),
        ("gemma_2_2b_italian.safetensors", "base"),
        ("gemma-2-2b/other/encoder", "unknown"),
        ("my_encoder.safetensors", "unknown"),
        ("gemma-2-27b", "unknown"),
        ("gemma-2-2bn", "unknown"),
    ],
)
def test_the_name_tells_the_model(path, kind):
    assert weights_kind(Path(path)) == kind


def test_the_base_model_is_warned_of_once(toy, tmp_path, caplog):
    base = single_files.write_single_file(toy, tmp_path / "gemma_2_2b_fp16.safetensors")
    for _ in range(2):
        assert GemmaTextEncoder(base).weights_kind == "base"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(base) in record.getMessage() and "gemma_2_2b_it_elm_bf16.safetensors" in record.getMessage()
    caplog.clear()
    instruct = base.rename(tmp_path / "gemma_2_2b_it.safetensors")
    assert GemmaTextEncoder(instruct).weights_kind == "instruct"
    assert GemmaTextEncoder(toy).weights_kind == "unknown"
    assert not caplog.records


def test_the_tokenizer_alone_reads_no_weights(toy, tmp_path):
    """A real file has 5 GB: the header and the tokenizer come first, the weights when they are needed."""
    path = single_files.write_single_file(toy, tmp_path / "toy.safetensors")
    source = open_gemma(path)
    weights = load_file(path)
    save_file({"spiece_model": weights["spiece_model"]}, path)
    assert source.load_tokenizer().token_to_id("<bos>") == 2
    with pytest.raises(CheckpointError, match="lacks"):
        source.load_model(torch.float32, soft_cap=False)
