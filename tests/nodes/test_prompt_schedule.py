"""Prompts that change in the course of a stream."""

from fractions import Fraction

import node_calls as nodes
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.video.reader import VideoReader

# Chunks begin at frames 0, 33, 57 and 81.
CLIP = toys.frames(105, 64, 96)
RATE = Fraction(10)


def schedule(*changes, first="make it snow"):
    """A chain of SanaStreamingPromptSchedule."""
    (positive, _) = nodes.prompts(first)
    for at, prompt in changes:
        (positive,) = nodes.call("PromptSchedule", positive, nodes.prompts(prompt)[0], at)
    return positive


def video(frames=CLIP):
    from comfy_api import latest

    return latest.VideoFromComponents(latest.VideoComponents(frames, RATE))


def by_library(model, vae, changes):
    stream = EditStream(
        model.network, vae.network, nodes.encoder(), prompt="make it snow", schedule=changes, height=64, width=96,
        total_frames=len(CLIP), options=StreamOptions(steps=2, seed=3),
    )  # fmt: skip
    chunks = [*stream.push(CLIP), *stream.flush()]
    return torch.cat([chunk.images for chunk in chunks]), stream.state


@pytest.mark.parametrize("order", [1, -1])
def test_sampler_and_edit_video_follow_it(host, order):
    model, vae = nodes.model(), nodes.vae()
    positive = schedule(*(("00:03", "make it night"), ("8.1", "make it rain"))[::order])
    expected, after = by_library(model, vae, ((30, "make it night"), (81, "make it rain")))
    plain, _ = by_library(model, vae, ())
    assert torch.equal(expected[:33], plain[:33])
    assert not any(torch.equal(expected[start : start + 24], plain[start : start + 24]) for start in (33, 57, 81))

    latent, state = nodes.encode(vae, video())
    edited, state = nodes.sample(model, positive, latent, state=state)
    assert torch.equal(nodes.decode_images(vae, edited), expected)
    assert (state.schedule, state.schedule_place) == (after.schedule, after.schedule_place)
    assert (state.prompt, after.prompt) == ("make it rain", "make it rain")

    whole = nodes.edit_video(model, vae, positive, video())
    frames, _ = nodes.decode_video(vae, edited)
    with VideoReader(whole.file) as first, VideoReader(frames.file) as second:
        assert torch.equal(torch.stack(list(first)), torch.stack(list(second)))


def test_parts_of_a_stream_go_on_in_it(host):
    model, vae = nodes.model(), nodes.vae()
    positive = schedule(("00:05", "make it night"))
    whole, _ = nodes.encode(vae, video())
    expected = nodes.sample(model, positive, whole)[0]["samples"]
    first, encoded = nodes.encode(vae, video(), max_frames=57, total_frames=105)
    edited, sampled = nodes.sample(model, positive, first)
    assert sampled.prompt == "make it snow"
    second, _ = nodes.encode(vae, video(), start_frame=57, total_frames=105, state=encoded)
    rest, sampled = nodes.sample(model, positive, second, state=sampled)
    assert sampled.prompt == "make it night"
    assert torch.equal(torch.cat([edited["samples"], rest["samples"]], 2), expected)


def test_a_prompt_at_the_first_frame_takes_the_place_of_the_first(host):
    model, vae = nodes.model(), nodes.vae()
    latent, _ = nodes.encode(vae, CLIP[:33])
    edited, _ = nodes.sample(model, schedule(("0", "make it night")), latent)
    expected, _ = nodes.sample(model, nodes.prompts("make it night")[0], latent)
    assert torch.equal(edited["samples"], expected["samples"])


def test_conditionings_are_told_apart_by_more_than_their_words(host):
    """The same words with another motion score, and prompts of other packs without words."""
    from sana_streaming.nodes.prompt import connected_prompts

    model, vae = nodes.model(), nodes.vae()
    latent, _ = nodes.encode(vae, CLIP[:57])
    (plain, _), (moving, _) = nodes.prompts(), nodes.prompts(motion_score=9)
    nameless = [[[entry[0][0], {"attention_mask": entry[0][1]["attention_mask"]}]] for entry in (plain, moving)]
    results = []
    for first, later in ((plain, moving), nameless, (plain, plain)):
        (positive,) = nodes.call("PromptSchedule", first, later, "2")
        assert len(connected_prompts(positive, None, guided=False).embeddings) == 2
        results.append(nodes.sample(model, positive, latent)[0]["samples"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_guidance(host):
    model, vae = nodes.model(), nodes.vae()
    positive, (_, negative) = schedule(("3", "make it night")), nodes.prompts()
    latent, _ = nodes.encode(vae, video(CLIP[:57]))
    edited, _ = nodes.sample(model, positive, latent, cfg_scale=3.0, negative=negative)
    result, _ = nodes.decode_video(vae, edited)
    whole = nodes.edit_video(model, vae, positive, video(CLIP[:57]), cfg_scale=3.0, negative=negative)
    with VideoReader(whole.file) as first, VideoReader(result.file) as second:
        assert torch.equal(torch.stack(list(first)), torch.stack(list(second)))


def test_what_makes_no_schedule(host):
    model, vae = nodes.model(), nodes.vae()
    one, two = nodes.prompts()[0], nodes.prompts("make it night")[0]
    at_five = schedule(("5", "make it rain"))
    validate = nodes.node("PromptSchedule").validate_inputs
    assert [validate(at) for at in ("5", "01:15.5", None)] == [True, True, True]
    assert validate("soon").startswith("'soon' is not a time; use seconds (75.5), mm:ss")
    with pytest.raises(InputError, match="two prompts begin at 00:05.000; keep one"):
        nodes.call("PromptSchedule", at_five, two, "00:05")
    again = schedule(("5", "make it snow"))
    with pytest.raises(InputError, match="two prompts begin at 00:05.000; keep one"):
        nodes.call("PromptSchedule", again, one, "00:05")
    with pytest.raises(InputError, match="later is a schedule already"):
        nodes.call("PromptSchedule", one, at_five, "7")
    with pytest.raises(InputError, match="positive holds 2 conditionings; connect exactly one .* Prompt Schedule"):
        nodes.call("PromptSchedule", [*one, *two], two, "7")
    latent, _ = nodes.encode(vae, video(CLIP[:57]))
    loaded = len(host.loaded)
    for run in (nodes.sample, lambda *args: nodes.edit_video(args[0], vae, args[1], video(CLIP[:57]))):
        with pytest.raises(InputError, match="'make it rain' begins at frame 50, after the last chunk of the clip"):
            run(model, at_five, latent)
    assert len(host.loaded) == loaded
