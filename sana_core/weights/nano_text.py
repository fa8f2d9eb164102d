"""The text encoder of `nano`: random weights, fixed for ever, and a vocabulary made for the edits that nano knows."""

from __future__ import annotations

import re
from pathlib import Path

from ..models.prompt import PROMPT_PREFIX
from ..training.data.edits import instruction_words
from .toy_text import make_toy_text_encoder

CAPTION_CHANNELS = 128
_SEED = 0
# Of the two layers the first looks back this far, or a prompt would drown in the hundred words of its prefix.
_WINDOW = 8


def make_nano_text_encoder(folder: str | Path) -> Path:
    """Writes the text encoder of nano into ``folder``, made if absent, and returns it; under 1.2 MB.

    A Gemma 2 of two layers with random weights that no training touches: nano's transformer learns to read them as they
    are, so the same bytes must come out every time, and a change of words or sizes asks for a new nano. Each word of
    the instructions in `training.data.edits` is one token, in capital letters or not.
    """
    prefix = re.findall("[a-z]+", PROMPT_PREFIX.lower())
    return make_toy_text_encoder(
        folder,
        seed=_SEED,
        hidden_size=CAPTION_CHANNELS,
        num_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        sliding_window=_WINDOW,
        words=(*instruction_words(), *prefix),
        lowercase=True,
    )
