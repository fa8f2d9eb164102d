"""The editor under evaluation gives what the library gives."""

from dataclasses import replace

import pytest
import torch
import toys
from sana_streaming.sana_core.evaluation.editor import StreamEditor
from sana_streaming.sana_core.models import chunk_tile
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.video.geometry import pixels_to_uint8, resize_and_crop
from sana_streaming.sana_core.weights.random_init import random_vae


@pytest.fixture(scope="module")
def editor():
    return StreamEditor(*toys.networks(), height=toys.SIZE, width=toys.SIZE, options=StreamOptions(steps=2, seed=3))


@pytest.mark.parametrize("total", [44, None])
def test_edits_are_those_of_the_stream(editor, total):
    frames = toys.frames(44)
    edited = list(editor.edit(frames.split(10), "make it snow", total))
    assert len(edited) == 2
    expected = toys.run(toys.stream(total, seed=3), frames)
    assert torch.equal(torch.cat(edited), pixels_to_uint8(expected))


def test_the_round_trip_in_chunks_is_that_of_the_whole_clip(editor):
    """44 frames are padded to 49, in two chunks."""
    frames = toys.frames(44)
    parts = list(editor.round_trip(frames))
    assert [len(part) for part in parts] == [25, 19]
    padded = torch.cat([frames, frames[-1:].expand(5, -1, -1, -1)])
    with torch.no_grad():
        latents, _ = editor.vae.encode(resize_and_crop(padded, toys.SIZE, toys.SIZE).movedim(0, 1)[None])
        pixels, _ = editor.vae.decode(latents)
    whole = pixels_to_uint8(pixels[0].movedim(1, 0))[:44]
    # Truncation to uint8 can fall on either side of a level.
    assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1


def test_a_decoder_that_is_not_causal_brings_every_frame(editor):
    vae = random_vae(replace(editor.vae.config, decoder_causal=False))
    late = StreamEditor(editor.model, vae, editor.text, height=toys.SIZE, width=toys.SIZE, options=editor.options)
    frames = toys.frames(49)
    with torch.no_grad():
        latents, _ = vae.encode(resize_and_crop(frames, toys.SIZE, toys.SIZE).movedim(0, 1)[None])
        first, state = chunk_tile.decode(vae, latents)
        whole = torch.cat([first, chunk_tile.flush(vae, state)], 2)
    decoded = torch.cat(list(late.round_trip(frames)))
    assert (decoded.int() - pixels_to_uint8(whole[0].movedim(1, 0)).int()).abs().max() <= 1
