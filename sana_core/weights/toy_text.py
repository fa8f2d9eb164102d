"""A toy text encoder: a small random Gemma 2 with a small tokenizer, in the files of the real one.

It lets the whole pipeline run, and be tested, without a download.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..models.prompt import DEFAULT_NEGATIVE_PROMPT, PROMPT_PREFIX

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}

_EDIT_WORDS = """
Add Remove Replace Change Turn Make Transform Convert Swap Insert Delete Restyle Keep Put Give Set
add remove replace change turn make transform convert swap insert delete erase recolor repaint rebuild restyle keep
a an the it its this that of in on at to into from with without over under behind front and or as like by
motion score video clip scene frame shot style look background foreground sky ground street city road river sea beach
forest mountain field snow rain fog cloud cloudy sun sunset sunrise night day morning evening winter summer autumn
spring fire smoke water light shadow person man woman child face hair hat glasses shirt dress coat cat dog horse bird
car bus train boat bike tree flower grass house building window door wall table chair ball robot statue
red orange yellow green blue purple pink black white gray brown gold silver wood metal stone glass paper neon
watercolor painting oil sketch pencil cartoon anime comic pixel clay film noir cinematic vintage realistic
bright dark warm cold soft sharp small large old new left right top bottom
"""
_DEFAULT_WORDS = f"{_EDIT_WORDS} {PROMPT_PREFIX} {DEFAULT_NEGATIVE_PROMPT}"


def make_toy_text_encoder(
    folder: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_key_value_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 128,
    sliding_window: int = 4096,
    words: Iterable[str] | None = None,
    lowercase: bool = False,
) -> Path:
    """Writes a toy encoder for ``GemmaTextEncoder`` into ``folder``, made if absent, and returns it; well under 1 MB.

    One seed and one set of sizes and words give one set of bytes. ``num_heads`` must be a multiple of
    ``num_key_value_heads`` and ``head_dim`` even. Each of ``words`` is one token, parts of a word joined by hyphens too;
    without them, usual words of edits and the words of the prefix and of the default negative prompt are. With
    ``lowercase`` no token has a capital letter, and prompts are read as if they had none.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(_words(_DEFAULT_WORDS) if words is None else tuple(words), lowercase)
    config = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "sliding_window": sliding_window,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8192,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **_SPECIAL_TOKENS,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8", newline="\n")
    (folder / "model.safetensors").write_bytes(save(_weights(config, seed), {"format": "pt"}))
    return folder


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall("[A-Za-z]+", text))


def _tokenizer(words: tuple[str, ...], lowercase: bool) -> Tokenizer:
    """Byte-fallback BPE as Gemma's: "▁" for a space, <bos> in front, a space joins the word behind it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokens = [*_SPECIAL_TOKENS.values(), *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "▁"]
    letters = string.ascii_lowercase if lowercase else string.ascii_letters
    tokens += [*string.digits, *letters, *string.punctuation]
    merges: list[tuple[str, str]] = []
    known = set(tokens)
    # With every letter a word, the first letter of any word joins the space before it.
    for left, right in _word_merges((*letters, *words)):
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces]) if lowercase else spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS.values()))
    return tokenizer


def _word_merges(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Merges that build each known word from its space on, letter by letter: words that begin alike share them."""
    for word in words:
        for length in range(len(word)):
            yield "▁" + word[:length], word[length]


def _weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Random bfloat16 weights under the names of the causal language model, whose head is tied to the embedding."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = width * config["num_attention_heads"], width * config["num_key_value_heads"]
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, deviation: float) -> torch.Tensor:
        # Uniform, not normal: the same bits on every processor.
        uniform = torch.rand(rows, columns, generator=generator) * 2 - 1
        return (uniform * deviation * 3**0.5).bfloat16()

    # The network multiplies the embedding by hidden**0.5.
    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, hidden**-0.5)}
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in shapes.items():
            weights[f"{prefix}{name}.weight"] = matrix(rows, columns, columns**-0.5)
        for name in norms:
            # Stored as weight - 1.
            weights[f"{prefix}{name}_layernorm.weight"] = torch.zeros(hidden, dtype=torch.bfloat16)
    weights["model.norm.weight"] = torch.zeros(hidden, dtype=torch.bfloat16)
    return weights


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")
