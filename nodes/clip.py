"""ComfyUI's own text encoder as ours: a CLIP of type pixeldit, which is Gemma-2-2b-it."""

from __future__ import annotations

import logging
from typing import Any

from ..sana_core.errors import InputError
from ..sana_core.models.gemma_files import SINGLE_FILE
from ..sana_core.models.prompt import MAX_TEXT_TOKENS, PROMPT_PREFIX, PromptEmbedding, plan_tokens, prompt_text

logger = logging.getLogger(__name__)

# ComfyUI's name of the network inside the CLIP and of its tokenizer.
_GEMMA = "gemma2_2b"
_PAD = 0


class ClipTextEncoder:
    """Encodes prompts with a connected CLIP, whose weights stay under ComfyUI's management.

    Raises InputError for a CLIP of another kind: the same weights loaded as another type give other embeddings.
    """

    def __init__(self, clip: Any) -> None:
        network = getattr(getattr(clip, "cond_stage_model", None), _GEMMA, None)
        if getattr(network, "layer", None) != "last":
            raise InputError(
                f"the connected CLIP is not Gemma-2-2b-it of type pixeldit; load {SINGLE_FILE} with Load CLIP, type pixeldit, "
                "or use Load SANA-Streaming Text Encoder"
            )
        self._clip = clip

    def encode(self, prompt: str, *, motion_score: int = 0) -> PromptEmbedding:
        """As :meth:`GemmaTextEncoder.encode`."""
        return self._embedding(prompt_text(prompt, motion_score), PROMPT_PREFIX)

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        """As :meth:`GemmaTextEncoder.encode_negative`."""
        return self._embedding(prompt, None)

    def _embedding(self, text: str, prefix: str | None) -> PromptEmbedding:
        ids = self._ids((prefix or "") + text)
        plan = plan_tokens(len(ids), None if prefix is None else len(self._ids(prefix)))
        if plan.truncated_tokens:
            logger.warning("the prompt is too long: %d tokens at its end were cut; shorten it", plan.truncated_tokens)
        present = ids[: plan.padded_length]
        padded = [*present, *[_PAD] * (plan.padded_length - len(present))]
        tokens = {_GEMMA: [[(number, 1.0) for number in padded]]}
        # It keeps the first row and the last 299.
        rows = self._clip.encode_from_tokens(tokens, return_dict=True)["cond"][0]
        return PromptEmbedding.from_rows(rows[: plan.num_tokens].cpu(), MAX_TEXT_TOKENS, plan.truncated_tokens)

    def _ids(self, text: str) -> list[int]:
        """BOS and the tokens of ``text``; not by ComfyUI's own way, which has another instruction."""
        ids: list[int] = getattr(self._clip.tokenizer, _GEMMA).tokenizer(text)["input_ids"]
        return ids
