"""``--save-latent``, ``--input-latent`` and ``--input-text-embed`` of ``edit``: files of the official script, in both modes.

In order: :func:`exchange_files` and :func:`check_exchange` with the other checks of the command line, :func:`read_exchange`
before weights are read, ``Exchange.fixed_prompts`` in place of a text encoder, ``given`` and ``recorder`` to `EditStream`,
and :func:`save_exchange` at the end, however it came.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..exchange import PromptPair, load_latents, load_text_embeds, save_latents
from ..paths import check_target
from ..streaming.chunks import latent_frames
from ..streaming.clip_latents import ClipLatents, LatentsRecorder, check_num_latents
from ..streaming.prompt_encoders import FixedPrompts


@dataclass(frozen=True)
class Exchange:
    """What a run takes from files, and what it keeps for one; all None where none of the options is given.

    given: noise and source of ``--input-latent``. prompts: of ``--input-text-embed``. recorder: for ``--save-latent``.
    """

    given: ClipLatents | None = None
    prompts: PromptPair | None = None
    recorder: LatentsRecorder | None = None

    def fixed_prompts(self, guided: bool) -> FixedPrompts | None:
        """The prompts of the file, the negative one only under guidance; None where a text encoder is to make them."""
        if self.prompts is None:
            return None
        return FixedPrompts(self.prompts.positive, self.prompts.negative if guided else None)


def exchange_files(options: argparse.Namespace) -> dict[str, Path | None]:
    """The files of the three options by name, for `check_distinct`."""
    return {
        "--save-latent": options.save_latent,
        "--input-latent": options.input_latent,
        "--input-text-embed": options.input_text_embed,
    }


def check_exchange(options: argparse.Namespace) -> None:
    """InputError for a place that latents cannot be written to, and for options that do not go together."""
    if options.save_latent:
        check_target(options.save_latent)
    for name in ("save_latent", "input_latent"):
        _refuse_beside(options, name, ("resume", "save_state"), "latents are those of a whole clip")
    _refuse_beside(options, "input_latent", ("seed", "noise", "noise_device"), "the noise comes from the file")
    embedded = "input_text_embed"
    _refuse_beside(options, embedded, ("resume", "save_state"), "a saved stream keeps its prompt as text")
    _refuse_beside(options, embedded, ("prompt_at", "prompt_file"), "it is one prompt for the whole clip")
    _refuse_beside(options, embedded, ("text_encoder",), "it takes the place of the text encoder")
    _refuse_beside(options, embedded, ("negative_prompt", "motion_score"), "both prompts are in the file as they are")


def _refuse_beside(options: argparse.Namespace, name: str, others: tuple[str, ...], why: str) -> None:
    if getattr(options, name) is None:
        return
    for other in others:
        if getattr(options, other) is not None:
            raise InputError(f"{_flag(other)} does not go with {_flag(name)}: {why}; leave one of them out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_exchange(options: argparse.Namespace, num_frames: int) -> Exchange:
    """Reads the files for a clip of which ``num_frames`` frames are taken in.

    Raises InputError for files that are damaged, of another form, or of a clip of another length. Whether latents have the
    channels and the size of the networks is checked when these are known.
    """
    given = None
    if options.input_latent:
        given = load_latents(options.input_latent)
        try:
            check_num_latents(given, latent_frames(num_frames))
        except InputError as error:
            raise InputError(f"--input-latent {options.input_latent}: {error}") from error
    prompts = load_text_embeds(options.input_text_embed) if options.input_text_embed else None
    return Exchange(given, prompts, LatentsRecorder() if options.save_latent else None)


def save_exchange(options: argparse.Namespace, exchange: Exchange) -> None:
    """Writes the file of ``--save-latent``: of a run that ended early the chunks that were done, of none no file."""
    if exchange.recorder is not None and exchange.recorder.num_latents:
        save_latents(options.save_latent, exchange.recorder.latents())
