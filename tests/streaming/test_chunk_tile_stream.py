"""A stream over a VAE whose decoder is not causal: frames come late, and all of them come."""

from dataclasses import replace
from functools import cache

import compare
import pytest
import torch
import toys
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models import chunk_tile
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.memory import stream_memory
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import prompt_context, sample_clip
from sana_streaming.sana_core.streaming.state import StreamState
from sana_streaming.sana_core.weights.random_init import random_vae

SIZE = 8
# Eight frames per latent frame as in the release, but only four pixels.
CONFIG = VAEConfig(
    latent_channels=16,
    block_out_channels=(16, 16, 16),
    layers_per_block=(0, 0, 0, 1),
    downsample_type=("temporal",) * 3,
    decoder_block_out_channels=(8, 8, 8),
    decoder_layers_per_block=(0, 0, 0, 1),
    decoder_upsample_type=("temporal",) * 3,
    upsample_factor=(1, 1, 1),
)


@cache
def vae_of(causal: bool) -> CausalVAE:
    return random_vae(replace(CONFIG, decoder_causal=causal))


def networks(causal=False):
    model, _, text = toys.networks()
    return model, vae_of(causal), text


def stream(total=None, causal=False, **options):
    settings = StreamOptions(**{"steps": 2, **options})
    size = {"height": SIZE, "width": SIZE}
    return EditStream(*networks(causal), prompt="make it snow", total_frames=total, options=settings, **size)


def frames(count):
    return toys.frames(count, SIZE, SIZE)


def places(chunks):
    return [(chunk.index, chunk.first_frame, len(chunk.pixels)) for chunk in chunks]


@pytest.mark.parametrize("count", [1, 2, 9, 17, 24, 25, 33, 34, 41, 57, 58])
@pytest.mark.parametrize("known", [True, False], ids=["known", "live"])
def test_as_many_frames_out_as_in(count, known):
    editor = stream(count if known else None)
    clip = frames(count)
    out = toys.run(editor, clip)
    assert len(out) == count
    assert out.isfinite().all()
    assert editor.state.frames_out == editor.state.frames_in == count
    assert (editor.state.finished, editor.frames_held, editor.decoder_name) == (True, 0, "chunk_tile")
    pushes = [count // 3, count - count // 3]
    assert torch.equal(toys.run(stream(count if known else None), clip, pushes), out)


def test_frames_come_three_latent_frames_late():
    editor = stream(None)
    clip = frames(82)
    assert places(editor.push(clip[:32])) == []
    assert places(editor.push(clip[32:33])) == [(0, 0, 17)]
    assert editor.frames_held == 16
    assert places(editor.push(clip[33:])) == [(1, 17, 24), (2, 41, 24)]
    assert editor.state.frames_in - editor.state.num_waiting == editor.state.frames_out + editor.frames_held == 81
    assert places(editor.flush()) == [(3, 65, 17)]
    # A first chunk of three latent frames completes no tile: it gives nothing, and goes on all the same.
    known = stream(41)
    assert places(known.push(clip[:17])) == []
    assert (known.state.num_waiting, known.state.frames_out, known.frames_held) == (0, 0, 17)
    assert places(known.push(clip[17:41])) == [(1, 0, 41)]


def test_a_live_stream_that_ends_at_a_chunk_border():
    editor = stream(None)
    assert places(editor.push(frames(57))) == [(0, 0, 17), (1, 17, 24)]
    state = editor.state.clone()
    tail = editor.flush()
    assert places([next(tail)]) == [(1, 41, 16)]
    # Whoever fails on the tail can have it again.
    tail.close()
    assert (editor.state.finished, editor.state.frames_out) == (False, 41)
    assert places(editor.flush()) == [(1, 41, 16)]
    assert places(editor.flush()) == []
    assert editor.state.decoder == {}
    branch = EditStream.resume(*networks(), state)
    assert places([*branch.push(frames(1)), *branch.flush()]) == [(2, 41, 17)]
    assert places(stream(None).flush()) == []


def test_stream_equals_the_sampler_on_whole_latents():
    model, vae, text = networks()
    clip = frames(81)
    streamed = toys.run(stream(81, seed=5), clip)
    options = StreamOptions(steps=2, seed=5)
    source, _ = vae.encode((clip.movedim(-1, 0).float()[None] / 255 - 0.5) / 0.5)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(5))
    prompt = text.encode("make it snow")
    latents = sample_clip(model, prompt_context(model, options, prompt.embeds, prompt.mask), noise, source, options)
    expected = chunk_tile.decode_clip(vae, latents)
    compare.assert_near(streamed, expected[0].movedim(1, 0), 1e-4, "pixels")


@pytest.mark.parametrize("pushed", [7, 17, 33, 40, 57])
@pytest.mark.parametrize("total", [74, None], ids=["known", "live"])
def test_a_saved_stream_goes_on(tmp_path, pushed, total):
    clip = frames(74)
    expected = toys.run(stream(total), clip)
    editor = stream(total)
    before = [chunk.pixels for chunk in editor.push(clip[:pushed])]
    editor.state.save(tmp_path / "state.safetensors")
    again = EditStream.resume(*networks(), StreamState.load(tmp_path / "state.safetensors"))
    assert torch.equal(torch.cat([*before, toys.run(again, clip[pushed:])]), expected)


def test_a_prompt_changes_no_frame_that_was_given_out():
    clip = frames(81)
    plain = toys.run(stream(None), clip)
    editor = stream(None)
    out = [chunk.pixels for chunk in editor.push(clip[:33])]
    editor.set_prompt("turn it to night")
    changed = torch.cat(
        [*out, *(chunk.pixels for chunk in editor.push(clip[33:])), *(c.pixels for c in editor.flush())]
    )
    # The first frame of a blend is wholly the tile before.
    assert torch.equal(changed[:18], plain[:18])
    assert (changed[18:] - plain[18:]).abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_chunk_stopped_in_the_decode_or_failed_on_comes_again():
    clip = frames(57)
    expected = toys.run(stream(57), clip)
    editor = stream(57)

    def stop(progress):
        if progress.stage == "decode":
            raise KeyboardInterrupt

    editor.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        list(editor.push(clip))
    editor.on_progress = None
    out = []
    with pytest.raises(OSError, match="disk"):
        for chunk in editor.drain():
            if out:
                raise OSError("disk full")
            out.append(chunk.pixels)
    assert (editor.state.frames_out, editor.frames_held, editor.state.num_waiting) == (17, 16, 24)
    out += [chunk.pixels for chunk in editor.drain()]
    assert torch.equal(torch.cat(out), expected)


def test_state_size_does_not_grow_and_is_foreseen():
    editor = stream(None)
    list(editor.push(frames(33)))
    sizes = []
    for _ in range(4):
        list(editor.push(frames(24)))
        sizes.append(editor.state.nbytes)
    assert len(set(sizes)) == 1
    model, vae, _ = networks()
    size, dtypes = (SIZE, SIZE), (torch.float32, torch.float32)
    needed = stream_memory(model.config, vae.config, ChunkPlan(None), size, StreamOptions(steps=2), *dtypes)
    assert needed.dit_state + needed.vae_state == sizes[0]


def test_a_state_keeps_its_decoder():
    editor = stream(None)
    list(editor.push(frames(33)))
    assert editor.state.settings.to_dict()["decoder"] == "chunk_tile"
    with pytest.raises(InputError, match="made with the decoder chunk_tile, not causal"):
        EditStream.resume(*networks(causal=True), editor.state.clone())
    causal = stream(None, causal=True)
    assert (causal.decoder_name, causal.frames_held) == ("causal", 0)
    list(causal.push(frames(33)))
    with pytest.raises(InputError, match="made with the decoder causal, not chunk_tile"):
        EditStream.resume(*networks(), causal.state)
