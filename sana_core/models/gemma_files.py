"""Where a Gemma 2 text encoder is read from: a Hugging Face folder, or ComfyUI's single file.

Both give a tokenizer and a decoder. Knows transformers and tokenizers, imported when they are needed. Touches no network.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ..config import read_json
from ..errors import CheckpointError
from ..weights.checkpoint import check_keys, config_inside, read_safetensors
from .sentence_piece import load_sentence_piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WeightsKind = Literal["instruct", "base", "unknown"]

SINGLE_FILE = "gemma_2_2b_it_elm_bf16.safetensors"
TOKENIZER_KEY = "spiece_model"
_HEAD_KEY = "lm_head.weight"
# ComfyUI tells Gemma 2 from its kin by the first, which Gemma 3 has too, and the lack of the second.
_GEMMA_KEY, _GEMMA_3_PART = "model.layers.0.post_feedforward_layernorm.weight", ".q_norm."
_STORED = ("BF16", "F16", "F32")
_QUANTIZED_SUFFIXES = (".weight_scale", ".weight_scale_2", ".scale_weight", ".comfy_quant")

# A single file has no config.json; these are the values of gemma-2-2b, instruct and base alike.
GEMMA_2_2B: dict[str, Any] = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def open_gemma(path: Path) -> GemmaFolder | GemmaFile:
    """The text encoder at ``path``, with everything checked that can be checked without reading weights."""
    if path.is_file():
        return GemmaFile(path)
    if not path.is_dir():
        raise CheckpointError(
            f"text encoder {path} is not a folder or a file; give the Hugging Face folder of gemma-2-2b-it, "
            f"or {SINGLE_FILE}"
        )
    return GemmaFolder(path)


def weights_kind(path: Path) -> WeightsKind:
    """Whether the weights are those of the instruct model, judged by the names of file and folders alone.

    Nothing inside the files tells ``gemma-2-2b-it`` from the base model ``gemma-2-2b`` (``docs/model.md``); a name that
    says neither gives ``unknown``.
    """
    names = [path.name]
    if path.name == "text_encoder":
        names.append(path.parent.name)
    # A folder of the hub's cache is named by its commit; the repository's name is two levels up.
    if path.parent.name == "snapshots":
        names.append(path.parent.parent.name)
    for name in names:
        found = re.search(r"gemma[-_. ]?2[-_. ]2b(?![a-z0-9])(.*)", name.lower())
        if found:
            words = re.split(r"[-_. ]", found[1])
            return "instruct" if "it" in words or "instruct" in words else "base"
    return "unknown"


class GemmaFolder:
    """A Hugging Face folder with config.json, tokenizer.json and model.safetensors (or its index and shards).

    Of the causal language model or of the bare decoder; itself or its subfolder ``text_encoder``.
    """

    def __init__(self, folder: Path) -> None:
        inner = folder / "text_encoder"
        has_own = (folder / "config.json").is_file()
        self.path = inner if (inner / "config.json").is_file() and not has_own else folder
        self.folder = self.path
        self.hidden_size = _read_hidden_size(self.path)
        self.files = (self.path / "config.json", _tokenizer_file(self.path), *_weight_files(self.path))

    def load_tokenizer(self) -> Tokenizer:
        """tokenizer.json read directly: the same ids on every version of transformers, and no side of padding to undo."""
        from tokenizers import Tokenizer

        path = _tokenizer_file(self.path)
        try:
            tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a readable tokenizer: {_first_line(error)}") from error
        _check_vocabulary(tokenizer, read_json(self.path / "config.json").get("vocab_size"), path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def load_model(self, dtype: torch.dtype, soft_cap: bool) -> nn.Module:
        """The decoder on the CPU. Raises CheckpointError for weights that are damaged, incomplete or of another size."""
        read_config = functools.partial(_read_config, folder=self.path)
        return _load_decoder(self.path, read_config, dtype, soft_cap, self.path, use_safetensors=True)


class GemmaFile:
    """ComfyUI's single file: the weights under their names in the causal language model, and the tokenizer as a tensor.

    Its sizes are those of gemma-2-2b unless the file's metadata have a ``config``, the JSON of a config.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent
        self.files = (path,)
        shapes, dtypes, metadata = _read_header(path)
        _check_kind(path, dtypes)
        self.config = config_inside(metadata, path) or GEMMA_2_2B
        _check_config(self.config, path)
        self.hidden_size: int = self.config["hidden_size"]
        weights = {key: shape for key, shape in shapes.items() if key not in (TOKENIZER_KEY, _HEAD_KEY)}
        check_keys(decoder_shapes(self.config), weights, path)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer from the bytes inside the file."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            data = file.get_tensor(TOKENIZER_KEY).numpy().tobytes()
        tokenizer = load_sentence_piece(data, self.path)
        _check_vocabulary(tokenizer, self.config["vocab_size"], self.path)
        return tokenizer

    def load_model(self, dtype: torch.dtype, soft_cap: bool) -> nn.Module:
        """The decoder on the CPU; weights stay mapped from the file where they are stored in ``dtype``."""
        tensors, _ = read_safetensors(self.path)
        state = {
            key.removeprefix("model."): value for key, value in tensors.items() if key not in (TOKENIZER_KEY, _HEAD_KEY)
        }
        make_config = functools.partial(_make_config, values=self.config)
        return _load_decoder(self.path, make_config, dtype, soft_cap, None, state_dict=state)


def decoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the decoder's weights, as the causal language model names them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        layer[f"{norm}_layernorm"] = (hidden,)
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{index}.{name}.weight": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return {"model.embed_tokens.weight": (config["vocab_size"], hidden), **shapes, "model.norm.weight": (hidden,)}


def _read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str], dict[str, str]]:
    """(shapes, stored dtypes, metadata) of a safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    shapes, dtypes = {}, {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                view = file.get_slice(key)
                shapes[key], dtypes[key] = tuple(view.get_shape()), view.get_dtype()
            return shapes, dtypes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"text encoder {path} is not a whole safetensors file ({_first_line(error)}); give {SINGLE_FILE}, "
            "or the Hugging Face folder of gemma-2-2b-it"
        ) from error


def _check_kind(path: Path, dtypes: Mapping[str, str]) -> None:
    """Raises CheckpointError that says what the file is instead, as far as its keys tell."""
    reason = None
    if any(_GEMMA_3_PART in key for key in dtypes):
        reason = "is Gemma 3, not Gemma 2"
    elif _GEMMA_KEY not in dtypes:
        reason = "is not a Gemma 2 text encoder"
    elif any(key.endswith(_QUANTIZED_SUFFIXES) for key in dtypes) or any(
        stored not in _STORED for key, stored in dtypes.items() if key != TOKENIZER_KEY
    ):
        reason = "is quantized, and weights are read in bfloat16, float16 or float32"
    elif TOKENIZER_KEY not in dtypes:
        reason = f"has no tokenizer inside ({TOKENIZER_KEY})"
    elif dtypes[TOKENIZER_KEY] != "U8":
        reason = f"has a tokenizer ({TOKENIZER_KEY}) that is not made of bytes"
    if reason:
        raise CheckpointError(f"text encoder {path} {reason}; use {SINGLE_FILE}, or the folder of gemma-2-2b-it")


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    if config.get("model_type") != "gemma2":
        kind = config.get("model_type")
        raise CheckpointError(f"text encoder {path} has model_type {kind!r}, not 'gemma2'; use gemma-2-2b-it")
    for name in _SIZES:
        _check_size(path, name, config.get(name), "its config")


def _check_size(path: Path, name: str, value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"text encoder {path}: {name} {value!r} in {place} is not a positive int; copy it again")


def _read_hidden_size(folder: Path) -> int:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"text encoder {folder} has no config.json; give the Hugging Face folder of gemma-2-2b-it"
        )
    config = read_json(folder / "config.json")
    if config.get("model_type") != "gemma2":
        kind = config.get("model_type")
        raise CheckpointError(f"text encoder {folder} has model_type {kind!r}, not 'gemma2'; use gemma-2-2b-it")
    hidden_size = config.get("hidden_size")
    _check_size(folder, "hidden_size", hidden_size, "config.json")
    assert isinstance(hidden_size, int)
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


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: Any, source: Path) -> None:
    count = tokenizer.get_vocab_size()
    if isinstance(vocab_size, int) and count > vocab_size:
        raise CheckpointError(
            f"{source} has {count} tokens, the model {vocab_size}; use the tokenizer of gemma-2-2b-it"
        )


def _read_config(config_class: Any, folder: Path) -> Any:
    return config_class.from_pretrained(folder, local_files_only=True)


def _make_config(config_class: Any, values: dict[str, Any]) -> Any:
    return config_class.from_dict(dict(values))


def _load_decoder(
    source: Path,
    make_config: Callable[[Any], Any],
    dtype: torch.dtype,
    soft_cap: bool,
    folder: Path | None,
    **options: Any,
) -> nn.Module:
    from safetensors import SafetensorError

    with _quiet_transformers():
        transformers = importlib.import_module("transformers")
        try:
            config = make_config(transformers.Gemma2Config)
            if not soft_cap:
                config.attn_logit_softcapping = None
            model, report = transformers.Gemma2Model.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"text encoder {source} cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"text encoder {source} lacks {len(missing)} weights, {missing[0]} first; copy it again")
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
