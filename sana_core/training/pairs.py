"""Clips and their edits to train on, by number: drawn ones, or the user's own out of ZIP shards.

Frames are uint8 [F, H, W, 3], RGB. Formats: ``docs/training.md``.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..video.reader import VideoReader
from .clips import Skips, fit_frames, others_after, shuffled
from .config import ClipSize, PairsData
from .data.sources import training_sample
from .manifests import PAIRS_MANIFEST, PairRecord, read_pairs
from .reverse import check_weight

# Sizes of the release by the label of their shape, height over width; labels are rounded (``docs/training.md``).
BUCKETS: dict[float, tuple[int, int]] = {
    0.5: (672, 1344),
    0.57: (704, 1280),
    0.68: (800, 1152),
    0.78: (832, 1088),
    1.0: (960, 960),
    1.13: (1024, 896),
    1.29: (1088, 832),
    1.46: (1152, 800),
    1.67: (1248, 736),
    1.75: (1280, 704),
    2.0: (1344, 672),
}


class TrainingPair(NamedTuple):
    """Source and target, uint8 [F, H, W, 3] of one size, and the instructions there and, if there is one, back."""

    source: Tensor
    target: Tensor
    prompt: str
    reverse_prompt: str | None


class PairSource(Protocol):
    """Pairs without end."""

    texts: Sequence[str]
    """Every instruction that is known beforehand; more may come with the pairs."""

    def sample(self, seed: int, number: int) -> TrainingPair:
        """A pure function. Raises InputError where no pair can be read."""


class BuiltinPairs:
    """Scenes, photographs and clips under edits whose truth is computed; drawn on ``device``."""

    texts: Sequence[str] = ()

    def __init__(self, frames: int, height: int, width: int, device: torch.device | str = "cpu") -> None:
        self._frames, self._height, self._width, self._device = frames, height, width, device

    def sample(self, seed: int, number: int) -> TrainingPair:
        drawn = training_sample(seed, number, self._frames, self._height, self._width, self._device)
        return TrainingPair(drawn.source, drawn.truth, drawn.instruction, drawn.reverse_instruction)


class ShardPairs:
    """The pairs of a folder with manifest.jsonl, all of them in random order, again and again.

    Members are video files, or .npy arrays uint8 [T, H, W, 3]; [T, H, W] and one channel are grey, of four the last is
    left out. Both sides are cut to the first ``size.frames`` frames, scaled to fill the size and centre-cropped. A pair that
    is shorter or cannot be read is named in a warning, once, and another one of its size takes its place.
    """

    def __init__(self, folder: Path, size: ClipSize, crr_weight: float) -> None:
        """Raises InputError for a bad manifest, and with a CRR weight also for a pair without ``reverse_prompt``."""
        self.records = read_pairs(folder)
        if crr_weight:
            for record in self.records:
                if record.reverse_prompt is None:
                    place = f"{folder / PAIRS_MANIFEST}: pair {record.id!r} has no reverse_prompt"
                    raise InputError(f"{place}; add what turns the edit back, or set crr_weight to 0")
        self._frames = size.frames
        self._size = None if size.bucket or size.height is None or size.width is None else (size.height, size.width)
        self._skips = Skips("pairs")
        texts = (text for record in self.records for text in (record.prompt, record.reverse_prompt) if text)
        self.texts: Sequence[str] = list(dict.fromkeys(texts))

    def sample(self, seed: int, number: int) -> TrainingPair:
        first = self.records[shuffled(seed, number, len(self.records))]
        alike = [record for record in self.records if self.size_of(record) == self.size_of(first)]
        rng = random.Random(f"another {seed} {number}")
        return self._skips.read(others_after(alike, alike.index(first), rng), lambda record: record.id, self._read)

    def size_of(self, record: PairRecord) -> tuple[int, int]:
        """(height, width) in pixels that the pair is brought to."""
        return self._size or nearest_bucket(record.height, record.width)

    def _read(self, record: PairRecord) -> TrainingPair:
        size = self.size_of(record)
        source, target = (
            fit_frames(read_member(record.shard, member, self._frames), *size)
            for member in (record.source_member, record.target_member)
        )
        return TrainingPair(source, target, record.prompt, record.reverse_prompt)


def open_pairs(data: PairsData, size: ClipSize, crr_weight: float, device: torch.device) -> PairSource:
    """The pairs that a config asks for. Raises InputError before any clip is read."""
    check_weight(crr_weight, True)
    if data.pairs is not None:
        return ShardPairs(data.pairs, size, crr_weight)
    assert size.height is not None and size.width is not None
    return BuiltinPairs(size.frames, size.height, size.width, device)


def nearest_bucket(height: int, width: int) -> tuple[int, int]:
    """The released (height, width) whose label is nearest to height over width."""
    return BUCKETS[min(BUCKETS, key=lambda label: abs(label - height / width))]


def read_member(shard: Path, member: str, num_frames: int) -> Tensor:
    """The first frames uint8 [num_frames, H, W, 3] of a video or .npy file inside a ZIP file.

    Raises InputError that names both, for a member that is missing, shorter or cannot be read.
    """
    place = f"{member} in {shard}"
    try:
        with zipfile.ZipFile(shard) as archive, archive.open(member) as file:
            frames = _array_frames(file) if member.lower().endswith(".npy") else _video_frames(file, member, num_frames)
    except KeyError:
        raise InputError(f"{place}: the ZIP file has no such member; add it or drop the pair") from None
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{place} cannot be read ({reason}); pack it again") from error
    if len(frames) < num_frames:
        raise InputError(f"{place} has {len(frames)} frames; training takes {num_frames}, so make size.frames smaller")
    return frames[:num_frames]


def _array_frames(file: IO[bytes]) -> Tensor:
    import numpy as np

    array = np.lib.format.read_array(file, allow_pickle=False)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(f"the array is {array.dtype} {array.shape}; it must be uint8 [frames, height, width, 3]")
    colours = array[..., :3] if array.shape[-1] > 1 else array.repeat(3, -1)
    return torch.from_numpy(np.ascontiguousarray(colours))


def _video_frames(file: IO[bytes], member: str, num_frames: int) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / f"video{PurePosixPath(member).suffix}"
        with copied.open("wb") as out:
            shutil.copyfileobj(file, out)
        return torch.stack(list(VideoReader(copied, max_frames=num_frames)))
