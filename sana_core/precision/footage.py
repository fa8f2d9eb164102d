"""Calibration clips from frames: drawn scenes that the package brings, or anybody's videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..streaming.frame_stream import EncodeStream
from ..streaming.prompt_encoders import PromptEncoder
from ..streaming.state import StreamSettings, StreamState
from ..training.data.edits import EDITS
from ..training.data.scenes import Shot, make_scene
from ..training.data.sources import FIRST_TRAINING_SEED
from .reference import CalibrationClip

# Three chunks: the shortest clip with a first, an early and a late one.
NUM_FRAMES = 65
# Edits that change the whole picture, each in another way.
_EDITS = ("night", "negative", "sepia", "black_and_white")
MAX_SCENES = 64


@dataclass(frozen=True)
class Footage:
    """Frames uint8 [F, H, W, 3] and what to do to them."""

    name: str
    frames: Tensor
    instruction: str


def scenes(count: int, height: int, width: int, num_frames: int = NUM_FRAMES) -> Iterator[Footage]:
    """``count`` drawn scenes with edits in turn, always the same; none of them is among the held-out ones."""
    if not 1 <= count <= MAX_SCENES:
        raise InputError(f"{count} calibration scenes are out of range; use 1 to {MAX_SCENES}")
    for number in range(count):
        edit = EDITS[_EDITS[number % len(_EDITS)]]
        shot = Shot(make_scene(FIRST_TRAINING_SEED + number, height, width), range(num_frames))
        yield Footage(f"scene {FIRST_TRAINING_SEED + number}", shot.frames(), edit.instructions({})[0])


@torch.no_grad()
def calibration_clips(
    footage: Iterable[Footage], vae: CausalVAE, text: PromptEncoder, height: int, width: int
) -> list[CalibrationClip]:
    """The footage fitted to ``height`` x ``width``, encoded as a stream encodes it, with its embedded instructions."""
    clips = []
    for each in footage:
        settings = StreamSettings(height, width, len(each.frames)).with_vae(vae)
        stream = EncodeStream(vae, StreamState(settings))
        chunks = [*stream.push(each.frames), *stream.flush()]
        clips.append(CalibrationClip(each.name, torch.cat(chunks, 2).float(), text.encode(each.instruction)))
    text.unload()
    return clips
