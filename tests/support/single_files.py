"""ComfyUI's single-file text encoder, made from a Hugging Face folder; and SentencePiece models, field by field."""

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


def varint(number):
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number, value):
    """One field of a protocol buffer: an int as a varint, a float in four bytes, a string or a message with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def sentence_piece(pieces, *, algorithm=BPE, adds_space=False):
    """The bytes of a model with ``pieces``, (text, score, kind) each, whose normalizer only turns spaces into "▁"."""
    model = b"".join(
        field(1, field(1, text) + field(2, float(score)) + (field(3, kind) if kind != NORMAL else b""))
        for text, score, kind in pieces
    )
    bytes_known = any(kind == BYTE for _, _, kind in pieces)
    places = {text: index for index, (text, _, _) in enumerate(pieces)}
    ids = ((40, "<unk>"), (41, "<bos>"), (42, "<eos>"), (43, "<pad>"))
    trainer = field(3, algorithm) + field(4, len(pieces)) + field(35, int(bytes_known))
    trainer += b"".join(field(number, places[text]) for number, text in ids)
    # What each of them is called, in the same order.
    model += field(2, trainer + b"".join(field(number + 5, text) for number, text in ids))
    spaces = field(3, int(adds_space)) + field(4, 0) + field(5, 1)
    return model + field(3, field(1, "identity") + spaces)


def pieces_of(folder):
    """The pieces of a folder's tokenizer.json, each merge scored by its rank."""
    model = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ranks = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    kinds = {"<unk>": UNKNOWN, "<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL}
    kinds |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    texts = sorted(model["vocab"], key=model["vocab"].get)
    return [(text, -ranks.get(text, len(ranks)), kinds.get(text, NORMAL)) for text in texts]


def write_single_file(folder, path, *, metadata=None, change=None):
    """Writes the folder's weights and tokenizer as one file; ``change`` may alter the tensors before they are written."""
    folder = Path(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["spiece_model"] = torch.tensor(list(sentence_piece(pieces_of(folder))), dtype=torch.uint8)
    if change:
        change(tensors)
    if metadata is None:
        metadata = {"config": (folder / "config.json").read_text()}
    save_file(tensors, path, metadata)
    return path
