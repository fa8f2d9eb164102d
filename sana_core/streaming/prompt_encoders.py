"""What a stream asks for the embeddings of its prompts, and two ways to answer without a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import InputError
from ..models.prompt import PromptEmbedding


class PromptEncoder(Protocol):
    """What turns text into embeddings: the Gemma encoder, or anything with these methods."""

    def encode(self, prompt: str) -> PromptEmbedding: ...

    def encode_negative(self, prompt: str) -> PromptEmbedding: ...

    def unload(self) -> None:
        """Frees the weights; called whenever a stream has what it needs."""


@dataclass(frozen=True)
class FixedPrompts:
    """A PromptEncoder of embeddings that were made elsewhere, whatever the text."""

    positive: PromptEmbedding
    negative: PromptEmbedding | None = None

    def encode(self, prompt: str) -> PromptEmbedding:
        return self.positive

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        return _connected(self.negative)

    def unload(self) -> None:
        """Nothing is loaded."""


@dataclass(frozen=True)
class PreparedPrompts:
    """A PromptEncoder of embeddings that were made elsewhere, by their text: for streams whose prompt changes.

    Raises InputError for a text that is not among them.
    """

    positive: Mapping[str, PromptEmbedding]
    negative: PromptEmbedding | None = None

    def encode(self, prompt: str) -> PromptEmbedding:
        if prompt not in self.positive:
            raise InputError(f"the prompt {prompt!r} was not prepared; the stream knows {', '.join(self.positive)}")
        return self.positive[prompt]

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        return _connected(self.negative)

    def unload(self) -> None:
        """Nothing is loaded."""


def _connected(negative: PromptEmbedding | None) -> PromptEmbedding:
    if negative is None:
        raise InputError("guidance needs a negative prompt; connect one, or set cfg_scale to 1")
    return negative
