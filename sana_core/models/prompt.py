"""What is sent to the text encoder and which rows of its output are kept.

Knows strings and lengths, no tokenizer and no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TEXT_TOKENS = 300

# The space after the last colon is part of it: it merges with the first word of the prompt.
PROMPT_PREFIX = "\n".join(
    (
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for '
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    )
)

DEFAULT_NEGATIVE_PROMPT = (
    "A chaotic sequence with misshapen, deformed limbs in heavy motion blur, sudden disappearance, jump cuts, jerky "
    "movements, rapid shot changes, frames out of sync, inconsistent character shapes, temporal artifacts, jitter, and "
    "ghosting effects, creating a disorienting visual experience."
)


def prompt_text(prompt: str, motion_score: int = 0) -> str:
    """What follows the prefix: the stripped prompt, and the motion score where it is above 0 (``docs/model.md``)."""
    # Half of a surrogate pair, which a browser may send, is no character that a tokenizer knows.
    text = prompt.strip().encode("utf-8", "replace").decode("utf-8")
    return f"{text} motion score: {motion_score:d}." if motion_score > 0 else text


@dataclass(frozen=True)
class TokenPlan:
    """Lengths of one encoder call and the rows of its output that are kept (``docs/model.md``).

    Kept are row 0 (BOS) and the rows ``first_row .. padded_length - 1``, ``max_text_tokens`` in all. Padding is on the
    right, so they do not depend on the length of the prompt; the first ``num_tokens`` of them are real tokens.
    """

    padded_length: int
    first_row: int
    num_tokens: int
    truncated_tokens: int


def plan_tokens(sequence_tokens: int, prefix_tokens: int | None, max_text_tokens: int = MAX_TEXT_TOKENS) -> TokenPlan:
    """The plan for ``sequence_tokens`` tokens with BOS, before truncation.

    ``prefix_tokens`` counts the prefix encoded alone, with BOS and its trailing space; None for text without a prefix.
    """
    # BOS is kept and the trailing space normally becomes part of the first word, hence 2 tokens less than the sum.
    padded_length = max_text_tokens if prefix_tokens is None else prefix_tokens + max_text_tokens - 2
    first_row = padded_length - (max_text_tokens - 1)
    present = min(sequence_tokens, padded_length)
    return TokenPlan(
        padded_length=padded_length,
        first_row=first_row,
        num_tokens=1 + max(0, present - first_row),
        truncated_tokens=sequence_tokens - present,
    )


@dataclass(frozen=True)
class PromptEmbedding:
    """An encoded prompt, as the network takes it.

    embeds: [1, L, C], L = 300 unless the encoder was told otherwise; rows that hold no token are 0.
    mask: bool [1, L], True in the first ``num_tokens`` places.
    num_tokens: rows with a token, BOS included.
    truncated_tokens: tokens that were cut from the end of the prompt, 0 if all of it fits.
    """

    embeds: Tensor
    mask: Tensor
    num_tokens: int
    truncated_tokens: int = 0

    @classmethod
    def from_rows(cls, rows: Tensor, max_text_tokens: int, truncated_tokens: int = 0) -> PromptEmbedding:
        """Pads the rows that hold a token, [num_tokens, C], to ``max_text_tokens``."""
        num_tokens, channels = rows.shape
        embeds = rows.new_zeros(1, max_text_tokens, channels)
        embeds[0, :num_tokens] = rows
        mask = torch.arange(max_text_tokens, device=rows.device)[None] < num_tokens
        return cls(embeds, mask, num_tokens, truncated_tokens)

    @property
    def rows(self) -> Tensor:
        """The rows that hold a token, [num_tokens, C]."""
        return self.embeds[0, : self.num_tokens]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PromptEmbedding:
        """A copy with embeds and mask on ``device`` and embeds in ``dtype``; None leaves either as it is."""
        embeds = self.embeds.to(device=device, dtype=dtype)
        return PromptEmbedding(embeds, self.mask.to(device=device), self.num_tokens, self.truncated_tokens)
