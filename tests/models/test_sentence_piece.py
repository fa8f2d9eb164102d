import random

import pytest
import single_files
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.models.sentence_piece import PieceKind, load_sentence_piece, merges, parse_pieces
from single_files import BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, UNUSED, USER_DEFINED
from tokenizers import Tokenizer

CONTROLS = [("<pad>", 0, CONTROL), ("<eos>", 0, CONTROL), ("<bos>", 0, CONTROL), ("<unk>", 0, UNKNOWN)]
BYTES = [(f"<0x{byte:02X}>", 0, BYTE) for byte in range(256)]
# "aba" and "▁ab" can be made in two ways, "▁a" competes with "ab"; runs of "▁" and line breaks are never taken apart.
MERGED = ("ab", "▁a", "ba", "aba", "▁ab", "cab", "▁c", "▁cab", "bb", "abab")
DEFINED = ("\n", "\n\n", "▁▁", "▁▁▁", "<start_of_turn>")
PIECES = [
    *CONTROLS,
    *BYTES,
    *((text, 0, USER_DEFINED) for text in DEFINED),
    *((text, -1 - rank, NORMAL) for rank, text in enumerate(MERGED)),
    *((letter, -100, NORMAL) for letter in "▁abc<>_12"),
]
MODEL = single_files.sentence_piece(PIECES)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def tokens(text):
    return load_sentence_piece(MODEL, "model").encode(text, add_special_tokens=False).tokens


def test_reads_every_piece():
    model = parse_pieces(MODEL, "model")
    assert [(piece.text, piece.score, piece.kind) for piece in model.pieces] == PIECES
    assert model.is_bpe and not model.adds_space
    # What is left out has the value that the format says.
    bare = parse_pieces(single_files.field(1, single_files.field(1, "a")), "model")
    assert bare.pieces[0].kind == PieceKind.NORMAL and bare.pieces[0].score == 0
    assert not bare.is_bpe and bare.adds_space


def test_merges_are_all_pairs_by_score():
    pairs = merges(parse_pieces(MODEL, "model").pieces)
    assert pairs[:3] == [("a", "b"), ("▁", "a"), ("b", "a")]
    assert pairs.index(("a", "ba")) < pairs.index(("▁", "ab")) and ("ab", "a") in pairs and ("▁a", "b") in pairs
    assert not [pair for pair in pairs if "\n" in pair[0] + pair[1]] and ("▁", "▁") not in pairs
    unused = parse_pieces(single_files.sentence_piece([*PIECES, ("ac", -50, UNUSED)]), "model")
    assert merges(unused.pieces)[-1] == ("a", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a cab", ["a", "▁cab"]),
        ("ab a", ["ab", "▁a"]),
        ("a   cab", ["a", "▁▁▁", "cab"]),
        ("a  \n\n\nb", ["a", "▁▁", "\n\n", "\n", "b"]),
        ("<start_of_turn>ab", ["<start_of_turn>", "ab"]),
        ("é\tz", ["<0xC3>", "<0xA9>", "<0x09>", "<0x7A>"]),
        # A byte piece is not what its spelling means.
        ("<0x09>", ["<", "<0x30>", "<0x78>", "<0x30>", "<0x39>", ">"]),
        ("<bos>a", ["<bos>", "a"]),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


def test_same_ids_as_sentencepiece():
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    reference = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    tokenizer = load_sentence_piece(MODEL, "model")
    draw = random.Random(0)
    alphabet = ["a", "b", "c", " ", "\n", "ab", "é", "<", "_", "1", "<start_of_turn>", "▁", "日", "\t"]
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(500)]
    assert [ids(tokenizer, text) for text in texts] == reference.encode(texts)


def test_same_ids_as_the_tokenizer_json(toy):
    reference = Tokenizer.from_file(str(toy / "tokenizer.json"))
    tokenizer = load_sentence_piece(single_files.sentence_piece(single_files.pieces_of(toy)), "model")
    texts = (
        "turn it into a watercolor painting",
        "  Replace the  sky\nwith a sunset. motion score: 10.",
        "naïve 日本 <bos> a<pad>cat <0x41>\t!",
        "",
    )
    for text in texts:
        assert ids(tokenizer, text) == ids(reference, text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "without pieces"),
        (MODEL[:-3], "it ends 3 bytes early"),
        (b"\x0b", "wire type 3"),
        (b"\x80", "no readable SentencePiece model"),
        (single_files.field(1, single_files.field(1, b"\xff")), "no readable"),
        (single_files.field(1, single_files.field(3, 99)), "no readable"),
        (single_files.sentence_piece(PIECES, algorithm=UNIGRAM), "of another kind"),
        (single_files.sentence_piece(PIECES, adds_space=True), "of another kind"),
        (single_files.sentence_piece([*PIECES, ("ab", -1, NORMAL)]), "doubled pieces"),
        (single_files.sentence_piece([*PIECES, ("<other>", -1, UNKNOWN)]), "not one unknown"),
    ],
)
def test_refused(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sentence_piece(data, "my.safetensors")
    assert "my.safetensors" in str(caught.value) and "\n" not in str(caught.value)
