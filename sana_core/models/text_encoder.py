"""The Gemma 2 text encoder: prompt in, [1, 300, C] out, from files on this machine.

Knows prompts, tokens and the cache; how the files are read is in ``gemma_files``. Touches no network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from .gemma_files import SINGLE_FILE, WeightsKind, open_gemma, weights_kind
from .prompt import (
    DEFAULT_NEGATIVE_PROMPT,
    MAX_TEXT_TOKENS,
    PROMPT_PREFIX,
    PromptEmbedding,
    TokenPlan,
    plan_tokens,
    prompt_text,
)
from .prompt_cache import PromptCache, default_cache_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "DEFAULT_NEGATIVE_PROMPT",
    "MAX_TEXT_TOKENS",
    "PROMPT_PREFIX",
    "GemmaTextEncoder",
    "PromptEmbedding",
    "default_cache_dir",
]

logger = logging.getLogger(__name__)

# Part of the cache key: raise it whenever the same text would give other numbers or another file.
_CACHE_FORMAT = 1


class GemmaTextEncoder:
    """Gemma 2 as a text encoder: the last hidden state after the final norm (``docs/model.md``).

    path: Hugging Face folder with config.json, tokenizer.json and model.safetensors (or its index and shards), of the
        causal language model or of the bare decoder, itself or its subfolder ``text_encoder``; or ComfyUI's single file
        ``gemma_2_2b_it_elm_bf16.safetensors`` with the tokenizer inside. The released networks expect the *instruct*
        weights; the base model has the same shapes and loads without an error, so one warning is logged where the name of
        file or folder says that it is the base model.
    device, dtype: where and in what the encoder computes. float16 is refused: Gemma 2 overflows in it.
    soft_cap: apply the config's ``attn_logit_softcapping``. The release was made without.
    cache_dir: folder for finished embeddings, None for no cache. A prompt found there loads nothing.
    max_text_tokens: rows of an embedding.

    Weights are loaded by the first prompt that needs them and stay until ``unload()``; as a context manager it unloads
    at the end. Raises CheckpointError for unusable files, InputError for an unusable option.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        soft_cap: bool = False,
        cache_dir: Path | None = None,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise InputError(f"text encoder dtype {dtype} is not supported; use torch.bfloat16 or torch.float32")
        if max_text_tokens < 2:
            raise InputError(
                f"max_text_tokens {max_text_tokens} is too small; use 2 or more, {MAX_TEXT_TOKENS} is usual"
            )
        self._source = open_gemma(Path(path))
        self.device = torch.device(device)
        self.dtype = dtype
        self.soft_cap = soft_cap
        self.max_text_tokens = max_text_tokens
        self._cache = None if cache_dir is None else PromptCache(Path(cache_dir))
        self._model: nn.Module | None = None
        # Called before weights are loaded, for a host that has to make room.
        self.before_load: Callable[[], None] | None = None
        if self.warning:
            _log_once(self.warning)

    @property
    def path(self) -> Path:
        """The folder or the single file that is read."""
        return self._source.path

    @property
    def folder(self) -> Path:
        """The folder that the files are in."""
        return self._source.folder

    @property
    def weights_kind(self) -> WeightsKind:
        """``instruct``, ``base`` or ``unknown``: what the name of the file or folder says; the weights say nothing."""
        return weights_kind(self.path)

    @property
    def warning(self) -> str:
        """A sentence for whoever chose files that are by their name the base model; empty otherwise."""
        if self.weights_kind != "base":
            return ""
        return (
            f"text encoder {self.path} is by its name the base model gemma-2-2b, whose embeddings the networks do not know; "
            f"use the instruct model gemma-2-2b-it, as a Hugging Face folder or as {SINGLE_FILE}"
        )

    @property
    def hidden_size(self) -> int:
        """C, the width of an embedding."""
        return self._source.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Size of the weights, as stored."""
        return sum(file.stat().st_size for file in self._source.files if file.suffix == ".safetensors")

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def encode(self, prompt: str, *, motion_score: int = 0) -> PromptEmbedding:
        """The embedding of an edit prompt, behind the instruction prefix; on the CPU, in the encoder's dtype.

        Surrounding whitespace is removed; ``motion_score`` above 0 is written behind the prompt. A prompt that does not
        fit is cut at its end with a warning in the log.
        """
        embedding = self._cached(prompt_text(prompt, motion_score), PROMPT_PREFIX)
        if embedding.truncated_tokens:
            lost = "; the motion score at its end is lost first" if motion_score > 0 else ""
            self._warn_cut("prompt", embedding.truncated_tokens, lost)
        return embedding

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        """The embedding of a negative prompt: no prefix, no motion score, not stripped; otherwise as ``encode``."""
        embedding = self._cached(prompt, None)
        if embedding.truncated_tokens:
            self._warn_cut("negative prompt", embedding.truncated_tokens, "")
        return embedding

    def unload(self) -> None:
        """Frees the weights; the next prompt that needs them loads them again."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> GemmaTextEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()

    def _warn_cut(self, what: str, cut: int, lost: str) -> None:
        fit = self.max_text_tokens - 1
        logger.warning("the %s is too long: %d tokens fit, %d at the end were cut%s; shorten it", what, fit, cut, lost)

    def _cached(self, text: str, prefix: str | None) -> PromptEmbedding:
        if self._cache is None:
            return self._compute(text, prefix)
        key = self._cache_key(text, prefix)
        embedding = self._cache.get(key, (self.max_text_tokens, self.hidden_size), self.dtype)
        if embedding is None:
            embedding = self._compute(text, prefix)
            self._cache.put(key, embedding)
        return embedding

    def _cache_key(self, text: str, prefix: str | None) -> str:
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self._source.files]
        parts = (_CACHE_FORMAT, files, prefix, text, self.soft_cap, str(self.dtype), self.max_text_tokens)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def tokenize(self, text: str, prefix: str | None = PROMPT_PREFIX) -> tuple[Tensor, Tensor, TokenPlan]:
        """(ids, attention mask, plan) of ``text`` behind ``prefix``; int64 [1, padded_length], padded right."""
        ids = self._token_ids((prefix or "") + text)
        plan = plan_tokens(len(ids), None if prefix is None else len(self._token_ids(prefix)), self.max_text_tokens)
        present = len(ids) - plan.truncated_tokens
        padding = [_token_id(self._tokenizer, "<pad>")] * (plan.padded_length - present)
        mask = torch.arange(plan.padded_length)[None] < present
        return torch.tensor([ids[:present] + padding]), mask.long(), plan

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._source.load_tokenizer()

    def _token_ids(self, text: str) -> list[int]:
        """BOS and the tokens of ``text``, no EOS."""
        return [_token_id(self._tokenizer, "<bos>"), *self._tokenizer.encode(text, add_special_tokens=False).ids]

    @torch.no_grad()
    def _compute(self, text: str, prefix: str | None) -> PromptEmbedding:
        input_ids, attention_mask, plan = self.tokenize(text, prefix)
        if self._model is None:
            if self.before_load is not None:
                self.before_load()
            self._model = self._source.load_model(self.dtype, self.soft_cap).to(self.device)
        hidden_states: Tensor = self._model(
            input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), use_cache=False
        ).last_hidden_state[0]
        kept = torch.cat((hidden_states[:1], hidden_states[plan.first_row :]))
        return PromptEmbedding.from_rows(kept[: plan.num_tokens].cpu(), self.max_text_tokens, plan.truncated_tokens)


@functools.cache
def _log_once(warning: str) -> None:
    """Logs once per text and process."""
    logger.warning("%s", warning)


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(f"the text encoder's tokenizer has no {token}; use the tokenizer of gemma-2-2b-it")
    return number
