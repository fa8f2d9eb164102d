"""What nodes show while they run, and colours brought back to the source's."""

from fractions import Fraction

import node_calls as nodes
import numpy as np
import pytest
import torch
import toys
from sana_streaming.sana_core.video.geometry import pixels_to_uint8
from sana_streaming.sana_core.video.reader import VideoReader

CLIP = toys.frames(81, 64, 96)


def read(video):
    with VideoReader(video.file) as reader:
        return torch.stack(list(reader)).float()


def previews():
    """The pictures of the last progress bar."""
    import comfy.utils

    return [np.asarray(picture) for _, picture, _ in comfy.utils.ProgressBar.made[-1].previews]


def alike(picture, frame):
    """In brightness: what is read has gone through H.264 in 4:2:0, and toys make noise of every colour."""
    weights = np.array([0.299, 0.587, 0.114])
    return np.abs((picture - frame.numpy()) @ weights).mean() < 6


@pytest.fixture
def networks(host):
    return nodes.model(), nodes.vae(), nodes.prompts()[0]


def edit(networks, clip=CLIP, **changes):
    return nodes.edit_video(*networks, clip.float() / 255, **changes)


def test_each_chunk_is_shown_as_it_is_written(networks):
    frames = read(edit(networks))
    shown = previews()
    assert len(shown) == 3
    for picture, last in zip(shown, frames[[32, 56, 80]], strict=True):
        assert alike(picture, last)


def test_the_source_beside_it(networks):
    frames = read(edit(networks, preview="side-by-side"))
    shown = previews()
    assert [picture.shape for picture in shown] == [(64, 192, 3)] * 3
    for number, picture in zip((32, 56, 80), shown, strict=True):
        assert np.abs(picture[:, :96] - CLIP[number].float().numpy()).mean() < 1
        assert alike(picture[:, 96:], frames[number])
        assert not alike(picture[:, :96], frames[number])
    # A comparison that is written is shown as it is.
    edit(networks, preview="side-by-side", compare="side-by-side")
    assert [picture.shape for picture in previews()] == [(64, 192, 3)] * 3


def test_words_while_it_runs_and_at_the_end(networks):
    settings = {**nodes.SIZE, **nodes.SAMPLING, "start_frame": 0, "max_frames": 0, "fps": 0.0, "crf": 0}
    _, report = nodes.call("EditVideo", *networks, CLIP.float() / 255, **settings)
    *running, end = nodes.texts()[-4:]
    for number, text in enumerate(running, 1):
        assert text.startswith(f"chunk {number} of 3, ")
        assert text.endswith(" s left")
    assert running[-1].endswith("about 0 s left")
    assert end == report
    assert report.startswith("81 frames in 3 chunks, ")


def test_colours_come_back(networks):
    plain, matched = read(edit(networks)), read(edit(networks, colour_match=1.0))
    source = CLIP.float()

    def distance(frames):
        return float((frames.mean((1, 2)) - source.mean((1, 2))).abs().mean())

    assert distance(plain) > 5
    assert distance(matched) < 0.4 * distance(plain)
    assert alike(previews()[0], matched[32])
    # Nothing jumps where chunks meet.
    steps = (matched.mean((1, 2, 3)) - plain.mean((1, 2, 3))).diff().abs()
    assert steps[[32, 56]].max() < 2 * steps.max() / 3 + 1


def test_the_sampler_shows_latents_roughly(networks):
    """By a map that the encoder has found from frames: it tells light from dark, and left from right."""
    model, vae, positive = networks
    ramp = torch.linspace(0, 255, 96).round().byte()[None, None, :, None].expand(81, 64, 96, 3)
    latent, _ = nodes.encode(vae, ramp)
    look = latent["sana_look"]
    picture = look.picture(latent["samples"][0, :, -1]).float().mean((0, 2))
    assert picture[-4:].mean() > picture[:4].mean() + 60
    nodes.sample(model, positive, latent)
    assert [picture.shape for picture in previews()] == [(16, 24, 3)] * 3
    # Latents from elsewhere are not known.
    nodes.sample(model, positive, {"samples": latent["samples"]})
    assert previews() == []


def test_the_look_is_found_in_a_later_part_too(networks):
    _, vae, _ = networks
    whole, _ = nodes.encode(vae, CLIP)
    _, state = nodes.encode(vae, CLIP, max_frames=40, total_frames=81)
    part, _ = nodes.encode(vae, CLIP, start_frame=40, total_frames=81, state=state)
    assert part["sana_look"] is not None
    frame = whole["samples"][0, :, -1]
    expected, found = (latent["sana_look"].picture(frame).float() for latent in (whole, part))
    assert (expected - found).abs().mean() < 40


class FakeClip:
    """What a CLIP of type pixeldit answers: rows that hold their token's number."""

    class Network:
        layer = "last"

    class Tokenizer:
        @staticmethod
        def tokenizer(text):
            return {"input_ids": [2, *(1000 + len(word) for word in text.split(" ") if word)]}

    def __init__(self):
        from types import SimpleNamespace

        self.cond_stage_model = SimpleNamespace(gemma2_2b=self.Network())
        self.tokenizer = SimpleNamespace(gemma2_2b=self.Tokenizer)

    def encode_from_tokens(self, tokens, return_dict):
        (row,) = tokens["gemma2_2b"]
        numbers = torch.tensor([float(number) for number, weight in row if weight == 1.0])
        kept = torch.cat([numbers[:1], numbers[-299:]])
        return {"cond": kept[None, :, None].expand(1, 300, 8)}


def test_a_clip_of_comfyuis_own(host):
    positive, negative = nodes.call("Prompt", FakeClip(), "make it snow", "dull", 0)
    for conditioning, rows in ((positive, [2, 1004, 1002, 1004]), (negative, [2, 1004])):
        embeds, extra = conditioning[0]
        assert embeds.shape == (1, 300, 8)
        count = len(rows)
        assert int(extra["attention_mask"].sum()) == count if conditioning is negative else True
        held = embeds[0, : int(extra["attention_mask"].sum()), 0].tolist()
        assert held[0] == 2
        assert held[1 - count :] == rows[1:]
        assert not embeds[0, len(held) :].any()
    assert positive[0][1]["sana_prompt"] == "make it snow"


def test_a_clip_of_another_kind(host):
    from types import SimpleNamespace

    from sana_streaming.sana_core.errors import InputError

    lumina = FakeClip()
    lumina.cond_stage_model.gemma2_2b.layer = "hidden"
    for clip in (lumina, SimpleNamespace(cond_stage_model=SimpleNamespace(clip_l=object()))):
        with pytest.raises(InputError, match="not Gemma-2-2b-it of type pixeldit; load gemma_2_2b_it_elm_bf16"):
            nodes.call("Prompt", clip, "make it snow", "", 0)


def test_audio_is_never_longer_than_the_picture(networks):
    from comfy_api import latest
    from sana_streaming.sana_core.video.reader import probe

    sound = {"waveform": torch.rand(1, 2, 400_000) - 0.5, "sample_rate": 44_100}
    pictures = torch.cat([CLIP[:33].float() / 255, torch.ones(33, 64, 96, 1)], -1)
    video = latest.VideoFromComponents(latest.VideoComponents(pictures, Fraction(25), sound))
    info = probe(nodes.edit_video(*networks, video).file)
    assert info.has_audio
    assert info.duration == pytest.approx(33 / 25, abs=0.05)


def test_odd_sizes_are_fitted(networks):
    odd = toys.frames(9, 61, 97)
    assert read(edit(networks, odd)).shape == (9, 64, 96, 3)
    assert pixels_to_uint8(torch.zeros(1, 3, 2, 2)).max() == 127
