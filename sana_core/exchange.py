"""Files that the official script writes and reads: latents of a clip, and embedded prompts (``docs/official_script.md``).

Plain torch files, read with ``weights_only``: nothing in them is ever executed.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .models.prompt import MAX_TEXT_TOKENS, PromptEmbedding
from .streaming.clip_latents import ClipLatents

__all__ = [
    "EMBED_KEYS",
    "ClipLatents",
    "PromptPair",
    "latent_path",
    "load_latents",
    "load_text_embeds",
    "save_latents",
    "save_text_embeds",
]

LATENT_SUFFIX = "_latent.pt"
EMBED_KEYS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")


@dataclass(frozen=True)
class PromptPair:
    """The embedded prompt and the embedded negative prompt of one run."""

    positive: PromptEmbedding
    negative: PromptEmbedding


def latent_path(video: str | Path) -> Path:
    """Where the official script puts the latents of the video that it writes: ``<stem>_latent.pt`` beside it."""
    return Path(video).with_name(Path(video).stem + LATENT_SUFFIX)


def save_latents(path: str | Path, latents: ClipLatents) -> None:
    """Writes ``path`` as the official script's ``--save_latent`` does: float32 [3, C, T, h, w], noise, source, result.

    The file appears complete or not at all. Raises InputError where the three are not latents of one clip.
    """
    parts = {"noise": latents.noise, "source": latents.source, "result": latents.result}
    for name, part in parts.items():
        if part.ndim != 5 or len(part) != 1 or part.shape != latents.noise.shape:
            raise InputError(
                f"{name} latents of shape {tuple(part.shape)} cannot be saved; noise, source and result must all be "
                "[1, C, T, h, w] of one clip"
            )
    _save(torch.cat([part.detach().float().cpu() for part in parts.values()]), Path(path))


def load_latents(path: str | Path, channels: int | None = None, grid: tuple[int, int] | None = None) -> ClipLatents:
    """Reads what ``save_latents`` and the official script write: index 0 is the noise, 1 the source, 2 the result.

    channels: C of the transformer, 128 for the released ones. grid: (h, w) of the clip. Either where it is known already.
    Raises InputError for a file that is damaged, of another shape, or with numbers that are not finite.
    """
    tensor = _load(Path(path))
    what = "latents that the official script writes are one float tensor [3, C, T, h, w]: noise, source, result"
    if not isinstance(tensor, Tensor):
        raise InputError(f"{path} holds a {type(tensor).__name__}; {what}. Give a file written by --save-latent")
    if tensor.ndim != 5 or len(tensor) != 3 or not tensor.numel() or not tensor.is_floating_point():
        raise InputError(
            f"{path} holds {tensor.dtype} of shape {tuple(tensor.shape)}; {what}. Give a file written by --save-latent"
        )
    if channels is not None and tensor.shape[1] != channels:
        raise InputError(f"{path} has {tensor.shape[1]} channels, the model {channels}; use latents of the same VAE")
    if grid is not None and tuple(tensor.shape[3:]) != tuple(grid):
        raise InputError(
            f"{path} has latents of {tensor.shape[3]}x{tensor.shape[4]}, the clip is {grid[0]}x{grid[1]}; "
            "set height and width to those of the saved run"
        )
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise InputError(f"{path} holds numbers that are not finite; make the file again")
    noise, source, result = (tensor[index : index + 1].clone() for index in range(3))
    return ClipLatents(noise, source, result)


def save_text_embeds(path: str | Path, prompts: PromptPair) -> None:
    """Writes ``path`` as the official script's ``--input_text_embed_path`` takes it: embeddings [1, 1, L, C], masks [1, L].

    The file appears complete or not at all.
    """
    content = {}
    for name, prompt in (("prompt", prompts.positive), ("negative", prompts.negative)):
        content[f"{name}_embeds"] = prompt.embeds[:, None].detach().cpu().contiguous()
        content[f"{name}_mask"] = prompt.mask.detach().cpu().long()
    _save(content, Path(path))


def load_text_embeds(
    path: str | Path, channels: int | None = None, max_text_tokens: int = MAX_TEXT_TOKENS
) -> PromptPair:
    """Reads the official script's dict of ``prompt_embeds``, ``prompt_mask``, ``negative_embeds`` and ``negative_mask``.

    channels: C of the transformer's text input, 2304 for the released ones, where it is known already. Embeddings keep
    their dtype; rows without a token become 0, which changes nothing. Raises InputError for a file that is damaged or of
    another form.
    """
    content = _load(Path(path))
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; give a dict with {', '.join(EMBED_KEYS)}")
    if missing := [key for key in EMBED_KEYS if key not in content]:
        raise InputError(f"{path} lacks {', '.join(missing)}; give a dict with {', '.join(EMBED_KEYS)}")
    positive, negative = (
        _embedding(f"{path}: {name}", content[f"{name}_embeds"], content[f"{name}_mask"], channels, max_text_tokens)
        for name in ("prompt", "negative")
    )
    widths = positive.embeds.shape[-1], negative.embeds.shape[-1]
    if widths[0] != widths[1]:
        raise InputError(
            f"{path} has prompts of {widths[0]} and {widths[1]} channels; embed both with one text encoder"
        )
    return PromptPair(positive, negative)


def _embedding(where: str, embeds: Any, mask: Any, channels: int | None, max_text_tokens: int) -> PromptEmbedding:
    """The rows that hold a token, padded anew. ``where`` is the file and the name of the pair, for errors."""
    floating = isinstance(embeds, Tensor) and embeds.is_floating_point() and embeds.numel() > 0
    width = embeds.shape[-1] if floating and channels is None else channels
    shape = (1, 1, max_text_tokens, width)
    if not floating or tuple(embeds.shape) not in (shape, shape[1:]):
        wanted = [1, 1, max_text_tokens, "C" if channels is None else channels]
        raise InputError(f"{where}_embeds is {_described(embeds)}; it must be a float tensor {_listed(wanted)}")
    if not isinstance(mask, Tensor) or mask.is_complex() or tuple(mask.shape) != (1, max_text_tokens):
        raise InputError(f"{where}_mask is {_described(mask)}; it must be a tensor [1, {max_text_tokens}] of 0 and 1")
    num_tokens = int((mask != 0).sum())
    expected = torch.arange(max_text_tokens)[None] < num_tokens
    if not torch.equal(mask, expected.to(mask.dtype)) or not num_tokens:
        raise InputError(f"{where}_mask is not ones followed by zeros; embed the prompt with padding on the right")
    rows = embeds.reshape(max_text_tokens, -1)[:num_tokens].clone()
    if not torch.isfinite(rows).all():
        raise InputError(f"{where}_embeds holds numbers that are not finite; embed the prompt again, not in float16")
    return PromptEmbedding.from_rows(rows, max_text_tokens)


def _listed(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _save(content: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(content, partial)
        partial.replace(path)
    except RuntimeError as error:
        # What torch makes of a folder that is missing or a disk that is full.
        raise OSError(f"{path} cannot be written: {_first_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give a file written by torch")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a whole torch file; write it again with torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects, which are never executed; write a file of tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # What a reader of pickles runs into depends on where the bytes go wrong.
        raise InputError(
            f"{path} is not a whole torch file ({_first_line(error)}); write it again with torch.save"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
