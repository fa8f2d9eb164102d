"""Finished embeddings on disk: what hits, what misses, what is written again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sana_streaming.sana_core.models.prompt_cache import _cache_root, default_cache_dir
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder


def test_a_hit_is_the_same_and_loads_nothing(toy, tmp_path, caplog):
    cache = tmp_path / "deep" / "cache"
    first = GemmaTextEncoder(toy, cache_dir=cache, max_text_tokens=8)
    second = GemmaTextEncoder(toy, cache_dir=cache, max_text_tokens=8)
    for text in ("a cat", "", "a cat " * 9):
        missed, hit = first.encode(text), second.encode(text)
        assert torch.equal(missed.embeds, hit.embeds) and torch.equal(missed.mask, hit.mask)
        assert hit.embeds.dtype == torch.bfloat16
        assert (missed.num_tokens, missed.truncated_tokens) == (hit.num_tokens, hit.truncated_tokens)
    assert len(caplog.records) == 2, "a cut prompt warns on a hit too"
    assert first.is_loaded and not second.is_loaded
    assert sorted(path.suffix for path in cache.iterdir()) == [".safetensors"] * 3


def test_whatever_changes_the_numbers_changes_the_key(copy, tmp_path):
    cache = tmp_path / "cache"
    encoder = GemmaTextEncoder(copy, cache_dir=cache)
    encoder.encode("a cat")
    encoder.encode("  a cat\n")
    assert len(list(cache.iterdir())) == 1
    encoder.encode("a dog")
    encoder.encode("a cat", motion_score=1)
    encoder.encode_negative("a cat")
    encoder.encode_negative("a cat ")
    for option in ({"dtype": torch.float32}, {"soft_cap": True}, {"max_text_tokens": 9}):
        GemmaTextEncoder(copy, cache_dir=cache, **option).encode("a cat")
    assert len(list(cache.iterdir())) == 8
    for count, name in enumerate(("model.safetensors", "tokenizer.json", "config.json"), start=9):
        (copy / name).write_bytes((copy / name).read_bytes() + (b"\n" if name.endswith("json") else b""))
        GemmaTextEncoder(copy, cache_dir=cache).encode("a cat")
        assert len(list(cache.iterdir())) == count


@pytest.mark.parametrize("damage", ["garbage", "cut", "shape", "dtype", "metadata", "names"])
def test_a_corrupt_file_is_rewritten(toy, tmp_path, damage):
    expected = GemmaTextEncoder(toy, cache_dir=tmp_path).encode("a cat")
    (path,) = tmp_path.iterdir()
    good, rows = path.read_bytes(), expected.rows.contiguous()
    metadata = {"truncated_tokens": "0"}
    if damage == "garbage":
        path.write_bytes(b"\xff" * 100)
    elif damage == "cut":
        path.write_bytes(good[:-1])
    elif damage == "shape":
        save_file({"rows": rows[:, 1:].contiguous()}, path, metadata)
    elif damage == "dtype":
        save_file({"rows": rows.float()}, path, metadata)
    elif damage == "metadata":
        save_file({"rows": rows}, path)
    else:
        save_file({"columns": rows}, path, metadata)
    again = GemmaTextEncoder(toy, cache_dir=tmp_path)
    assert torch.equal(again.encode("a cat").embeds, expected.embeds) and again.is_loaded
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_cache_warns_once_and_goes_on(toy, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    encoder = GemmaTextEncoder(toy, cache_dir=tmp_path / "file" / "cache")
    assert encoder.encode("a cat").num_tokens == 3 and encoder.encode("a dog").num_tokens == 3
    (record,) = caplog.records
    assert "cannot be written" in record.getMessage()


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "prompts"
    assert _cache_root({"XDG_CACHE_HOME": "/x"}, windows=False) == Path("/x/sana_streaming")
    assert _cache_root({"LOCALAPPDATA": "/y", "XDG_CACHE_HOME": "/x"}, windows=True) == Path("/y/sana_streaming")
    assert _cache_root({}, windows=False) == Path.home() / ".cache/sana_streaming"
    assert _cache_root({"SANA_STREAMING_CACHE": "~/z"}, windows=True) == Path.home() / "z"
