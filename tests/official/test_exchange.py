import os
from fractions import Fraction

import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.exchange import (
    EMBED_KEYS,
    ClipLatents,
    PromptPair,
    latent_path,
    load_latents,
    load_text_embeds,
    save_latents,
    save_text_embeds,
)
from sana_streaming.sana_core.models.prompt import PromptEmbedding

CHANNELS, LENGTH = 6, 10


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clip_latent.pt"


# Latents


def test_latents_are_found_beside_the_video(tmp_path):
    assert latent_path(tmp_path / "my.clip.mp4") == tmp_path / "my.clip_latent.pt"


def test_reads_the_latents_of_the_official_script(path):
    tensor = noise(3, 4, 5, 2, 3)
    torch.save(tensor, path)
    latents = load_latents(path, 4, (2, 3))
    for index, part in enumerate((latents.noise, latents.source, latents.result)):
        assert part.shape == (1, 4, 5, 2, 3) and part.dtype == torch.float32
        assert torch.equal(part[0], tensor[index])
        # Letting go of one frees its memory.
        assert part.untyped_storage().nbytes() == part.nbytes


def test_writes_latents_as_the_official_script(path):
    parts = [noise(1, 4, 5, 2, 3) + index for index in range(3)]
    path.write_text("an older file")
    save_latents(path, ClipLatents(parts[0], parts[1].bfloat16(), parts[2]))
    tensor = torch.load(path, weights_only=True)
    assert tensor.shape == (3, 4, 5, 2, 3) and tensor.dtype == torch.float32
    assert torch.equal(tensor[0], parts[0][0]) and torch.equal(tensor[2], parts[2][0])
    assert torch.equal(tensor[1], parts[1].bfloat16().float()[0])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(InputError, match=r"source latents of shape \(1, 4, 4, 2, 3\)"):
        save_latents(path, ClipLatents(parts[0], parts[1][:, :, 1:], parts[2]))
    assert torch.equal(load_latents(path, 4).noise, parts[0])


def test_half_precision_is_widened(path):
    torch.save(noise(3, 4, 5, 2, 3).bfloat16(), path)
    assert load_latents(path, 4).source.dtype == torch.float32


def test_a_place_that_cannot_be_written_is_an_oserror(tmp_path):
    latents = ClipLatents(*(noise(1, 4, 5, 2, 3) for _ in range(3)))
    with pytest.raises(OSError, match="x_latent"):
        save_latents(tmp_path / "absent" / "x_latent.pt", latents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"samples": torch.zeros(3, 4, 5, 2, 3)}, "holds a dict; .* one float tensor"),
        (torch.zeros(2, 4, 5, 2, 3), r"shape \(2, 4, 5, 2, 3\)"),
        (torch.zeros(3, 4, 5, 2), r"shape \(3, 4, 5, 2\)"),
        (torch.zeros(3, 4, 0, 2, 3), r"shape \(3, 4, 0, 2, 3\)"),
        (torch.zeros(3, 4, 5, 2, 3, dtype=torch.int32), "torch.int32"),
        (torch.zeros(3, 8, 5, 2, 3), "has 8 channels, the model 4"),
        (torch.zeros(3, 4, 5, 3, 2), "latents of 3x2, the clip is 2x3; set height and width"),
        (torch.full((3, 4, 5, 2, 3), float("nan")), "not finite"),
        (Fraction(1, 2), "Python objects, which are never executed"),
    ],
)
def test_other_files_than_latents_are_refused(path, content, message):
    torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        load_latents(path, 4, (2, 3))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


# Embedded prompts


def official_embeds():
    """A dict as the official script takes it: all rows of the encoder's output, masks of integers, two dtypes."""
    return {
        "prompt_embeds": noise(1, 1, LENGTH, CHANNELS),
        "prompt_mask": torch.tensor([[1] * 4 + [0] * (LENGTH - 4)]),
        "negative_embeds": noise(1, 1, LENGTH, CHANNELS).bfloat16(),
        "negative_mask": torch.tensor([[1] * LENGTH]),
    }


def test_reads_the_embeddings_of_the_official_script(path):
    content = official_embeds()
    torch.save(content | {"prompt": "a cat"}, path)
    pair = load_text_embeds(path, CHANNELS, LENGTH)
    for prompt, name in ((pair.positive, "prompt"), (pair.negative, "negative")):
        embeds, count = content[f"{name}_embeds"], int(content[f"{name}_mask"].sum())
        assert prompt.embeds.shape == (1, LENGTH, CHANNELS) and prompt.embeds.dtype == embeds.dtype
        assert torch.equal(prompt.rows, embeds[0, 0, :count]) and not prompt.embeds[0, count:].any()
        assert prompt.num_tokens == count == prompt.mask.sum() and prompt.mask.dtype == torch.bool
        assert prompt.truncated_tokens == 0


def test_writes_embeddings_as_the_official_script(path):
    pair = PromptPair(
        PromptEmbedding.from_rows(noise(3, CHANNELS).bfloat16(), LENGTH, truncated_tokens=2),
        PromptEmbedding.from_rows(noise(1, CHANNELS), LENGTH),
    )
    save_text_embeds(path, pair)
    content = torch.load(path, weights_only=True)
    assert tuple(content) == EMBED_KEYS
    assert content["prompt_embeds"].shape == content["negative_embeds"].shape == (1, 1, LENGTH, CHANNELS)
    assert content["prompt_mask"].tolist() == [[1] * 3 + [0] * (LENGTH - 3)]
    assert content["prompt_mask"].dtype == torch.int64
    again = load_text_embeds(path, CHANNELS, LENGTH)
    assert torch.equal(again.positive.embeds, pair.positive.embeds)
    assert torch.equal(again.negative.embeds, pair.negative.embeds)


def test_masks_of_other_kinds_and_embeddings_without_the_extra_axis_are_read(path):
    content = official_embeds()
    content["prompt_embeds"] = content["prompt_embeds"][0]
    content["prompt_mask"], content["negative_mask"] = content["prompt_mask"].bool(), content["negative_mask"].float()
    torch.save(content, path)
    pair = load_text_embeds(path, CHANNELS, LENGTH)
    assert (pair.positive.num_tokens, pair.negative.num_tokens) == (4, LENGTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_embeds": noise(1, 1, LENGTH, 5)}, r"prompt_embeds is torch.float32 of shape \(1, 1, 10, 5\)"),
        ({"negative_embeds": noise(1, 1, 9, CHANNELS)}, r"negative_embeds is .*must be a float tensor \[1, 1, 10, 6\]"),
        ({"prompt_embeds": None}, "prompt_embeds is NoneType"),
        ({"prompt_embeds": torch.zeros(1, 1, LENGTH, CHANNELS).long()}, "prompt_embeds is torch.int64"),
        (
            {"prompt_embeds": torch.full((1, 1, LENGTH, CHANNELS), torch.inf)},
            "prompt_embeds holds numbers that are not",
        ),
        ({"prompt_mask": torch.ones(LENGTH)}, "prompt_mask is torch.float32 of shape"),
        ({"prompt_mask": torch.zeros(1, LENGTH)}, "not ones followed by zeros"),
        ({"prompt_mask": torch.tensor([[0, *[1] * (LENGTH - 1)]])}, "padding on the right"),
        ({"prompt_mask": torch.full((1, LENGTH), 2)}, "not ones followed by zeros"),
    ],
)
def test_other_embeddings_are_refused(path, change, message):
    torch.save(official_embeds() | change, path)
    with pytest.raises(InputError, match=message) as caught:
        load_text_embeds(path, CHANNELS, LENGTH)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_is_missing_is_named(path):
    content = official_embeds()
    del content["negative_mask"], content["prompt_mask"]
    torch.save(content, path)
    with pytest.raises(InputError, match="lacks prompt_mask, negative_mask; give a dict with"):
        load_text_embeds(path, CHANNELS, LENGTH)
    torch.save(torch.zeros(2), path)
    with pytest.raises(InputError, match="holds a Tensor; give a dict"):
        load_text_embeds(path, CHANNELS, LENGTH)


# Files


@pytest.mark.parametrize("read", [lambda path: load_latents(path, 4), lambda path: load_text_embeds(path, 4)])
def test_damaged_files_are_refused(path, read, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(path)
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)
    path.write_bytes(b"not a torch file")
    with pytest.raises(InputError, match="not a whole torch file"):
        read(path)
    torch.save(noise(3, 4, 5, 2, 3), path)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a whole torch file"):
        read(path)
    data[data.index(b"PK\x01\x02") + 28] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="torch file"):
        read(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("content", [Trap(), {key: Trap() for key in EMBED_KEYS}])
def test_nothing_in_a_file_is_executed(path, tmp_path, monkeypatch, content):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save(content, path)
    for read in (load_latents, load_text_embeds):
        with pytest.raises(InputError, match="never executed"):
            read(path, CHANNELS)
    assert not (tmp_path / "sprung").exists()
