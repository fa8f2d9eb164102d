import hashlib
import json
import logging
import shutil
import socket
import warnings
from pathlib import Path

import golden_files
import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.models.prompt import PromptEmbedding, plan_tokens, prompt_text
from sana_streaming.sana_core.models.text_encoder import (
    DEFAULT_NEGATIVE_PROMPT,
    MAX_TEXT_TOKENS,
    PROMPT_PREFIX,
    GemmaTextEncoder,
)

GEMMA = golden_files.GOLDEN / "text/tiny_gemma2"
EXPECTED = golden_files.load_json("text/tiny_gemma2_expected.json")
CASES = {f"{'case' if case['use_chi_prompt'] else ''}{case['case']}": case for case in EXPECTED["cases"]}


def encode(encoder, case):
    if case["use_chi_prompt"]:
        return encoder.encode(case["prompt"], motion_score=case["motion_score"])
    return encoder.encode_negative(case["prompt"])


# Reference vectors


@pytest.mark.golden
def test_prompt_constants():
    expected = golden_files.load_json("text/prompt_constants.json")
    assert PROMPT_PREFIX.split("\n") == expected["chi_prompt_lines"]
    assert expected["joined"] == PROMPT_PREFIX and expected["joined_characters"] == len(PROMPT_PREFIX)
    assert hashlib.sha256(PROMPT_PREFIX.encode()).hexdigest() == expected["joined_utf8_sha256"]
    assert expected["default_negative_prompt"] == DEFAULT_NEGATIVE_PROMPT
    assert expected["model_max_length"] == MAX_TEXT_TOKENS
    assert prompt_text(" a cat\n", 7) == "a cat" + expected["motion_score_suffix"].format(score=7)
    assert prompt_text(" a cat\n", 0) == "a cat"


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_files.load_json("text/token_lengths.json")["cases"])
def test_token_lengths(case):
    sequence = case["sequence_tokens_before_truncation"]
    plan = plan_tokens(sequence, case["chi_tokens_incl_bos_and_trailing_space"], case["model_max_length"])
    assert plan.padded_length == case["padded_length"]
    assert [0, plan.first_row] == case["select_first_positions"]
    assert plan.padded_length - 1 == case["select_last_position"]
    assert 1 + plan.padded_length - plan.first_row == case["output_rows"]
    assert plan.num_tokens == case["mask_sum"]
    assert plan.truncated_tokens == case["truncated_tokens"]
    assert plan.padded_length - (sequence - plan.truncated_tokens) == case["pad_tokens"]


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_files.load_json("text/token_lengths.json")["no_chi"])
def test_token_lengths_without_a_prefix(case):
    sequence = case["prompt_tokens_incl_bos"]
    plan = plan_tokens(sequence, None, case["model_max_length"])
    assert plan.padded_length == case["padded_length"]
    assert 1 + plan.padded_length - plan.first_row == case["output_rows"]
    assert plan.num_tokens == case["mask_sum"]
    assert plan.truncated_tokens == sequence - case["mask_sum"]


@pytest.fixture(scope="module", params=[False, True], ids=["no_soft_cap", "soft_cap"])
def gemma(request):
    length = EXPECTED["model_max_length"]
    with GemmaTextEncoder(GEMMA, dtype=torch.float32, soft_cap=request.param, max_text_tokens=length) as encoder:
        yield encoder


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_tiny_gemma(gemma, name):
    case, (_, tensors) = CASES[name], golden_files.load("text/tiny_gemma2_expected.safetensors")
    result, rows = encode(gemma, case), tensors[f"{name}.prompt_embeds"]

    assert result.embeds.shape == (1, EXPECTED["model_max_length"], gemma.hidden_size)
    assert result.embeds.dtype == torch.float32 and result.mask.dtype == torch.bool
    assert torch.equal(result.mask[0].int(), tensors[f"{name}.mask"])
    assert result.num_tokens == case["valid_tokens"] == result.mask.sum()
    assert not result.embeds[0, result.num_tokens :].any()
    assert bool(result.truncated_tokens) == case.get("truncated", False)

    error = (result.rows - rows).abs().max().item()
    if not gemma.soft_cap:
        assert error <= EXPECTED["tolerance_fp32"]
    elif "max_abs_diff_if_softcap_applied" in case:
        assert error == pytest.approx(case["max_abs_diff_if_softcap_applied"], rel=0.02, abs=EXPECTED["tolerance_fp32"])


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_tiny_gemma_tokens(name):
    case, (_, tensors) = CASES[name], golden_files.load("text/tiny_gemma2_expected.safetensors")
    encoder = GemmaTextEncoder(GEMMA, max_text_tokens=EXPECTED["model_max_length"])
    if case["use_chi_prompt"]:
        text = prompt_text(case["prompt"], case["motion_score"])
        assert text == case["text_sent_after_chi"]
        ids, _, plan = encoder.tokenize(text)
        prefix_tokens = encoder.tokenize(PROMPT_PREFIX, prefix=None)[1].sum()
        assert prefix_tokens == EXPECTED["chi_tokens_including_bos_and_trailing_space"]
        assert plan.truncated_tokens == max(0, case["untruncated_length"] - case["padded_length"])
    else:
        ids, _, plan = encoder.tokenize(case["prompt"], prefix=None)
    assert plan.padded_length == case["padded_length"]
    assert torch.equal(ids[0].int(), tensors[f"{name}.input_ids"])
    assert not encoder.is_loaded


# Encoding


def test_padding_is_on_the_right_though_the_folder_says_left(toy):
    assert json.loads((toy / "tokenizer_config.json").read_text())["padding_side"] == "left"
    ids, mask, plan = GemmaTextEncoder(toy).tokenize("a cat", prefix=None)
    assert ids.shape == mask.shape == (1, plan.padded_length) == (1, MAX_TEXT_TOKENS)
    assert ids[0, 0] == 2 and (ids[0, :3] > 1).all() and not ids[0, 3:].any()
    assert mask[0].tolist() == [1] * 3 + [0] * (MAX_TEXT_TOKENS - 3)


def test_the_spelling_of_pad_in_a_prompt_is_not_padding(toy):
    _, mask, plan = GemmaTextEncoder(toy).tokenize("a<pad><pad>cat", prefix=None)
    assert plan.num_tokens == mask.sum() == mask[0].argmin() > 4


def test_same_result_from_shards_and_from_a_bare_decoder(toy, copy, tmp_path):
    expected = GemmaTextEncoder(toy).encode("a cat").embeds
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    shards = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(weights)}
    for shard in set(shards.values()):
        part = {key: value for key, value in weights.items() if shards[key] == shard}
        save_file(part, copy / shard, {"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert torch.equal(GemmaTextEncoder(copy).encode("a cat").embeds, expected)

    bare = Path(shutil.copytree(toy, tmp_path / "bare"))
    config = json.loads((bare / "config.json").read_text()) | {"architectures": ["Gemma2Model"]}
    (bare / "config.json").write_text(json.dumps(config))
    save_file({key.removeprefix("model."): value for key, value in weights.items()}, bare / "model.safetensors")
    assert torch.equal(GemmaTextEncoder(bare).encode("a cat").embeds, expected)

    # An untied output head, as some copies carry one, changes nothing.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, bare / "model.safetensors", {"format": "pt"})
    assert torch.equal(GemmaTextEncoder(bare).encode("a cat").embeds, expected)


def test_weight_bytes_counts_the_weights_and_nothing_else(toy, copy):
    expected = sum(value.nbytes for value in load_file(toy / "model.safetensors").values())
    stored = (toy / "model.safetensors").stat().st_size
    encoder = GemmaTextEncoder(toy)
    assert encoder.weight_bytes == stored and not encoder.is_loaded
    # All but a header of names and shapes.
    assert 0 < stored - expected < 10_000
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = {key: f"part-{index % 3}.safetensors" for index, key in enumerate(weights)}
    for name in set(names.values()):
        save_file({key: weights[key] for key in weights if names[key] == name}, copy / name)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (copy / "unlisted.safetensors").write_bytes(bytes(1000))
    assert GemmaTextEncoder(copy).weight_bytes == sum((copy / name).stat().st_size for name in set(names.values()))


def test_loads_late_without_network_and_unloads(toy, monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with GemmaTextEncoder(str(toy)) as encoder:
        assert not encoder.is_loaded and encoder.hidden_size == 64
        embedding = encoder.encode("")
        assert encoder.is_loaded
    assert not encoder.is_loaded
    assert embedding.num_tokens == 2 and embedding.embeds.dtype == torch.bfloat16
    assert torch.equal(encoder.encode("").embeds, embedding.embeds)


@pytest.fixture
def loud():
    """transformers' logging at its most talkative, and the progress bars of the hub off by the user's choice."""
    import huggingface_hub.utils as hub
    from transformers.utils import logging as transformers_logging

    verbosity, no_bars = transformers_logging.get_verbosity(), hub.are_progress_bars_disabled()
    transformers_logging.set_verbosity_debug()
    hub.disable_progress_bars()
    yield lambda: (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        hub.are_progress_bars_disabled(),
    )
    transformers_logging.set_verbosity(verbosity)
    if not no_bars:
        hub.enable_progress_bars()


def test_loading_prints_nothing_and_leaves_settings_alone(toy, loud, monkeypatch, capfd):
    import transformers

    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)
    load = transformers.Gemma2Model.from_pretrained
    inside = []

    def warn_and_load(*args, **options):
        inside.append(loud())
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        return load(*args, **options)

    monkeypatch.setattr(transformers.Gemma2Model, "from_pretrained", warn_and_load)
    before = loud()
    GemmaTextEncoder(toy).encode("a cat")
    assert inside == [(logging.ERROR, False, True)]
    assert loud() == before == (logging.DEBUG, True, True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("motion_score", [0, 3])
def test_a_cut_prompt_warns_once(toy, caplog, motion_score):
    encoder = GemmaTextEncoder(toy, max_text_tokens=8)
    assert encoder.encode("a cat", motion_score=0).truncated_tokens == 0 and not caplog.records
    result = encoder.encode("a cat " * 4 + "a", motion_score=motion_score)
    suffix = len(encoder.tokenize(" motion score: 3.", None)[0][0, 1:]) if motion_score else 0
    assert suffix in (0, 7) and result.truncated_tokens == 2 + (6 if motion_score else 0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "7 tokens fit" in message and f"{result.truncated_tokens} at the end" in message
    assert ("motion score" in message) == bool(motion_score)
    encoder.encode_negative("a cat " * 4)
    assert len(caplog.records) == 2 and "negative" in caplog.records[1].getMessage()


def test_embedding_moves():
    embedding = PromptEmbedding.from_rows(torch.ones(3, 4), 5, 2)
    half = embedding.to("cpu", torch.bfloat16)
    assert half.embeds.dtype == torch.bfloat16 and half.mask.dtype == torch.bool
    assert (half.num_tokens, half.truncated_tokens) == (3, 2)
    assert embedding.to("meta").mask.device.type == "meta"
    assert torch.equal(embedding.mask, torch.tensor([[True, True, True, False, False]]))


# Folders and options


def test_a_folder_that_holds_the_encoder_folder(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "text_encoder")
    encoder = GemmaTextEncoder(tmp_path)
    assert encoder.folder == tmp_path / "text_encoder"
    assert torch.equal(encoder.encode("a cat").embeds, GemmaTextEncoder(toy).encode("a cat").embeds)
    # A folder with a config of its own is what is meant, whatever else lies in it.
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(CheckpointError, match="gemma3"):
        GemmaTextEncoder(tmp_path)


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def index_of(weight_map):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (drop("config.json"), "has no config.json"),
        (write("config.json", "{"), "not a readable JSON"),
        (write("config.json", '{"model_type": "gemma3"}'), "model_type 'gemma3', not 'gemma2'"),
        (write("config.json", '{"model_type": "gemma2"}'), "hidden_size None"),
        (drop("tokenizer.json"), "has no tokenizer.json"),
        (drop("model.safetensors"), "neither model.safetensors nor"),
        (index_of({}), "has no weight_map"),
        (index_of({"weight_map": {"a": "x-2.safetensors", "b": "x-1.safetensors"}}), "lacks x-1.safetensors, x-2"),
    ],
)
def test_an_unusable_folder_is_refused_at_once(copy, damage, message):
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        GemmaTextEncoder(copy)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def without_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.1." not in k}, folder / "model.safetensors", {"format": "pt"}
    )


def of_another_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def with_a_smaller_vocabulary(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))


def without_bos(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<bos>", "<s>"), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("model.safetensors", "not weights"), "cannot be loaded"),
        (without_a_layer, "lacks 11 weights"),
        (of_another_size, "cannot be loaded"),
        (write("tokenizer.json", "{"), "not a readable tokenizer"),
        (with_a_smaller_vocabulary, "tokens, the model 300"),
        (without_bos, "has no <bos>"),
    ],
)
def test_damaged_files_are_named_when_they_are_read(copy, damage, message):
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        GemmaTextEncoder(copy).encode("a cat")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"dtype": torch.float16}, {"max_text_tokens": 1}])
def test_an_unusable_option_is_refused(toy, option):
    with pytest.raises(InputError, match="; use"):
        GemmaTextEncoder(toy, **option)
