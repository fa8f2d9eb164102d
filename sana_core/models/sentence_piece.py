"""Gemma's tokenizer from the bytes of a SentencePiece model, without the sentencepiece package.

Knows the few fields of that format which matter here, and tokenizers, imported when a tokenizer is built.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BPE = 2
_SPACE = "▁"


class PieceKind(enum.IntEnum):
    """What a piece is, by its number in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One token: its text with "▁" for a space, and its score; of two merges the one with the higher score comes first."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True)
class PieceModel:
    """A SentencePiece model as far as Gemma's tokenizer needs it; a piece's place in ``pieces`` is its token id.

    is_bpe: merges pieces by score, the only algorithm that Gemma uses. adds_space: puts a space in front of every text.
    """

    pieces: tuple[Piece, ...]
    is_bpe: bool
    adds_space: bool


def load_sentence_piece(data: bytes, source: str | Path) -> Tokenizer:
    """A tokenizer from the bytes of a SentencePiece ``tokenizer.model``; ``source`` is named in errors.

    Spaces become "▁" and nothing else of the text is changed, as in Gemma's own tokenizer. Pieces that a user defined are
    never taken apart. Spellings of control pieces such as ``<bos>`` in a text become that piece, as in the tokenizer.json of
    the Hugging Face folder. No BOS or EOS is added.

    Raises CheckpointError for bytes that are no SentencePiece model, or one of another kind than Gemma's.
    """
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    model = parse_pieces(data, source)
    if not model.is_bpe or model.adds_space:
        raise CheckpointError(
            f"{source} holds a SentencePiece model of another kind than Gemma's; use a file of gemma-2-2b-it"
        )
    texts = {kind: [piece.text for piece in model.pieces if piece.kind == kind] for kind in PieceKind}
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    if len(vocabulary) != len(model.pieces) or len(texts[PieceKind.UNKNOWN]) != 1:
        raise CheckpointError(
            f"{source} holds a SentencePiece model with doubled pieces, or not one unknown piece; copy it again"
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges(model.pieces),
            unk_token=texts[PieceKind.UNKNOWN][0],
            fuse_unk=True,
            byte_fallback=bool(texts[PieceKind.BYTE]),
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.add_special_tokens([*texts[PieceKind.CONTROL], *texts[PieceKind.UNKNOWN]])
    # Looked for after spaces have become "▁": such pieces hold runs of it.
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in texts[PieceKind.USER_DEFINED]])
    return tokenizer


def merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """All pairs of pieces that make up a third, those of higher score first."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind in (PieceKind.NORMAL, PieceKind.UNUSED)}
    pairs = [
        (score, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(left, right) for _, left, right in pairs]


def parse_pieces(data: bytes, source: str | Path) -> PieceModel:
    """Reads the protocol buffer. Raises CheckpointError for anything that is not one, or has no pieces."""
    pieces: list[Piece] = []
    # What the format says of a field that is left out: unigram, with a space in front.
    algorithm, adds_space = 1, 1
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                algorithm = _number(value, 3, algorithm)
            elif number == 3 and isinstance(value, bytes):
                adds_space = _number(value, 3, adds_space)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{source} holds no readable SentencePiece model ({error}); copy or download it again"
        ) from error
    if not pieces:
        raise CheckpointError(f"{source} holds a SentencePiece model without pieces; copy or download it again")
    return PieceModel(tuple(pieces), algorithm == _BPE, bool(adds_space))


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, int(PieceKind.NORMAL)
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, PieceKind(kind))


def _number(data: bytes, field: int, default: int) -> int:
    found = [value for number, value in _fields(data) if number == field and isinstance(value, int)]
    return found[-1] if found else default


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field of a message: an int for a varint, otherwise the bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"it ends {position + size - len(data)} bytes early")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
