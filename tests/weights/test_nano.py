"""The built-in model: its files are those of its manifest, a broken install is told, its prompts can be told apart."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.models.prompt import PROMPT_PREFIX
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.training.data.edits import EDITS, instruction_words
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.nano_text import CAPTION_CHANNELS, make_nano_text_encoder

TEXT_ENCODER = nano.FOLDER / "text_encoder"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small folder in place of the built-in one."""
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "model.safetensors").write_bytes(bytes(range(100)))
    (tmp_path / "README.md").write_text("a model card\n")
    nano.write_manifest(tmp_path, "7")
    monkeypatch.setattr(nano, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.nano
def test_the_files_are_those_of_the_manifest():
    nano.check_manifest()
    nano.check_size(nano.FOLDER)
    names = json.loads((nano.FOLDER / nano.MANIFEST_NAME).read_text())["files"]
    parts = ("dit/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    assert {*parts, "README.md"} <= set(names)
    for part in parts:
        with safe_open(nano.FOLDER / part, "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "BF16"}, part


def test_a_manifest_lists_every_file(folder):
    nano.check_manifest()
    content = json.loads((folder / "manifest.json").read_text())
    assert content["version"] == "7"
    assert set(content["files"]) == {"README.md", "dit/model.safetensors"}
    assert content["files"]["README.md"]["bytes"] == 13
    assert nano.nano_folder() == folder


def test_a_manifest_notices_changes(folder):
    weights = folder / "dit" / "model.safetensors"
    weights.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="does not describe dit/model.safetensors;"):
        nano.check_manifest()
    (folder / "vae.bin").write_text("x")
    weights.unlink()
    with pytest.raises(CheckpointError, match="does not describe dit/model.safetensors, vae.bin;"):
        nano.check_manifest()


def test_a_manifest_refuses_what_is_too_large(folder, monkeypatch):
    monkeypatch.setattr(nano, "MAX_BYTES", 300)
    with pytest.raises(CheckpointError, match="at most 300"):
        nano.check_size(folder)


@pytest.mark.parametrize("lost", ["dit/model.safetensors", "manifest.json"])
def test_a_broken_install_is_told(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=f"nano is incomplete: .* lacks {lost}; install the package again"):
        nano.nano_folder()


def test_a_manifest_without_files_is_refused(folder):
    (folder / "manifest.json").write_text('{"version": "7"}')
    with pytest.raises(CheckpointError, match="lists no files"):
        nano.nano_folder()


def test_the_text_encoder_can_be_made_again(tmp_path):
    """The transformer was trained on these very bytes."""
    made = make_nano_text_encoder(tmp_path)
    names = sorted(path.name for path in TEXT_ENCODER.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    for name in names:
        assert (made / name).read_bytes() == (TEXT_ENCODER / name).read_bytes(), name
    assert sum(path.stat().st_size for path in TEXT_ENCODER.iterdir()) < 1_200_000


def test_each_word_of_the_edits_is_one_token():
    encoder = GemmaTextEncoder(TEXT_ENCODER)
    start = encoder.tokenize(PROMPT_PREFIX, prefix=None)[1].sum()
    assert start < 150
    for word in instruction_words():
        for spelling in (word, word.capitalize()):
            # The word takes the place of the prefix's last token, a lone space.
            assert encoder.tokenize(spelling)[1].sum() == start, spelling
    filled = {"object": "ball", "alias": "sphere", "color": "red", "original": "blue"}
    for edit in EDITS.values():
        for text in (*edit.instructions(filled), *edit.reverse_instructions(filled)):
            assert encoder.tokenize(text)[1].sum() == start + len(text.split()) - 1, text


def test_prompts_can_be_told_apart():
    """Their last rows, of unit mean square, point in different directions, also where the last word is the same."""
    filled = [
        {"object": shape, "alias": shape, "color": color, "original": "blue"}
        for shape, color in (("ball", "red"), ("box", "red"), ("ball", "green"))
    ]
    texts = list(dict.fromkeys(edit.wordings[0].format(**values) for edit in EDITS.values() for values in filled))
    assert len(texts) == 12
    encoder = GemmaTextEncoder(TEXT_ENCODER, dtype=torch.float32)
    assert encoder.hidden_size == CAPTION_CHANNELS
    last = torch.stack([encoder.encode(text).rows[-1] for text in texts])
    assert torch.allclose(last.square().mean(1), torch.ones(len(texts)), atol=1e-3)
    distances = torch.cdist(last, last) / CAPTION_CHANNELS**0.5 + torch.eye(len(texts))
    assert distances.min() > 0.15
    low = GemmaTextEncoder(TEXT_ENCODER).encode(texts[1]).rows[-1].float()
    assert (low - last[1]).norm() / last[1].norm() < 0.03


def test_a_copy_elsewhere_works(tmp_path):
    copy = shutil.copytree(TEXT_ENCODER, tmp_path / "copy")
    assert GemmaTextEncoder(copy).encode("Make it sepia").num_tokens == 4
