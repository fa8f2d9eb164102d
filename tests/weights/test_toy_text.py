import json

import torch
from sana_streaming.sana_core.models.text_encoder import PROMPT_PREFIX, GemmaTextEncoder
from sana_streaming.sana_core.weights.toy_text import make_toy_text_encoder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_bytes_for_the_same_seed(tmp_path):
    first = files(make_toy_text_encoder(tmp_path / "a"))
    assert files(make_toy_text_encoder(tmp_path / "b")) == first
    assert sum(map(len, first.values())) < 1_000_000
    other = files(make_toy_text_encoder(tmp_path / "c", seed=1))
    assert [name for name in first if other[name] != first[name]] == ["model.safetensors"]


def test_encodes_at_another_size(tmp_path):
    sizes = {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    encoder = GemmaTextEncoder(make_toy_text_encoder(tmp_path, **sizes, intermediate_size=20), dtype=torch.float32)
    sketch, clay = (encoder.encode(f"Turn the cat into a {style}") for style in ("sketch", "clay figure"))
    assert sketch.embeds.shape == (1, 300, encoder.hidden_size) == (1, 300, 24)
    assert sketch.embeds.isfinite().all()
    # Rows before the first different word agree, those from it on do not.
    assert sketch.num_tokens == 7
    assert torch.allclose(sketch.rows[:6], clay.rows[:6], atol=1e-5)
    assert (sketch.rows[6] - clay.rows[6]).abs().max() > 0.1
    # The final norm leaves each token at unit mean square, so a network that trains on it sees sane numbers.
    assert torch.allclose(sketch.rows.square().mean(1), torch.ones(7), atol=1e-3)


def test_tokenizer_is_made_like_gemmas(tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(make_toy_text_encoder(tmp_path) / "tokenizer.json"))
    assert [tokenizer.id_to_token(number) for number in range(5)] == ["<pad>", "<eos>", "<bos>", "<unk>", "<0x00>"]

    def tokens(text):
        return tokenizer.encode(text).tokens

    prefix = tokens(PROMPT_PREFIX)
    assert prefix[0] == "<bos>" and prefix[-1] == "▁"
    assert 100 < len(prefix) < 150
    # A word takes the trailing space, a digit leaves it alone.
    assert tokens(PROMPT_PREFIX + "cat") == [*prefix[:-1], "▁cat"]
    assert tokens(PROMPT_PREFIX + "Zebra")[: len(prefix)] == [*prefix[:-1], "▁Z"]
    assert tokens(PROMPT_PREFIX + "9") == [*prefix, "9"]
    assert tokens("é")[1:] == ["<0xC3>", "<0xA9>"]
    text = "Turn  the sky into ☃\nwatercolor, 9 <b> \t~"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_reads_the_same_tokens(tmp_path):
    from transformers import AutoTokenizer

    folder = make_toy_text_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "Replace the sky with a cloudy sunset, motion score: 10."
    ids, mask, _ = GemmaTextEncoder(folder).tokenize(text, prefix=None)
    assert tokenizer(text)["input_ids"] == ids[mask.bool()].tolist()
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert {name: getattr(tokenizer, name) for name in special} == special
