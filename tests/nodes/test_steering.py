"""What steers a stream and how footage is read: every widget reaches the library, and is off where it is not given."""

import inspect
from fractions import Fraction

import node_calls as nodes
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.video.reader import VideoReader, probe

# Four chunks.
CLIP = toys.frames(105, 64, 96)


def by_library(model, vae, clip, antialias=False, **options):
    stream = EditStream(
        model.network, vae.network, nodes.encoder(), prompt="make it snow", height=64, width=96, antialias=antialias,
        total_frames=len(clip), options=StreamOptions(**{"steps": 2, "seed": 3, **options}),
    )  # fmt: skip
    return torch.cat([chunk.images for chunk in (*stream.push(clip), *stream.flush())])


def read(video):
    with VideoReader(video.file) as reader:
        return torch.stack(list(reader))


@pytest.mark.parametrize(
    "options",
    [{"anchor_every": 2}, {"steps": 3, "start_step": 1}, {"max_sink_distance": 11}],
    ids=lambda options: ",".join(options),
)
def test_streams_are_steered(host, options):
    import comfy.utils

    model, vae = nodes.model(), nodes.vae()
    positive, _ = nodes.prompts()
    expected = by_library(model, vae, CLIP, **options)
    assert not torch.equal(expected, by_library(model, vae, CLIP, steps=options.get("steps", 2)))
    latent, _ = nodes.encode(vae, CLIP)
    comfy.utils.ProgressBar.made.clear()
    edited, _ = nodes.sample(model, positive, latent, **options)
    assert torch.equal(nodes.decode_images(vae, edited), expected)
    whole = nodes.edit_video(model, vae, positive, CLIP.float() / 255, **options)
    assert torch.equal(read(whole), read(nodes.decode_video(vae, edited)[0]))
    bars = [bar for bar in comfy.utils.ProgressBar.made if bar.total > 8]
    assert len(bars) == 2
    for bar in bars:
        assert max(bar.values) in (bar.total, bar.total - 1), "the bar does not end where the work does"


def test_what_is_not_given_is_off():
    """Workflows that were saved without these widgets go on as they did."""
    for name in ("Sampler", "EditVideo", "EncodeVideo", "DecodeVideo", "DecodeImages", "Prompt"):
        node = nodes.node(name)
        defaults = inspect.signature(node.execute).parameters
        for slot in node.define_schema().inputs:
            if slot.optional and slot.fields["advanced"]:
                assert defaults[slot.id].default == slot.fields["default"], (name, slot.id)
    off = StreamOptions()
    for slot in nodes.node("Sampler").define_schema().inputs:
        if hasattr(off, slot.id):
            assert slot.fields["default"] == getattr(off, slot.id)


def test_start_step_beyond_the_grid(host):
    with pytest.raises(InputError, match="start_step 2 is not on a grid of 2 steps"):
        nodes.edit_video(nodes.model(), nodes.vae(), nodes.prompts()[0], CLIP[:9].float() / 255, start_step=2)


def test_antialias(host):
    model, vae = nodes.model(), nodes.vae()
    positive, _ = nodes.prompts()
    large = toys.frames(33, 256, 384)
    latent, state = nodes.encode(vae, large, antialias=True)
    assert not torch.equal(latent["samples"], nodes.encode(vae, large)[0]["samples"])
    edited, _ = nodes.sample(model, positive, latent, state=state)
    assert torch.equal(nodes.decode_images(vae, edited), by_library(model, vae, large, antialias=True))
    whole = nodes.edit_video(model, vae, positive, large.float() / 255, antialias=True)
    assert not torch.equal(read(whole), read(nodes.edit_video(model, vae, positive, large.float() / 255)))
    _, state = nodes.encode(vae, large, total_frames=-1, antialias=True)
    with pytest.raises(InputError, match="made with antialias True, not False"):
        nodes.encode(vae, large, total_frames=-1, state=state)
    tiled, _ = nodes.encode(vae, large, antialias=True, tiles=True)
    torch.testing.assert_close(tiled["samples"], latent["samples"], atol=1e-4, rtol=0)


def test_compare(host):
    model, vae = nodes.model(), nodes.vae()
    positive, _ = nodes.prompts()
    clip = CLIP[:33].float() / 255
    alone = read(nodes.edit_video(model, vae, positive, clip))
    both = nodes.edit_video(model, vae, positive, clip, compare="side-by-side")
    info = probe(both.file)
    assert (info.width, info.height, info.num_frames) == (192, 64, 33)
    source, edited = read(both).split(96, 2)
    # What is left of the difference is that of 4:2:0.
    assert (edited.float() - alone.float()).abs().mean() < 3
    assert (source.float() - CLIP[:33].float()).abs().mean() < 6
    wiped = read(nodes.edit_video(model, vae, positive, clip, compare="wipe"))
    assert (wiped[0, :, :40].float() - source[0, :, :40].float()).abs().mean() < 3
    assert (wiped[0, :, 56:].float() - alone[0, :, 56:].float()).abs().mean() < 3


def test_high_dynamic_range_is_said_what_to_do_with(host, tmp_path, monkeypatch):
    from comfy_api import latest
    from sana_streaming.nodes import frames

    model, vae = nodes.model(), nodes.vae()
    positive, _ = nodes.prompts()
    made, reader = [], frames.VideoReader
    monkeypatch.setattr(
        frames, "VideoReader", lambda *args, **named: made.append(named["hdr"]) or reader(*args, **named)
    )
    path = video_files.write_clip(tmp_path / "clip.mp4", CLIP[:9], rate=Fraction(25))
    video = latest.VideoFromFile(str(path))
    nodes.encode(vae, video)
    nodes.encode(vae, video, hdr="tone-map")
    nodes.edit_video(model, vae, positive, video, hdr="ignore")
    assert made == ["refuse", "tone-map", "ignore"]


def test_the_report_on_the_node(host):
    nodes.edit_video(nodes.model(), nodes.vae(), nodes.prompts()[0], CLIP[:33].float() / 255)
    assert nodes.texts()[-1].startswith("33 frames in 1 chunk, ")
    speed, stages, memory, decoder = nodes.texts()[-1].splitlines()
    assert " frames per second, the first after " in speed
    assert all(f"{stage} " in stages for stage in ("ms per chunk:", "encode", "denoise", "decode", "write"))
    assert memory.startswith("peak memory: ")
    assert "resident; state " in memory
    assert decoder == "decoder causal: frames come with their latents"
