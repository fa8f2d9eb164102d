"""Streams that take noise and source latents as given, and that tell a recorder what they made."""

import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.clip_latents import ClipLatents, LatentsRecorder, check_num_latents
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import sample_clip

FRAMES, LATENTS = 66, 10


def stream(total_frames=FRAMES, given=None, recorder=None, prompt="make it snow", **options):
    options = StreamOptions(**{"steps": 2, **options})
    size = {"height": toys.SIZE, "width": toys.SIZE}
    return EditStream(
        *toys.networks(),
        prompt=prompt,
        total_frames=total_frames,
        options=options,
        given=given,
        recorder=recorder,
        **size,
    )


def recorded(frames=None, given=None, **options):
    """(latents, pixels) of a whole run."""
    recorder = LatentsRecorder()
    frames = toys.frames(FRAMES) if frames is None else frames
    pixels = toys.run(stream(len(frames), given, recorder, **options), frames)
    return recorder.latents(), pixels


def random_latents(num_latents=LATENTS, rows=2):
    shape, generator = (3, 1, 16, num_latents, rows, 2), torch.Generator().manual_seed(3)
    return ClipLatents(*torch.randn(shape, generator=generator))


OPTIONS = [{}, {"start_step": 1}, {"anchor_every": 2}, {"noise": "chunk"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_was_recorded_gives_the_same_again(options):
    first, pixels = recorded(**options)
    assert first.result.shape == (1, 16, LATENTS, 2, 2) and first.noise.std() > 0.5
    again, same = recorded(torch.zeros_like(toys.frames(FRAMES)), first, **options)
    for name in ("noise", "source", "result"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert torch.equal(pixels, same)


def test_given_latents_go_through_the_sampler_as_they_are():
    given = random_latents()
    model, _, text = toys.networks()
    prompt = text.encode("make it snow")
    context = model.prompt_context(prompt.embeds, prompt.mask)
    expected = sample_clip(model, context, given.noise, given.source, StreamOptions(steps=2))
    assert torch.equal(recorded(given=given)[0].result, expected)


def test_a_chunk_counts_once_it_was_taken():
    """A chunk whose taker fails is not recorded until it is made again."""
    recorder = LatentsRecorder()
    editor = stream(recorder=recorder)
    chunks = editor.push(toys.frames(FRAMES))
    next(chunks)
    chunks.close()
    assert recorder.num_latents == 0
    assert len([*editor.drain(), *editor.flush()]) == 3
    assert recorder.num_latents == LATENTS
    assert editor.noise_mode == "clip"
    with pytest.raises(ValueError, match="no chunk was recorded"):
        LatentsRecorder().latents()


def test_latents_of_another_clip_are_refused():
    with pytest.raises(InputError, match=r"of 9 latent frames, the clip of 10; take in .* \(max_frames 58 to 65\)"):
        stream(given=random_latents(9))
    with pytest.raises(InputError, match=r"of 3x2, the clip is of 2x2; set height and width"):
        stream(given=random_latents(rows=3))
    with pytest.raises(InputError, match="give its length as total_frames"):
        stream(None, given=random_latents())
    check_num_latents(random_latents(1), 1)
    with pytest.raises(InputError, match=r"max_frames 1 to 1\)"):
        check_num_latents(random_latents(1), 2)
    assert stream(given=random_latents()).noise_mode == "file"
