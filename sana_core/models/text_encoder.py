"""The Gemma 2 text encoder: prompt in, [1, 300, C] out, from a Hugging Face folder on this machine.

Knows transformers and tokenizers, both imported when a prompt is first encoded. Touches no network.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import read_json
from ..errors import CheckpointError, InputError
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

    folder: Hugging Face folder with config.json, tokenizer.json and model.safetensors (or its index and shards), of the
        causal language model or of the bare decoder; itself or its subfolder ``text_encoder``. The released networks
        expect the *instruct* weights; the base model has the same shapes and loads without an error.
    device, dtype: where and in what the encoder computes. float16 is refused: Gemma 2 overflows in it.
    soft_cap: apply the config's ``attn_logit_softcapping``. The release was made without.
    cache_dir: folder for finished embeddings, None for no cache. A prompt found there loads nothing.
    max_text_tokens: rows of an embedding.

    Weights are loaded by the first prompt that needs them and stay until ``unload()``; as a context manager it unloads
    at the end. Raises CheckpointError for an unusable folder, InputError for an unusable option.
    """

    def __init__(
        self,
        folder: str | Path,
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
        self.folder = _encoder_folder(Path(folder))
        self.device = torch.device(device)
        self.dtype = dtype
        self.soft_cap = soft_cap
        self.max_text_tokens = max_text_tokens
        self._hidden_size = _read_hidden_size(self.folder)
        self._files = (self.folder / "config.json", _tokenizer_file(self.folder), *_weight_files(self.folder))
        self._cache = None if cache_dir is None else PromptCache(Path(cache_dir))
        self._model: nn.Module | None = None
        # Called before weights are loaded, for a host that has to make room.
        self.before_load: Callable[[], None] | None = None

    @property
    def hidden_size(self) -> int:
        """C, the width of an embedding, from config.json."""
        return self._hidden_size

    @property
    def weight_bytes(self) -> int:
        """Size of the weights, as stored."""
        return sum(file.stat().st_size for file in self._files if file.suffix == ".safetensors")

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
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self._files]
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
        return _load_tokenizer(self.folder)

    def _token_ids(self, text: str) -> list[int]:
        """BOS and the tokens of ``text``, no EOS."""
        return [_token_id(self._tokenizer, "<bos>"), *self._tokenizer.encode(text, add_special_tokens=False).ids]

    @torch.no_grad()
    def _compute(self, text: str, prefix: str | None) -> PromptEmbedding:
        input_ids, attention_mask, plan = self.tokenize(text, prefix)
        if self._model is None:
            if self.before_load is not None:
                self.before_load()
            self._model = _load_model(self.folder, self.dtype, self.soft_cap).to(self.device)
        hidden_states: Tensor = self._model(
            input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device), use_cache=False
        ).last_hidden_state[0]
        kept = torch.cat((hidden_states[:1], hidden_states[plan.first_row :]))
        return PromptEmbedding.from_rows(kept[: plan.num_tokens].cpu(), self.max_text_tokens, plan.truncated_tokens)


def _encoder_folder(folder: Path) -> Path:
    inner = folder / "text_encoder"
    return inner if (inner / "config.json").is_file() and not (folder / "config.json").is_file() else folder


def _read_hidden_size(folder: Path) -> int:
    if not folder.is_dir():
        raise CheckpointError(f"text encoder {folder} is not a folder; give the Hugging Face folder of gemma-2-2b-it")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"text encoder {folder} has no config.json; give the Hugging Face folder of gemma-2-2b-it"
        )
    config = read_json(folder / "config.json")
    if config.get("model_type") != "gemma2":
        kind = config.get("model_type")
        raise CheckpointError(f"text encoder {folder} has model_type {kind!r}, not 'gemma2'; use gemma-2-2b-it")
    hidden_size = config.get("hidden_size")
    if not isinstance(hidden_size, int) or hidden_size < 1:
        raise CheckpointError(
            f"text encoder {folder}: hidden_size {hidden_size!r} in config.json is not a positive int"
        )
    return hidden_size


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"text encoder {folder} has no tokenizer.json; copy it from the repository of the weights"
        )
    return path


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the index and all of its shards."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"text encoder {folder} has neither {single.name} nor {index.name}; copy the weights there"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; copy it again from the repository of the weights")
    shards = [folder / name for name in sorted({str(name) for name in weight_map.values()})]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"text encoder {folder} lacks {', '.join(missing)}, which {index.name} lists; copy them too"
        )
    return [index, *shards]


def _load_tokenizer(folder: Path) -> Tokenizer:
    # tokenizer.json read directly: the same ids on every version of transformers, and no side of padding to undo.
    from tokenizers import Tokenizer

    path = _tokenizer_file(folder)
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable tokenizer: {_first_line(error)}") from error
    count, vocab_size = tokenizer.get_vocab_size(), read_json(folder / "config.json").get("vocab_size")
    if isinstance(vocab_size, int) and count > vocab_size:
        raise CheckpointError(f"{path} has {count} tokens, the model {vocab_size}; use the tokenizer of gemma-2-2b-it")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointError(f"the text encoder's tokenizer.json has no {token}; use the tokenizer of gemma-2-2b-it")
    return number


def _load_model(folder: Path, dtype: torch.dtype, soft_cap: bool) -> nn.Module:
    """The decoder on the CPU. Raises CheckpointError where the weights are damaged, incomplete or of another size."""
    from safetensors import SafetensorError

    with _quiet_transformers():
        transformers = importlib.import_module("transformers")
        try:
            config = transformers.Gemma2Config.from_pretrained(folder, local_files_only=True)
            if not soft_cap:
                config.attn_logit_softcapping = None
            model, report = transformers.Gemma2Model.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"text encoder {folder} cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"text encoder {folder} lacks {len(missing)} weights, {missing[0]} first; copy it again")
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No warnings, logs and progress bars of transformers inside; all as it was afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub_utils = importlib.import_module("huggingface_hub.utils")
        transformers_logging = importlib.import_module("transformers.utils.logging")
        verbosity = transformers_logging.get_verbosity()
        bars, no_hub_bars = transformers_logging.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()
        transformers_logging.set_verbosity_error()
        if bars:
            transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
                if no_hub_bars:
                    hub_utils.disable_progress_bars()
