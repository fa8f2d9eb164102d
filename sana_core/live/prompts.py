"""Prompts that are embedded beside the stream, so that it does not stand still while they are."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from ..models.prompt import PromptEmbedding
from ..streaming.prompt_encoders import PromptEncoder

# Prompts whose embeddings are kept; one is 3 MB for Gemma-2.
MOST_PROMPTS = 32


class LivePrompts:
    """A PromptEncoder over another one, which stays loaded: prompts may come at any time.

    :meth:`prepare` embeds a prompt in the thread of whoever asks for it; the stream then finds it here.
    """

    def __init__(self, text: PromptEncoder) -> None:
        self._text = text
        self._lock, self._work = Lock(), Lock()
        self._known: OrderedDict[tuple[str, bool], PromptEmbedding] = OrderedDict()

    def prepare(self, prompt: str) -> None:
        """InputError for a prompt that cannot be embedded."""
        self.encode(prompt)

    def encode(self, prompt: str) -> PromptEmbedding:
        return self._get(prompt, negative=False)

    def encode_negative(self, prompt: str) -> PromptEmbedding:
        return self._get(prompt, negative=True)

    def _get(self, prompt: str, negative: bool) -> PromptEmbedding:
        key = (prompt, negative)
        if (found := self._find(key)) is not None:
            return found
        with self._work:
            # Somebody else may have had the same wish.
            found = self._find(key) or (self._text.encode_negative(prompt) if negative else self._text.encode(prompt))
        with self._lock:
            self._known[key] = found
            while len(self._known) > MOST_PROMPTS:
                self._known.popitem(last=False)
        return found

    def _find(self, key: tuple[str, bool]) -> PromptEmbedding | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def unload(self) -> None:
        """The weights stay for the next prompt; :meth:`close` lets go of them."""

    def close(self) -> None:
        self._text.unload()
