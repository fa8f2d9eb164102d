"""The bidirectional model: encode, sample and decode a clip whole, in the numbers of the library."""

import node_calls as nodes
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.prompt import DEFAULT_NEGATIVE_PROMPT
from sana_streaming.sana_core.models.vae_tiles import RELEASE_TILES
from sana_streaming.sana_core.short_clip import ShortClip, ShortClipOptions
from sana_streaming.sana_core.streaming.memory import clip_vae_memory, short_memory

# Two tiles of 512 pixels side by side.
SIZE = {"width": 544, "height": 64}


def by_library(model, vae, clip, tiles, **options):
    settings = ShortClipOptions(steps=2, seed=3, flow_shift=5.0, **options)
    texts = {"prompt": "make it snow", "negative_prompt": "blurry", "motion_score": 10}
    run = ShortClip(
        model.network, vae.network, nodes.encoder(), settings, total_frames=len(clip), tiles=tiles, **texts, **SIZE
    )
    run.push(clip)
    return torch.cat([piece.images for piece in run.flush()])


@pytest.mark.parametrize("tiles", [RELEASE_TILES, None], ids=["tiles", "whole frame"])
@pytest.mark.parametrize("cfg_scale", [1.0, 6.0])
def test_three_nodes_equal_the_library(host, tiles, cfg_scale):
    """12 frames are padded to 17 and trimmed again."""
    model, vae, clip = nodes.model("bidirectional"), nodes.vae(), toys.frames(12, 64, 544)
    positive, negative = nodes.prompts(motion_score=10)
    latent, state = nodes.encode(vae, clip, **SIZE, tiles=tiles is not None)
    edited = nodes.sample_short(model, positive, latent, cfg_scale=cfg_scale, negative=negative, flow_shift=5.0)
    images = nodes.decode_images(vae, edited, tiles=tiles is not None)
    assert images.shape == (12, 64, 544, 3)
    expected = by_library(model, vae, clip, tiles, cfg_scale=cfg_scale)
    torch.testing.assert_close(images, expected, atol=1e-5 if tiles is None else 0, rtol=0)
    _, state = nodes.decode_video(vae, edited, tiles=tiles is not None, state=state)
    assert (state.frames_in, state.frames_out, state.finished) == (12, 12, True)


def test_tiles_change_the_numbers(host):
    vae, clip = nodes.vae(), toys.frames(9, 64, 544)
    whole, tiled = (nodes.encode(vae, clip, **SIZE, tiles=tiles)[0] for tiles in (False, True))
    assert whole["sana_stream"].sizes == tiled["sana_stream"].sizes
    assert not torch.equal(whole["samples"], tiled["samples"])
    pieces = [nodes.decode_images(vae, whole, tiles=tiles) for tiles in (False, True)]
    assert not torch.equal(*pieces)


def test_room_is_made_for_all_frames_at_once(host):
    model, vae, clip = nodes.model("bidirectional"), nodes.vae(), toys.frames(41, 64, 544)
    latent, _ = nodes.encode(vae, clip, **SIZE, tiles=True)
    sizes = (6, (64, 544), RELEASE_TILES, torch.float32)
    assert host.loaded[-1] == (["CausalVAE"], clip_vae_memory(vae.network.config, *sizes))
    positive, negative = nodes.prompts()
    nodes.sample_short(model, positive, latent, cfg_scale=6.0, negative=negative)
    expected = short_memory(model.network.config, 6, (2, 17), True, torch.float32)
    assert host.loaded[-1] == (["SanaStreamingDiT"], expected)
    nodes.decode_images(vae, latent, tiles=True)
    assert host.loaded[-1] == (["CausalVAE"], clip_vae_memory(vae.network.config, *sizes))


def test_progress_and_stop_at_every_pass_and_tile(host):
    import comfy.utils

    model, vae, clip = nodes.model("bidirectional"), nodes.vae(), toys.frames(9, 64, 544)
    positive, _ = nodes.prompts()
    latent = nodes.encode(vae, clip, **SIZE)[0]
    runs = [
        (2, lambda: nodes.encode(vae, clip, **SIZE, tiles=True)),
        (3, lambda: nodes.sample_short(model, positive, latent, steps=3)),
        (2, lambda: nodes.decode_images(vae, latent, tiles=True)),
    ]
    for units, run in runs:
        comfy.utils.ProgressBar.made.clear()
        run()
        (bar,) = comfy.utils.ProgressBar.made
        assert (bar.total, bar.values) == (units, list(range(units)))
        host.stop_after = units - 1
        with pytest.raises(host.InterruptProcessingException):
            run()


def test_the_wrong_kind_of_model(host):
    vae, clip = nodes.vae(), toys.frames(9, 64, 96)
    positive, _ = nodes.prompts()
    latent, _ = nodes.encode(vae, clip)
    loaded = len(host.loaded)
    with pytest.raises(InputError, match="the model is the streaming one, which edits chunk by chunk"):
        nodes.sample_short(nodes.model(), positive, latent)
    with pytest.raises(InputError, match="the model is the bidirectional one, which sees a clip whole"):
        nodes.sample(nodes.model("bidirectional"), positive, latent)
    with pytest.raises(InputError, match="the model is the bidirectional one, which sees a clip whole"):
        nodes.edit_video(nodes.model("bidirectional"), vae, positive, clip.float() / 255)
    assert len(host.loaded) == loaded


def test_what_is_not_a_short_clip(host):
    model, vae, clip = nodes.model("bidirectional"), nodes.vae(), toys.frames(90, 64, 96)
    positive, _ = nodes.prompts()
    latent, _ = nodes.encode(vae, clip)
    with pytest.raises(InputError, match="the clip has 90 frames; .* 1 to 81 at once: trim the clip, raise max_frames"):
        nodes.sample_short(model, positive, latent)
    part, state = nodes.encode(vae, clip, max_frames=33, total_frames=90)
    with pytest.raises(InputError, match="a part of a stream, and only a whole clip can be edited at once"):
        nodes.sample_short(model, positive, part)
    with pytest.raises(InputError, match="a part of a stream, and only a whole clip can be decoded in tiles"):
        nodes.decode_images(vae, part, tiles=True)
    for changes in ({"state": state}, {"total_frames": 100}, {"total_frames": -1}):
        with pytest.raises(InputError, match="tiles are for a clip that is encoded whole"):
            nodes.encode(vae, clip, tiles=True, **changes)
    with pytest.raises(InputError, match="needs a negative prompt"):
        nodes.sample_short(model, positive, latent, cfg_scale=6.0, max_frames=90)
    (schedule,) = nodes.call("PromptSchedule", positive, nodes.prompts("make it night")[0], "00:01")
    with pytest.raises(InputError, match="a schedule of 2 prompts, and a clip that is edited whole has one"):
        nodes.sample_short(model, schedule, latent, max_frames=90)


def test_the_negative_prompt_of_the_release(host):
    _, own = nodes.prompts(negative=" ", default_negative=True)
    _, expected = nodes.prompts(negative=DEFAULT_NEGATIVE_PROMPT)
    assert torch.equal(own[0][0], expected[0][0])
    _, kept = nodes.prompts(negative="blurry", default_negative=True)
    assert kept[0][1]["sana_prompt"] == "blurry"
