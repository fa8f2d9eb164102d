"""Anchors against drift, starting from the noised source, and a sink that stays near."""

import itertools

import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.rope import advance_frames, apply_rotary, rotary
from sana_streaming.sana_core.sampling.flow_match import streaming_schedule
from sana_streaming.sana_core.streaming.chunks import ChunkPlan, chunk_boundaries
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.memory import dit_memory
from sana_streaming.sana_core.streaming.noise import ChunkNoise
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import prompt_context, sample_clip
from sana_streaming.sana_core.streaming.state import StreamState


def clip_inputs(total, batch=1, seed=0):
    model, _, text = toys.networks()
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.config.in_channels, total, 2, 3)
    noise, source = (torch.randn(shape, generator=generator) for _ in range(2))
    prompt = text.encode("make it snow")
    options = StreamOptions()
    embeds, mask = prompt.embeds.repeat(batch, 1, 1), prompt.mask.repeat(batch, 1)
    return model, prompt_context(model, options, embeds, mask), noise, source


@pytest.mark.parametrize(("every", "window"), [(1, 2), (2, 0), (3, 2), (3, 1)])
def test_every_stretch_is_a_stream_of_its_own(every, window):
    """Latents between two anchors are those of a stream that begins there, positions and memory included."""
    total = 20
    model, prompt, noise, source = clip_inputs(total, batch=2)
    options = StreamOptions(steps=2, anchor_every=every, num_cached_blocks=window)
    plain = StreamOptions(steps=2, num_cached_blocks=window)
    borders = chunk_boundaries(total)
    whole = sample_clip(model, prompt, noise, source, options)
    for first in range(0, len(borders) - 1, every):
        stretch = borders[first : first + every + 1]
        inside = slice(stretch[0], stretch[-1])
        own = sample_clip(
            model,
            prompt,
            noise[:, :, inside],
            source[:, :, inside],
            plain,
            boundaries=[b - stretch[0] for b in stretch],
        )
        assert torch.equal(whole[:, :, inside], own), first


def test_the_pass_that_nobody_reads_is_saved():
    model, prompt, noise, source = clip_inputs(20)
    counts = []
    options = StreamOptions(steps=2, anchor_every=3)
    sample_clip(model, prompt, noise, source, options, on_pass=lambda number, passes: counts.append((number, passes)))
    # Six chunks: 2 and 5 stand before an anchor or the end.
    assert [passes for number, passes in counts if number == 0] == [3, 3, 2, 3, 3, 2]
    assert len(counts) == 16


@pytest.mark.parametrize(("total", "noise"), [(105, "clip"), (105, "chunk"), (None, "chunk")], ids=str)
def test_the_picture_goes_on_over_an_anchor(total, noise):
    """Frames are those of the whole clip through both directions of the VAE, which know of no anchor."""
    model, vae, text = toys.networks()
    clip = toys.frames(105)
    streamed = toys.run(toys.stream(total, anchor_every=2, noise=noise, seed=5), clip)
    video = (clip.movedim(-1, 0).float()[None] / 255 - 0.5) / 0.5
    source, _ = vae.encode(video)
    options = StreamOptions(steps=2, seed=5, noise=noise, anchor_every=2)
    plan = ChunkPlan(total)
    drawn = ChunkNoise(options, plan.total_latents, (source.shape[1], *source.shape[3:]))
    borders = chunk_boundaries(source.shape[2])
    slices = [drawn.draw(c, start, stop - start) for c, (start, stop) in enumerate(itertools.pairwise(borders))]
    prompt = text.encode("make it snow")
    context = prompt_context(model, options, prompt.embeds, prompt.mask)
    expected, _ = vae.decode(sample_clip(model, context, torch.cat(slices, 2), source, options))
    assert (streamed - expected[0].movedim(1, 0)).abs().max() < 1e-4
    plain = toys.run(toys.stream(total, noise=noise, seed=5), clip)
    assert torch.equal(streamed[:57], plain[:57])
    assert (streamed - plain)[57:].abs().max() > 1e-3


@pytest.mark.parametrize(("total", "pushed"), [(129, 60), (None, 57), (None, 70)], ids=str)
def test_an_anchored_stream_is_saved_and_goes_on(tmp_path, pushed, total):
    clip = toys.frames(129)
    options = {"anchor_every": 2, "max_sink_distance": 11, "start_step": 1, "cfg_scale": 2.0}
    expected = toys.run(toys.stream(total, **options), clip)
    editor = toys.stream(total, **options)
    out = [c.pixels for c in editor.push(clip[:pushed])]
    editor.state.save(tmp_path / "s.safetensors")
    loaded = StreamState.load(tmp_path / "s.safetensors")
    editor = EditStream.resume(*toys.networks(), loaded)
    out += [c.pixels for c in editor.push(clip[pushed:])]
    assert torch.equal(torch.cat(out + [c.pixels for c in editor.flush()]), expected)


def test_full_history_of_a_live_stream_ends_at_anchors():
    editor = toys.stream(None, num_cached_blocks=0, anchor_every=3)
    sizes = []
    list(editor.push(toys.frames(9)))
    for _ in range(7):
        list(editor.push(toys.frames(24)))
        sizes.append(editor.state.nbytes)
    assert len(set(sizes)) == 2
    model = toys.networks()[0]
    plan, options = ChunkPlan(None), StreamOptions(num_cached_blocks=0, anchor_every=3)
    carried, _ = dit_memory(model.config, plan, (2, 2), options, torch.float32)
    dit = sum(value.numel() * value.element_size() for _, value in editor.state.dit.tensors())
    assert dit in (0, carried)
    assert max(sizes) - min(sizes) == carried


def test_old_states_have_no_anchor(tmp_path):
    """A state that lacks the counters of anchors and schedules is one without them."""
    editor = toys.stream(None)
    list(editor.push(toys.frames(57)))
    state = editor.state
    counters = state.dit.counters()
    for name in ("anchor_chunk", "anchor_frame"):
        counters.pop(name)
    restored = type(state.dit).restore(counters, dict(state.dit.tensors()))
    assert (restored.anchor_chunk, restored.position, restored.sink_frames) == (0, state.dit.num_frames, 5)
    options = state.settings.options.to_dict()
    for name in ("anchor_every", "start_step", "max_sink_distance"):
        options.pop(name)
    assert StreamOptions.from_dict(options) == state.settings.options


@pytest.mark.parametrize(("steps", "start"), [(4, 1), (4, 3), (2, 1), (6, 2)])
def test_a_start_step_begins_with_the_noised_source(steps, start):
    model, prompt, noise, source = clip_inputs(4)
    grid = streaming_schedule(steps)
    x = (1 - grid.sigmas[start]) * source + grid.sigmas[start] * noise
    for number in range(start, steps):
        velocity, _ = model(x, torch.full((1,), grid.timesteps[number]), source, prompt)
        x = x + (grid.sigmas[number + 1] - grid.sigmas[number]) * velocity
    passes = []
    edited = sample_clip(
        model, prompt, noise, source, StreamOptions(steps=steps, start_step=start), on_pass=lambda *p: passes.append(p)
    )
    assert (edited - x).abs().max() < 1e-5
    assert passes == [(number, steps - start) for number in range(steps - start)]


def test_a_late_start_keeps_more_of_the_source():
    """The part of the source in the first latents is 1 - sigma, so with a network that says nothing it is in the last."""
    model, prompt, noise, source = clip_inputs(8)
    distances = [
        (sample_clip(model, prompt, noise, source, StreamOptions(steps=8, start_step=k)) - source).abs().mean()
        for k in (0, 5, 7)
    ]
    assert distances[0] > distances[1] > distances[2]


def test_advanced_keys_are_those_of_a_later_frame():
    x = torch.randn(2, 18, 3, 112, dtype=torch.float64)
    early = apply_rotary(x, rotary(4, 3, 2, 3, 112))
    for shift in (1, 117, 100_000, -4):
        later = apply_rotary(x, rotary(4 + shift, 3, 2, 3, 112))
        assert (advance_frames(early, shift) - later).abs().max() < 2e-6, shift
    half = apply_rotary(x.bfloat16(), rotary(0, 3, 2, 3, 112))
    assert advance_frames(half, 7).dtype == torch.bfloat16
    assert torch.equal(advance_frames(half, 0), half)


def test_the_sink_stays_within_the_distance(monkeypatch):
    """Each chunk reads the sink's keys as if it stood so near, the rest as it is; what is stored is never turned."""
    model, prompt, noise, source = clip_inputs(41)
    limit, near = 14, {}
    softmax, velocity = model.config.softmax_layers[0], model.velocity

    def watched(x, modulation, source, prompt, state, positions):
        if state is not None:
            keys, values, *used = state[softmax].memory
            read.append([part[:, :, : used[0] if used else None].clone() for part in (keys, values)])
        return velocity(x, modulation, source, prompt, state, positions)

    monkeypatch.setattr(model, "velocity", watched)
    for distance in (0, limit):
        read = []
        sample_clip(model, prompt, noise, source, StreamOptions(steps=1, max_sink_distance=distance))
        near[distance] = [None, *read[::2]]
    sink_tokens, borders = 5 * 6, chunk_boundaries(41)
    first = near[0][1][0]
    assert first.shape[2] == sink_tokens
    for chunk in range(1, len(borders) - 1):
        shift = max(0, borders[chunk + 1] - limit)
        keys, values = near[limit][chunk]
        expected = advance_frames(first, shift)
        assert (keys[:, :, :sink_tokens] - expected).abs().max() == 0, chunk
        assert (borders[chunk + 1] - 1) - shift < limit
        assert keys.shape == values.shape == near[0][chunk][0].shape
    assert shift > 20
    with torch.no_grad():
        far, close = (
            sample_clip(model, prompt, noise, source, StreamOptions(steps=1, max_sink_distance=d)) for d in (0, 14)
        )
    assert torch.equal(far[:, :, :14], close[:, :, :14])
    assert not torch.equal(far[:, :, 14:17], close[:, :, 14:17])


def test_a_distance_that_is_never_reached_changes_nothing():
    model, prompt, noise, source = clip_inputs(20)
    results = [sample_clip(model, prompt, noise, source, StreamOptions(steps=1, max_sink_distance=d)) for d in (0, 20)]
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"anchor_every": -1}, "anchor_every -1 is below 0"),
        ({"anchor_every": 1.5}, "anchor_every 1.5 is not a whole number"),
        ({"start_step": 4}, "start_step 4 is not on a grid of 4 steps; use 0 .* to 3"),
        ({"start_step": -1}, "start_step -1"),
        ({"steps": 1, "start_step": 1}, "grid of 1 steps"),
        ({"max_sink_distance": 10}, "max_sink_distance 10 is too near for num_cached_blocks 2; use 11"),
        ({"max_sink_distance": -1}, "max_sink_distance -1 is too near"),
        ({"max_sink_distance": 122, "sink_token": False}, "there is none"),
        ({"max_sink_distance": 122, "num_cached_blocks": 0}, "there is none"),
    ],
)
def test_what_cannot_steer_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        StreamOptions(**options)
