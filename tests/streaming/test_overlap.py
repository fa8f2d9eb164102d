"""Overlap changes when frames come out, never which: over many chunks, any pushes, any stop, any border."""

import json
import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import toys
from safetensors import safe_open
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.frame_stream import Progress
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.state import StreamState
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.random_init import RandomPrompts, random_vae
from sana_streaming.sana_core.weights.vae import load_vae

# Four chunks and a part of one.
COUNT = 33 + 3 * 24 + 7


def stream(total=None, overlap=True, schedule=(), networks=None, on_progress=None, size=toys.SIZE, **options):
    settings = StreamOptions(**{"steps": 2, **options})
    more = {"schedule": schedule, "overlap": overlap, "on_progress": on_progress}
    networks = networks or toys.networks()
    sizes = {"height": size, "width": size}
    return EditStream(*networks, prompt="make it snow", total_frames=total, options=settings, **sizes, **more)


def resume(state, overlap, networks=None, on_progress=None):
    return EditStream.resume(*(networks or toys.networks()), state, overlap=overlap, on_progress=on_progress)


@pytest.fixture(scope="module")
def clip():
    return toys.frames(COUNT)


@pytest.fixture(scope="module")
def expected(clip):
    return {total: toys.run(stream(total, overlap=False), clip) for total in (None, COUNT)}


def tile_networks():
    """Toy networks of which the VAE decodes in overlapping tiles."""
    model, _, prompts = toys.networks()
    return model, random_vae(replace(toys.CONFIGS["vae"], decoder_causal=False)), prompts


@pytest.mark.parametrize("pushes", [[COUNT], [1] * COUNT, [33, 24, 24, 24, 7], [32, 60, 20], [8] * 14], ids=len)
@pytest.mark.parametrize("total", [None, COUNT], ids=["live", "known"])
def test_the_frames_are_the_same(clip, expected, total, pushes):
    assert torch.equal(toys.run(stream(total), clip, pushes), expected[total])


@pytest.mark.parametrize("count", [1, 9, 32, 33, 34, 57, 58, 81])
@pytest.mark.parametrize("known", [True, False], ids=["known", "live"])
def test_any_length(clip, count, known):
    total = count if known else None
    editor = stream(total)
    assert torch.equal(toys.run(editor, clip[:count]), toys.run(stream(total, overlap=False), clip[:count]))
    state = editor.state
    assert (state.finished, state.frames_out, editor.frames_held, state.undecoded) == (True, count, 0, ())


STEERED = [
    {"anchor_every": 2},
    {"start_step": 1},
    {"max_sink_distance": 12},
    {"cfg_scale": 2.0},
    {"schedule": ((30, "make it night"), (81, "make it dawn"))},
    {"num_cached_blocks": 1, "reuse_last_step": True},
]


@pytest.mark.parametrize("options", STEERED, ids=lambda options: next(iter(options)))
def test_steered_streams_are_the_same(clip, options):
    plain = stream(overlap=False, **options)
    editor = stream(**options)
    assert torch.equal(toys.run(editor, clip, [20] * 5 + [12]), toys.run(plain, clip))
    assert (editor.state.prompt, editor.state.prompt_changes) == (plain.state.prompt, plain.state.prompt_changes)


@pytest.mark.parametrize("total", [None, 121], ids=["live", "known"])
def test_a_decoder_in_tiles_is_the_same(total):
    """Ends at a border, where the live stream gives out what is held back."""
    clip, networks = toys.frames(121 if total else 105), tile_networks()
    editor = stream(total, networks=networks)
    assert torch.equal(
        toys.run(editor, clip, [50, len(clip) - 50]), toys.run(stream(total, overlap=False, networks=networks), clip)
    )
    assert (editor.frames_held, editor.state.frames_out) == (0, len(clip))


def test_nano_is_the_same():
    folder = nano.nano_folder()
    model, vae = load_dit(folder / "dit", dtype=torch.float32), load_vae(folder / "vae", dtype=torch.float32)
    networks = model, vae, RandomPrompts(model.config.caption_channels, 32)
    clip = toys.frames(58)
    plain = toys.run(stream(overlap=False, networks=networks), clip)
    assert torch.equal(toys.run(stream(networks=networks), clip, [30, 28]), plain)


def test_a_chunk_comes_out_one_later(clip):
    editor = stream()
    assert list(editor.push(clip[:33])) == []
    assert (editor.frames_held, editor.state.frames_out, editor.state.num_waiting) == (33, 0, 0)
    assert [(c.index, c.first_frame, len(c.pixels)) for c in editor.push(clip[33:81])] == [(0, 0, 33), (1, 33, 24)]
    assert (editor.frames_held, editor.state.frames_out) == (24, 57)
    assert [(c.index, c.first_frame, len(c.pixels)) for c in editor.catch_up()] == [(2, 57, 24)]
    assert (editor.frames_held, editor.state.undecoded) == (0, ())
    rest = [(c.index, c.first_frame, len(c.pixels)) for c in (*editor.push(clip[81:]), *editor.flush())]
    assert rest == [(3, 81, 24), (4, 105, 7)]


def test_every_unit_is_announced_once_and_in_an_order_that_overlaps(clip):
    seen: list[Progress] = []
    editor = stream(on_progress=seen.append)
    toys.run(editor, clip)
    plain: list[Progress] = []
    toys.run(stream(overlap=False, on_progress=plain.append), clip)
    assert sorted(seen) == sorted(plain)
    order = [(p.chunk, p.stage) for p in seen if p.stage != "denoise" or p.number == 1]
    at = {step: order.index(step) for step in order}
    for chunk in (1, 2):
        # The chunk before is queued for decoding first, so that its frames come while the GPU has work; the next one's
        # encoding after it.
        assert at[chunk - 1, "decode"] < at[chunk, "denoise"] < at[chunk + 1, "encode"] < at[chunk, "decode"]


def test_ahead_waits_for_the_next_chunk(clip):
    editor = stream()
    editor.push(clip[:56])
    assert list(editor.drain(ahead=True)) == [] and editor.state.num_waiting == 56
    editor.push(clip[56:57])
    assert list(editor.drain(ahead=True)) == [] and editor.state.num_waiting == 24
    assert editor._encoded.chunk == 1


def test_what_was_encoded_ahead_is_used(clip, monkeypatch):
    editor = stream()
    calls, encode = [], editor.vae.encode
    monkeypatch.setattr(editor.vae, "encode", lambda *arguments: calls.append(1) or encode(*arguments))
    toys.run(editor, clip)
    assert len(calls) == 5


def test_a_prompt_changes_the_next_chunk_to_be_denoised(clip):
    plain = stream(overlap=False)
    out = [c.pixels for c in plain.push(clip[:57])]
    plain.set_prompt("turn it to night")
    out += [c.pixels for c in (*plain.push(clip[57:]), *plain.flush())]
    editor = stream()
    got = [c.pixels for c in editor.push(clip[:57])]
    editor.set_prompt("turn it to night")
    got += [c.pixels for c in (*editor.push(clip[57:]), *editor.flush())]
    assert torch.equal(torch.cat(got), torch.cat(out))


def test_reset_drops_what_was_put_off(clip, expected):
    editor = stream()
    list(editor.push(clip[:81]))
    editor.reset()
    assert (editor.frames_held, editor.state.undecoded) == (0, ())
    assert torch.equal(toys.run(editor, clip), expected[None])


def test_what_was_encoded_ahead_is_not_taken_for_another_state(clip, expected):
    editor, other = stream(), stream()
    for each, frames in ((editor, toys.frames(COUNT, seed=1)), (other, clip)):
        each.push(frames[:57])
        assert list(each.drain(ahead=True)) == [] and each._encoded.chunk == 1
    editor.state = other.state.clone()
    out = [*editor.push(clip[57:]), *editor.flush()]
    assert torch.equal(torch.cat(frames_of(out)), expected[None])


class Stop(Exception):
    pass


def frames_of(chunks):
    return [chunk.pixels for chunk in chunks]


def collected(editor, clip):
    """Frames that come out, to a list that survives a stop."""
    out = []

    def run():
        for chunk in editor.push(clip):
            out.append(chunk.pixels)
        for chunk in editor.flush():
            out.append(chunk.pixels)

    return out, run


# Of a clip of four chunks, the last one short.
STOPPED, UNITS = 33 + 24 + 24 + 7, 4 * 5 - 1


@pytest.mark.parametrize("again", [True, False], ids=["overlap", "plain"])
@pytest.mark.parametrize("tiles", [False, True], ids=["causal", "tiles"])
def test_stopped_before_any_unit(tmp_path, clip, again, tiles):
    """Before every encode, pass and decode: the state is whole, is saved, and goes on to the same frames."""
    networks = tile_networks() if tiles else toys.networks()
    clip = clip[:STOPPED]
    whole = toys.run(stream(overlap=False, networks=networks), clip)
    for number in range(1, UNITS + 1):
        seen = []

        def on_progress(progress, seen=seen, number=number):
            seen.append(progress)
            if len(seen) == number:
                raise Stop

        editor = stream(networks=networks, on_progress=on_progress)
        out, run = collected(editor, clip)
        with pytest.raises(Stop):
            run()
        assert sum(map(len, out)) == editor.state.frames_out
        editor.state.save(tmp_path / "s.safetensors")
        resumed = resume(StreamState.load(tmp_path / "s.safetensors"), again, networks)
        out += frames_of(resumed.flush())
        assert torch.equal(torch.cat(out), whole), number
        # The stream that was stopped goes on too.
        editor.on_progress = None
        start = editor.state.frames_out
        assert torch.equal(torch.cat(frames_of(editor.flush())), whole[start:]), number


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), KeyboardInterrupt()], ids=["memory", "ctrl-c"])
@pytest.mark.parametrize("where", ["encode", "decode", "model"])
def test_what_fails_can_be_made_again(clip, expected, monkeypatch, where, error):
    """Inside the networks, at every call of a run."""
    for number in range(14 if where == "model" else 5):
        editor = stream()
        owner = editor._passes if where == "model" else editor.vae
        name = "_run" if where == "model" else where
        calls, plain = [], getattr(owner, name)

        def failing(*arguments, calls=calls, plain=plain, number=number):
            calls.append(1)
            if len(calls) == number + 1:
                raise error
            return plain(*arguments)

        out, run = collected(editor, clip)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            with pytest.raises(type(error)):
                run()
        assert sum(map(len, out)) == editor.state.frames_out
        out += frames_of(editor.flush())
        assert torch.equal(torch.cat(out), expected[None]), number


def test_a_result_that_the_caller_fails_on_comes_again(clip, expected):
    for failing in range(5):
        editor, out = stream(), []
        with pytest.raises(OSError, match="disk"):
            editor.push(clip)
            for chunk in editor.flush():
                if len(out) == failing:
                    raise OSError("disk full")
                out.append(chunk.pixels)
        assert editor.state.frames_out == sum(map(len, out))
        start = len(torch.cat(out)) if out else 0
        again = resume(editor.state.clone(), bool(failing % 2))
        assert torch.equal(torch.cat(frames_of(again.flush())), expected[None][start:])
        # The stream itself gives it out again too.
        assert torch.equal(torch.cat(frames_of(editor.flush())), expected[None][start:])


@pytest.mark.parametrize("seed", range(4))
def test_overlap_may_come_and_go(tmp_path, clip, expected, seed):
    """Saved after every push, and gone on with, with overlap or without."""
    chance = random.Random(seed)
    editor, out, start = stream(overlap=bool(seed % 2)), [], 0
    while start < COUNT:
        stop = min(COUNT, start + chance.randint(1, 50))
        out += frames_of(editor.push(clip[start:stop]))
        start = stop
        assert sum(map(len, out)) == editor.state.frames_out
        editor.state.save(tmp_path / "s.safetensors")
        editor = resume(StreamState.load(tmp_path / "s.safetensors"), chance.random() < 0.5)
    out += frames_of(editor.flush())
    assert torch.equal(torch.cat(out), expected[None])


def test_a_stream_that_is_closing_takes_nothing_more(tmp_path, clip, expected):
    """Stopped between the last pass and the last frames: they come out, and no chunk can follow."""
    editor = stream()
    editor.push(clip)
    chunks = editor.flush()
    out = [next(chunks).pixels for _ in range(4)]
    # Asks for the last, and does not take it.
    next(chunks)
    chunks.close()
    assert (editor.state.closing, editor.state.finished, editor.frames_held) == (True, False, 7)
    editor.state.save(tmp_path / "s.safetensors")
    for overlap in (True, False):
        resumed = resume(StreamState.load(tmp_path / "s.safetensors"), overlap)
        with pytest.raises(InputError, match="finished"):
            resumed.push(clip[:1])
        (chunk,) = resumed.drain()
        assert resumed.state.finished and (chunk.index, chunk.first_frame) == (4, 105)
        assert torch.equal(torch.cat([*out, chunk.pixels]), expected[None])


def test_a_state_with_latents_is_of_its_own_version(tmp_path, clip):
    """A program that does not know them would lose frames; without them the file is as it always was."""

    def version(editor):
        editor.state.save(tmp_path / "s.safetensors")
        with safe_open(tmp_path / "s.safetensors", "pt") as file:
            return json.loads(file.metadata()["sana_streaming_state"])["version"]

    editor = stream()
    list(editor.push(clip[:40]))
    assert version(editor) == 2
    assert [c.index for c in editor.catch_up()] == [0]
    assert version(editor) == 1


def test_the_state_stays_small(clip):
    editor = stream()
    list(editor.push(toys.frames(33)))
    sizes = []
    for _ in range(4):
        list(editor.push(clip[:24]))
        sizes.append(editor.state.nbytes)
    plain = stream(overlap=False)
    list(plain.push(toys.frames(57)))
    (latents,) = editor.state.undecoded
    assert len(set(sizes)) == 1
    assert sizes[0] == plain.state.nbytes + latents.numel() * latents.element_size()


class TestDeferring:
    """A caller that goes on with a chunk elsewhere says so: it counts once that is done."""

    def test_a_chunk_counts_when_its_work_is_done(self, clip, expected):
        editor, out = stream(), []
        with ThreadPoolExecutor(1) as pool:
            editor.push(clip)
            for chunk in editor.flush():
                chunk.defer(pool.submit(out.append, chunk.pixels))
        assert torch.equal(torch.cat(out), expected[None])
        assert editor.state.finished and editor.state.frames_out == COUNT

    def test_the_next_chunk_is_made_meanwhile(self, clip):
        editor = stream()
        editor.push(clip)
        chunks = editor.drain()
        work = Future()
        next(chunks).defer(work)
        seen = []

        def on_progress(progress):
            seen.append((progress.chunk, progress.stage))
            if progress == (3, None, "encode", 0, 5):
                work.set_result(None)

        editor.on_progress = on_progress
        assert editor.state.frames_out == 0
        assert next(chunks).index == 1
        assert editor.state.frames_out == 33
        assert (1, "decode") in seen and (2, "denoise") in seen

    @pytest.mark.parametrize("overlap", [True, False])
    def test_its_error_comes_out_and_so_does_the_chunk_again(self, clip, expected, overlap):
        for failing in range(5):
            editor, out = stream(overlap=overlap), []
            with pytest.raises(OSError, match="disk"):
                editor.push(clip)
                for chunk in editor.flush():
                    work = Future()
                    if len(out) == failing:
                        work.set_exception(OSError("disk full"))
                    else:
                        out.append(chunk.pixels)
                        work.set_result(None)
                    chunk.defer(work)
            assert editor.state.frames_out == sum(map(len, out))
            out += frames_of(editor.flush())
            assert torch.equal(torch.cat(out), expected[None]), failing

    def test_settling_counts_what_was_done_before_a_stop(self, clip, expected):
        editor, out, done = stream(), [], Future()

        def on_progress(progress):
            if (progress.chunk, progress.stage) == (2, "denoise"):
                raise Stop

        editor.on_progress = on_progress
        with pytest.raises(Stop):
            editor.push(clip)
            for chunk in editor.flush():
                out.append(chunk.pixels)
                chunk.defer(done)
        assert editor.state.frames_out == 0
        done.set_result(None)
        editor.settle()
        assert editor.state.frames_out == 33 == len(out[0])
        editor.on_progress = None
        out += frames_of(editor.flush())
        assert torch.equal(torch.cat(out), expected[None])


def test_seconds_are_those_of_the_stages(clip):
    editor = stream()
    toys.run(editor, clip[:57])
    assert set(editor.seconds) == {"text", "geometry", "encode", "denoise", "decode"}
    assert all(seconds > 0 for stage, seconds in editor.seconds.items() if stage != "text")
