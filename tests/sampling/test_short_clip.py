"""A clip edited whole: the official sampler runs, frames in and out, prompts, progress and stops."""

import dataclasses
from functools import cache

import compare
import golden_dit
import pytest
import torch
import toys
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.prompt import DEFAULT_NEGATIVE_PROMPT
from sana_streaming.sana_core.models.vae_tiles import SpatialTiles
from sana_streaming.sana_core.short_clip import ShortClipOptions, edit_clip, sample_short
from sana_streaming.sana_core.streaming.frame_stream import Progress
from sana_streaming.sana_core.video.geometry import pixels_to_uint8
from sana_streaming.sana_core.weights.random_init import random_dit, random_vae

PROMPT = "make it snow"
# The direct form of the data prediction against the official one, which loses three digits at the first step.
DIRECT_ATOL = 2e-3


class Text:
    """The toy's prompts, and what they were asked for."""

    def __init__(self):
        self.asked, self.unloads = [], 0

    def encode(self, prompt):
        self.asked.append(("positive", prompt))
        return toys.networks()[2].encode(prompt)

    def encode_negative(self, prompt):
        self.asked.append(("negative", prompt))
        return toys.networks()[2].encode(prompt)

    def unload(self):
        self.unloads += 1


@cache
def networks(decoder_causal=False):
    model = random_dit(dataclasses.replace(toys.CONFIGS["dit"], variant="bidirectional"))
    return model, random_vae(dataclasses.replace(toys.CONFIGS["vae"], decoder_causal=decoder_causal))


def edit(
    frames, *, text=None, vae=None, size=(toys.SIZE, toys.SIZE), on_progress=None, prompt=PROMPT, tiles=None, **options
):
    """Two steps unless told otherwise."""
    options = ShortClipOptions(**{"steps": 2, **options})
    height, width = size
    return edit_clip(
        networks()[0],
        vae or networks()[1],
        text or Text(),
        frames,
        options,
        prompt=prompt,
        height=height,
        width=width,
        tiles=tiles,
        on_progress=on_progress,
    )


@pytest.mark.golden
def test_official_runs():
    case, tensors, model = golden_dit.load("dpm_sampler")
    y, negative_y = (tensors[f"input.{name}"].squeeze(1) for name in ("y", "neg_y"))
    mask, negative_mask = (tensors[f"input.{name}"] for name in ("mask", "neg_mask"))
    assert {run["cfg_scale"] > 1 for run in case["runs"]} == {True, False}
    for run in case["runs"]:
        options = ShortClipOptions(steps=run["steps"], cfg_scale=run["cfg_scale"], flow_shift=case["flow_shift"])
        texts, masks = ([negative_y, y], [negative_mask, mask]) if options.guided else ([y], [mask])
        prompt = model.prompt_context(torch.cat(texts), torch.cat(masks))
        passes = []
        result = sample_short(
            model,
            prompt,
            tensors["input.noise"],
            tensors["input.source"],
            options,
            on_pass=lambda *unit, seen=passes: seen.append(unit),
        )
        compare.assert_near(result, tensors[f"{run['name']}.result"], DIRECT_ATOL, run["name"])
        assert passes == [(number, run["steps"]) for number in range(run["steps"])]


def test_the_defaults_are_the_releases():
    options = ShortClipOptions()
    assert (options.steps, options.cfg_scale, options.seed, options.flow_shift) == (50, 6.0, 0, 8.0)
    assert options.max_frames == 81
    text = Text()
    edit(toys.frames(1), text=text, prompt=f"  {PROMPT} ", cfg_scale=options.cfg_scale)
    assert text.asked == [("positive", f"{PROMPT} motion score: 10."), ("negative", DEFAULT_NEGATIVE_PROMPT)]
    assert text.unloads == 1


def test_without_guidance_no_negative_prompt_is_encoded():
    text = Text()
    edit(toys.frames(1), text=text, cfg_scale=1.0)
    assert [kind for kind, _ in text.asked] == ["positive"]


def test_the_whole_road_by_hand():
    """10 frames: padded with the last one to 17, encoded, sampled from seeded noise, decoded, cut back to 10."""
    model, vae = networks()
    clip = toys.frames(10)
    padded = torch.cat([clip, clip[-1:].expand(7, -1, -1, -1)])
    source, _ = vae.encode((padded.movedim(-1, 0).float()[None] / 255 - 0.5) / 0.5)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(5))
    negative, positive = (
        toys.networks()[2].encode(p) for p in (DEFAULT_NEGATIVE_PROMPT, f"{PROMPT} motion score: 10.")
    )
    prompt = model.prompt_context(
        torch.cat([negative.embeds, positive.embeds]), torch.cat([negative.mask, positive.mask])
    )
    latents = sample_short(model, prompt, noise, source, ShortClipOptions(steps=3, seed=5))
    expected = pixels_to_uint8(vae.decode_noncausal(latents)[0].movedim(1, 0))[:10]
    edited = edit(clip, steps=3, seed=5)
    # Bytes are truncated, so rounding may tip one over.
    assert edited.shape == expected.shape
    assert (edited.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(edited, edit(clip, steps=3, seed=6))


@pytest.mark.parametrize("count", [1, 2, 9, 17])
@pytest.mark.parametrize("causal", [False, True], ids=["noncausal", "causal"])
def test_as_many_frames_out_as_in(count, causal):
    edited = edit(toys.frames(count, 50, 90), vae=networks(causal)[1])
    assert edited.shape == (count, toys.SIZE, toys.SIZE, 3)
    assert edited.dtype == torch.uint8


def test_longer_clips_on_request():
    clip = toys.frames(3)
    with pytest.raises(InputError, match="has 3 frames.*edits 1 to 2 at once.*max_frames"):
        edit(clip, max_frames=2)
    assert len(edit(clip, max_frames=3)) == 3


def test_tiles_are_used():
    clip, tiles = toys.frames(1, 128, 64), SpatialTiles(96, 64)
    tiled, whole = (edit(clip, size=(128, 64), tiles=chosen) for chosen in (tiles, None))
    assert not torch.equal(tiled, whole)


def test_progress_counts_every_unit_of_work():
    seen = []
    edit(toys.frames(1, 128, 64), size=(128, 64), tiles=SpatialTiles(96, 64), on_progress=seen.append)
    stages = ["encode"] * 2 + ["denoise"] * 2 + ["decode"] * 2
    assert seen == [Progress(0, 1, stage, number, 6) for number, stage in enumerate(stages)]


@pytest.mark.parametrize("stop_at", range(5))
def test_a_stop_is_obeyed_before_the_next_unit(stop_at):
    """Five units: one tile in, three passes, one tile out."""
    model, vae = networks()
    calls = []
    hooks = [part.register_forward_pre_hook(lambda *_: calls.append(0)) for part in (model, vae.encoder, vae.decoder)]

    class Stop(Exception):
        pass

    def on_progress(progress):
        assert progress.total == 5
        if progress.number == stop_at:
            raise Stop

    with pytest.raises(Stop):
        edit(toys.frames(1), steps=3, on_progress=on_progress)
    for hook in hooks:
        hook.remove()
    assert len(calls) == stop_at


def test_networks_that_do_not_fit():
    streaming, vae, _ = toys.networks()
    with pytest.raises(InputError, match="is the streaming one.*sana_bidirectional_short"):
        edit_clip(streaming, vae, Text(), toys.frames(1), prompt=PROMPT)
    other = random_vae(
        VAEConfig(latent_channels=8, block_out_channels=(8, 16, 32, 32), decoder_block_out_channels=(8, 16, 32))
    )
    with pytest.raises(InputError, match="the VAE makes latents of 8 channels, the model takes 16"):
        edit(toys.frames(1), vae=other)


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (82, (64, 64), "has 82 frames.*edits 1 to 81 at once"),
        (0, (64, 64), "has 0 frames"),
        (1, (70, 64), "height 70 is not a multiple of 32; use height 64"),
        (1, (64, 32), "width 32 is too small"),
    ],
)
def test_clips_that_cannot_be_edited(count, size, message):
    text = Text()
    with pytest.raises(InputError, match=message):
        edit(torch.zeros(count, 8, 8, 3, dtype=torch.uint8), text=text, size=size)
    assert not text.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps 1 is too few.*2 or more"),
        ({"steps": 2.5}, "steps 2.5 is not a whole number"),
        ({"cfg_scale": -1.0}, "cfg_scale -1.0 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"flow_shift": 0.0}, "flow_shift 0.0 must be above 0"),
        ({"flow_shift": float("nan")}, "flow_shift nan must be above 0"),
        ({"max_frames": 0}, "max_frames 0 accepts no clip"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        ShortClipOptions(**options)


def test_a_noise_device_that_is_not_there():
    with pytest.raises(InputError, match="noise_device 'nowhere' cannot draw noise"):
        edit(toys.frames(1), noise_device="nowhere")
