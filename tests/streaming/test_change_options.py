"""Options that change in the middle of a stream: which may, from when on, and what is kept."""

from dataclasses import replace

import pytest
import torch
import toys
from graph_recorder import Recorder
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import GraphedPasses
from sana_streaming.sana_core.streaming.pool import StatePool
from sana_streaming.sana_core.streaming.sampler import commit_chunk, prompt_context, sample_chunk
from sana_streaming.sana_core.streaming.state import DiTState, StreamState

FIRST, CHUNK = 33, 24
PROMPT = "make it snow"


class Latents(list):
    """(noise, source, latents) of each chunk."""

    def add(self, *tensors):
        self.append(tuple(tensor.clone() for tensor in tensors))


def stream(options, **more):
    return EditStream(*toys.networks(), prompt=PROMPT, height=64, width=64, options=options, **more)


def change(editor, **options):
    editor.set_options(replace(editor.options, **options))


def pixels(chunks):
    return torch.cat([chunk.pixels for chunk in chunks])


def run_changed(editor, border, **options):
    """The frames of a clip of six chunks during which options change behind ``border`` frames."""
    clip = toys.frames(FIRST + 5 * CHUNK)
    chunks = list(editor.push(clip[:border]))
    change(editor, **options)
    return pixels([*chunks, *editor.push(clip[border:]), *editor.flush()])


@torch.no_grad()
def own_stream(chunks, options):
    """Latents of chunks that are a stream of their own, without anchors."""
    model, _, text = toys.networks()
    prompt = text.encode(PROMPT)
    context = prompt_context(model, options, prompt.embeds, prompt.mask)
    state = DiTState.for_plan(ChunkPlan(8000), replace(options, anchor_every=0))
    out = []
    for noise, source, _ in chunks:
        latents, written = sample_chunk(model, state, context, noise, source, options, carry=True)
        commit_chunk(state, written, source.shape[2], last=False)
        out.append(latents)
    return out


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
@pytest.mark.parametrize(
    "option", [{"steps": 4}, {"steps": 3, "start_step": 1}, {"seed": 9}, {"max_sink_distance": 11}], ids=str
)
def test_the_next_chunk_is_the_first_with_other_options(option, overlap):
    """Bit for bit the old stream up to there, with frames of the next chunk waiting; what was carried is gone on with."""
    border = FIRST + 2 * CHUNK
    plain = run_changed(stream(StreamOptions(steps=2)), border)
    changed = run_changed(stream(StreamOptions(steps=2), overlap=overlap), border + 5, **option)
    assert torch.equal(changed[:border], plain[:border])
    assert (changed[border:] - plain[border:]).abs().amax(dim=(1, 2, 3)).min() > 0
    before = stream(StreamOptions(steps=2))
    list(before.push(toys.frames(FIRST + 5 * CHUNK)[:border]))
    settings = replace(before.state.settings, options=replace(before.options, **option))
    resumed = EditStream.resume(*toys.networks(), replace(before.state, settings=settings))
    rest = toys.frames(FIRST + 5 * CHUNK)[border:]
    assert torch.equal(changed[border:], toys.run(resumed, rest))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(("before", "after"), [(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 4), (4, 3), (2, 5)], ids=str)
def test_anchors_change_with_the_next_chunk(before, after, window):
    """Between two anchors, of whichever interval, chunks are a stream of their own, as if there had been no change."""
    count, changed_at = 9, 4
    clip = toys.frames(FIRST + (count - 1) * CHUNK)
    latents, border = Latents(), FIRST + (changed_at - 1) * CHUNK
    editor = stream(StreamOptions(steps=1, anchor_every=before, num_cached_blocks=window), recorder=latents)
    list(editor.push(clip[:border]))
    change(editor, anchor_every=after)
    list(editor.push(clip[border:]))
    # Before an anchor nothing is carried, so where one was to come it comes.
    old = [chunk for chunk in range(changed_at + 1) if before and chunk % before == 0]
    new = [chunk for chunk in range(changed_at, count) if after and chunk % after == 0]
    anchors = sorted({0, *old, *new})
    for start, stop in zip(anchors, [*anchors[1:], count], strict=True):
        for (*_, got), own in zip(latents[start:stop], own_stream(latents[start:stop], editor.options), strict=True):
            assert torch.equal(got, own), (start, stop)


def test_full_history_has_room_up_to_the_next_anchor():
    clip, latents = toys.frames(CHUNK), Latents()
    editor = stream(StreamOptions(steps=1, num_cached_blocks=0, anchor_every=5), recorder=latents)
    list(editor.push(toys.frames(FIRST)))
    for number in range(1, 9):
        if number == 4:
            change(editor, anchor_every=3)
        list(editor.push(clip))
    for start, stop in ((0, 6), (6, 9)):
        for (*_, got), own in zip(latents[start:stop], own_stream(latents[start:stop], editor.options), strict=True):
            assert torch.equal(got, own)
    with pytest.raises(InputError, match="num_cached_blocks 0 .* unknown length"):
        change(editor, anchor_every=0)
    assert editor.options.anchor_every == 3


@pytest.mark.parametrize("pushed", [0, CHUNK], ids=["before it lands", "after"])
def test_a_changed_stream_is_saved_and_goes_on(tmp_path, pushed):
    clip = toys.frames(FIRST + 5 * CHUNK)
    expected = run_changed(toys.stream(None, anchor_every=1), FIRST + CHUNK, steps=3, anchor_every=4)
    editor = toys.stream(None, anchor_every=1)
    out = list(editor.push(clip[: FIRST + CHUNK]))
    change(editor, steps=3, anchor_every=4)
    out += editor.push(clip[FIRST + CHUNK :][:pushed])
    editor.state.save(tmp_path / "s.safetensors")
    again = EditStream.resume(*toys.networks(), StreamState.load(tmp_path / "s.safetensors"))
    assert again.options == editor.options
    out += [*again.push(clip[FIRST + CHUNK + pushed :]), *again.flush()]
    assert torch.equal(pixels(out), expected)


def test_a_change_while_a_chunk_is_handed_over_counts_for_the_next():
    """The chunk is not committed yet: what it carries lies in memory that moves, which nobody else may get meanwhile."""
    options, pool = StreamOptions(steps=2, anchor_every=3, num_cached_blocks=4), StatePool()
    expected = run_changed(stream(options), FIRST + CHUNK, anchor_every=0)
    clip = toys.frames(FIRST + 5 * CHUNK)
    editor, other = stream(options, pool=pool), stream(options, pool=pool)
    out = []
    for chunk in editor.push(clip):
        out.append(chunk.pixels)
        if chunk.index == 1:
            change(editor, anchor_every=0)
            list(other.push(clip))
    assert torch.equal(torch.cat(out), expected)


def test_recorded_passes_follow_a_change():
    def run(**more):
        clip, editor = toys.frames(CHUNK), stream(StreamOptions(anchor_every=3), pool=StatePool(), **more)
        out = list(editor.push(toys.frames(FIRST)))
        for number in range(1, 20):
            if number in (7, 14):
                change(editor, steps=2, anchor_every=0 if number == 7 else 4)
            out += editor.push(clip)
        return pixels(out)

    recorder = Recorder()
    assert torch.equal(run(passes=GraphedPasses(toys.networks()[0], recorder)), run())
    assert recorder.recorded > 1 and recorder.replayed


@pytest.mark.parametrize(
    "option",
    [
        {"num_cached_blocks": 3},
        {"sink_token": False},
        {"cfg_scale": 2.0},
        {"cfg_mask": "positive"},
        {"noise": "chunk"},
        {"noise_device": "meta"},
    ],
    ids=str,
)
def test_what_memory_and_noise_are_made_with_stays(option):
    editor = toys.stream(None)
    before = editor.options
    with pytest.raises(InputError, match=f"{next(iter(option))} cannot change"):
        change(editor, **option)
    assert editor.options is before


def test_seed_and_guidance_may_change_where_nothing_is_made_with_them():
    plan, options = ChunkPlan(57), StreamOptions()
    with pytest.raises(InputError, match="seed cannot change from 0 to 1"):
        options.check_change(replace(options, seed=1), plan)
    per_chunk = replace(options, noise="chunk")
    per_chunk.check_change(replace(per_chunk, seed=1), plan)
    guided = replace(options, cfg_scale=2.0)
    guided.check_change(replace(guided, cfg_scale=3.0), plan)


def test_memory_that_is_not_to_be_had_leaves_the_stream_as_it_was(monkeypatch):
    editor = stream(StreamOptions(steps=1, num_cached_blocks=4, anchor_every=3))
    clip = toys.frames(FIRST + 5 * CHUNK)
    expected = pixels([*editor.push(clip), *editor.flush()])
    pool = StatePool()
    editor = stream(StreamOptions(steps=1, num_cached_blocks=4, anchor_every=3), pool=pool)
    chunks = list(editor.push(clip[: FIRST + CHUNK]))

    def refuse(*_):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as scarce:
        scarce.setattr(pool, "take", refuse)
        with pytest.raises(torch.OutOfMemoryError):
            change(editor, anchor_every=0)
    assert editor.options.anchor_every == 3
    memory = editor.state.dit
    before = memory.capacity_frames
    chunks += editor.push(clip[FIRST + CHUNK :])
    assert torch.equal(pixels([*chunks, *editor.flush()]), expected)
    change(editor, anchor_every=0)
    assert memory.capacity_frames > before


def test_full_history_between_far_anchors_is_counted_at_once():
    # The last chunk before an anchor reads all others since the one before.
    assert ChunkPlan(None).cache_capacity(0, True, 1_000_000) == 5 + 3 * 999_998
