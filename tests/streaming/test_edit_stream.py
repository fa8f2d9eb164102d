"""Frames in, edited frames out: any cut, any length, stop and go on, many streams on one model."""

import subprocess
import sys
from dataclasses import replace

import compare
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.chunks import ChunkPlan, spans
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.noise import ChunkNoise
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.pool import StatePool
from sana_streaming.sana_core.streaming.sampler import prompt_context, sample_clip
from sana_streaming.sana_core.streaming.state import StreamState


@pytest.mark.parametrize("pushes", [[57], [1] * 57, [7, 26, 24], [33, 24], [40, 17], [5, 50, 2]], ids=str)
@pytest.mark.parametrize("total", [57, None], ids=["known", "live"])
def test_any_cut_gives_the_same_bits(total, pushes):
    clip = toys.frames(57)
    whole = toys.run(toys.stream(total), clip)
    assert len(whole) == 57
    assert torch.equal(toys.run(toys.stream(total), clip, pushes), whole)


@pytest.mark.parametrize("count", [1, 2, 9, 17, 24, 25, 32, 33, 34, 41, 50, 58, 81])
@pytest.mark.parametrize("known", [True, False], ids=["known", "live"])
def test_as_many_frames_out_as_in(count, known):
    editor = toys.stream(count if known else None)
    out = toys.run(editor, toys.frames(count))
    assert len(out) == count
    assert out.isfinite().all()
    assert editor.state.frames_out == editor.state.frames_in == count
    assert editor.state.finished


def test_chunks_come_as_soon_as_they_are_full():
    editor = toys.stream(None)
    clip = toys.frames(82)
    assert [c.index for c in editor.push(clip[:32])] == []
    first = list(editor.push(clip[32:33]))
    assert [(c.index, c.first_frame, len(c.pixels)) for c in first] == [(0, 0, 33)]
    rest = list(editor.push(clip[33:]))
    assert [(c.index, c.first_frame, len(c.pixels)) for c in rest] == [(1, 33, 24), (2, 57, 24)]
    assert [(c.index, c.first_frame, len(c.pixels)) for c in editor.flush()] == [(3, 81, 1)]


def test_stream_equals_the_sampler_on_whole_latents():
    """Chunk by chunk through both VAE directions equals encode, sample and decode of the whole clip."""
    model, vae, text = toys.networks()
    clip = toys.frames(81)
    streamed = toys.run(toys.stream(81, seed=5), clip)
    options = StreamOptions(steps=2, seed=5)
    video = (clip.movedim(-1, 0).float()[None] / 255 - 0.5) / 0.5
    source, _ = vae.encode(video)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(5))
    prompt = text.encode("make it snow")
    context = prompt_context(model, options, prompt.embeds, prompt.mask)
    latents = sample_clip(model, context, noise, source, options)
    expected, _ = vae.decode(latents)
    compare.assert_near(streamed, expected[0].movedim(1, 0), 1e-4, "pixels")


def test_interleaved_streams_do_not_meet():
    clips = [toys.frames(60, seed=1), toys.frames(60, seed=2)]
    alone = [toys.run(toys.stream(None, seed=i), clip) for i, clip in enumerate(clips)]
    editors = [toys.stream(None, seed=0), toys.stream(None, seed=1)]
    together: list[list[torch.Tensor]] = [[], []]
    for start in range(0, 60, 10):
        for editor, clip, out in zip(editors, clips, together, strict=True):
            out += [chunk.pixels for chunk in editor.push(clip[start : start + 10])]
    for editor, out in zip(editors, together, strict=True):
        out += [chunk.pixels for chunk in editor.flush()]
    for out, expected in zip(together, alone, strict=True):
        assert torch.equal(torch.cat(out), expected)


CONTINUE = """
import sys, torch, toys
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.state import StreamState
torch.set_num_threads(int(sys.argv[4]))
editor = EditStream.resume(*toys.networks(), StreamState.load(sys.argv[1]))
clip = torch.load(sys.argv[2])
torch.save(toys.run(editor, clip), sys.argv[3])
"""


@pytest.mark.parametrize("pushed", [7, 33, 40, 81])
@pytest.mark.parametrize("total", [100, None], ids=["known", "live"])
def test_a_saved_stream_goes_on_in_another_process(tmp_path, pushed, total):
    """With frames waiting (7, 40) and at a chunk border (33, 81 when live): bit for bit what no interruption gives."""
    clip = toys.frames(100)
    expected = toys.run(toys.stream(total, cfg_scale=2.0), clip)
    editor = toys.stream(total, cfg_scale=2.0)
    before = [chunk.pixels for chunk in editor.push(clip[:pushed])]
    editor.state.save(tmp_path / "state.safetensors")
    torch.save(clip[pushed:], tmp_path / "rest.pt")
    paths = [str(tmp_path / name) for name in ("state.safetensors", "rest.pt", "out.pt")]
    environment = {"PYTHONPATH": str(toys.__file__).rsplit("/", 1)[0]}
    command = [sys.executable, "-W", "ignore", "-c", CONTINUE, *paths, str(torch.get_num_threads())]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    after = torch.load(tmp_path / "out.pt")
    assert torch.equal(torch.cat([*before, after]), expected)


def test_a_clone_goes_its_own_way():
    clip = toys.frames(81)
    editor = toys.stream(None)
    list(editor.push(clip[:57]))
    branch = EditStream.resume(*toys.networks(), editor.state.clone())
    branch.set_prompt("turn it to night")
    other = [c.pixels for c in branch.push(clip[57:])]
    mine = [c.pixels for c in editor.push(clip[57:])]
    assert torch.equal(torch.cat(mine), toys.run(toys.stream(None), clip)[57:])
    assert not torch.equal(torch.cat(mine), torch.cat(other))


class Stop(Exception):
    pass


@pytest.mark.parametrize("unit", range(6))
def test_a_chunk_stopped_half_way_can_be_made_again(unit):
    """Stopped before the VAE's encode (0), each pass (1 to 3) or the decode (4) of the second chunk; 5 is never reached."""
    clip = toys.frames(57)
    expected = toys.run(toys.stream(None), clip)
    editor = toys.stream(None)
    out = [chunk.pixels for chunk in editor.push(clip[:33])]
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.number == unit:
            raise Stop

    editor.on_progress = stop
    if unit < 5:
        with pytest.raises(Stop):
            list(editor.push(clip[33:]))
        assert (seen[-1].chunk, seen[-1].number, seen[-1].total) == (1, unit, 5)
        assert len(seen) == unit + 1
        assert (editor.state.frames_out, len(editor.state.waiting)) == (33, 24)
        editor.on_progress = None
        out += [chunk.pixels for chunk in editor.flush()]
    else:
        out += [chunk.pixels for chunk in editor.push(clip[33:])]
        assert [p.stage for p in seen] == ["encode", "denoise", "denoise", "denoise", "decode"]
    # flush() makes the last chunk without carrying on; the frames are the same.
    assert torch.equal(torch.cat(out), expected)


def test_a_result_that_the_caller_fails_on_comes_again():
    """A chunk counts as given out only when the next is asked for: its frames wait until then."""
    clip = toys.frames(81)
    expected = toys.run(toys.stream(None), clip)
    editor = toys.stream(None)
    out = []
    with pytest.raises(OSError, match="disk"):
        for chunk in editor.push(clip):
            if len(out) == 1:
                raise OSError("disk full")
            out.append(chunk.pixels)
    assert (editor.state.frames_out, editor.state.num_waiting, editor.state.dit.num_chunks) == (33, 48, 1)
    again = EditStream.resume(*toys.networks(), editor.state.clone())
    out += [chunk.pixels for chunk in again.drain()]
    assert torch.equal(torch.cat(out), expected)


def test_memory_that_cannot_be_had_leaves_the_stream_alone(monkeypatch):
    clip = toys.frames(57)
    expected = toys.run(toys.stream(None), clip)
    editor = toys.stream(None)
    with monkeypatch.context() as patch:
        patch.setattr(StatePool, "take", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
        with pytest.raises(torch.OutOfMemoryError):
            list(editor.push(clip))
    assert (editor.state.frames_out, editor.state.num_waiting) == (0, 57)
    assert torch.equal(toys.run(editor, clip[:0]), expected)


def test_a_prompt_that_cannot_be_encoded_changes_nothing():
    editor = toys.stream(None)
    context = editor._context
    editor.text = None
    with pytest.raises(AttributeError):
        editor.set_prompt("other")
    assert (editor.state.prompt, editor.state.prompt_changes) == ("make it snow", 0)
    assert editor._context is context


def test_state_tensors_are_checked(tmp_path):
    """A file in which a tensor has another shape or dtype, or is missing, is not gone on with."""
    editor = toys.stream(None)
    list(editor.push(toys.frames(33)))
    editor.state.save(tmp_path / "s.safetensors")
    whole = StreamState.load(tmp_path / "s.safetensors")
    for change in (lambda t: t.half(), lambda t: t[..., :1]):
        state = whole.clone()
        block = state.dit._buffers[0]
        state.dit._buffers[0] = block._replace(frame=change(block.frame))
        with pytest.raises(InputError, match="blocks.0.frame"):
            EditStream.resume(*toys.networks(), state)
    state = whole.clone()
    state.dit._buffers.pop()
    with pytest.raises(InputError, match="missing"):
        EditStream.resume(*toys.networks(), state)
    whole.finished = True
    with pytest.raises(InputError, match="reached its end"):
        EditStream.resume(*toys.networks(), whole)


def test_live_seeds_differ():
    clip = toys.frames(33)
    first, again, other = (toys.run(toys.stream(None, seed=s), clip) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prompt_changes_the_next_chunk_only():
    clip = toys.frames(81)
    plain = toys.run(toys.stream(None), clip)
    editor = toys.stream(None)
    out = [c.pixels for c in editor.push(clip[:40])]
    editor.set_prompt("turn it to night")
    out += [c.pixels for c in editor.push(clip[40:])]
    changed = torch.cat(out)
    assert torch.equal(changed[:33], plain[:33])
    assert (changed[33:] - plain[33:]).abs().amax(dim=(1, 2, 3)).min() > 0
    assert (editor.state.prompt, editor.state.prompt_changes) == ("turn it to night", 1)


def test_reset_starts_over():
    clip = toys.frames(40)
    editor = toys.stream(None)
    list(editor.push(clip))
    editor.reset()
    assert torch.equal(toys.run(editor, clip), toys.run(toys.stream(None), clip))


def test_state_size_does_not_grow():
    editor = toys.stream(None)
    clip = toys.frames(24)
    list(editor.push(toys.frames(33)))
    sizes = []
    for _ in range(6):
        list(editor.push(clip))
        sizes.append(editor.state.nbytes)
    assert len(set(sizes)) == 1
    assert sizes[0] > 0


def test_float_images_equal_bytes():
    clip = toys.frames(33)
    editor = toys.stream(None)
    (from_floats,) = editor.push(clip.float() / 255)
    assert torch.equal(from_floats.pixels, toys.run(toys.stream(None), clip))
    assert from_floats.frames.dtype == torch.uint8
    assert from_floats.frames.shape == (33, toys.SIZE, toys.SIZE, 3)
    assert 0 <= from_floats.images.min() <= from_floats.images.max() <= 1


def test_frames_of_any_size_are_fitted():
    editor = toys.stream(None)
    mixed = [*editor.push(toys.frames(10, 90, 160)), *editor.push(toys.frames(23, 200, 80))]
    assert [chunk.pixels.shape for chunk in mixed] == [(33, 3, toys.SIZE, toys.SIZE)]


def test_noise_of_the_clip_is_the_release_way():
    options = StreamOptions(seed=7)
    noise = ChunkNoise(options, 11, (16, 2, 3))
    whole = torch.randn(1, 16, 11, 2, 3, generator=torch.Generator().manual_seed(7))
    for chunk, (start, stop) in enumerate(spans([0, 5, 8, 11])):
        assert torch.equal(noise.draw(chunk, start, stop - start), whole[:, :, start:stop])


def test_noise_per_chunk():
    options = StreamOptions(seed=7, noise="chunk")
    short, long = ChunkNoise(options, 11, (16, 2, 3)), ChunkNoise(options, None, (16, 2, 3))
    assert torch.equal(short.draw(1, 5, 3), long.draw(1, 5, 3))
    assert not torch.equal(long.draw(1, 5, 3), long.draw(2, 8, 3))
    values = torch.cat([long.draw(chunk, 0, 3).flatten() for chunk in range(50)])
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize(("total", "mode"), [(None, "chunk"), (1024 * 8 - 7, "clip"), (1024 * 8, "chunk")])
def test_noise_mode_in_force(total, mode):
    assert StreamOptions(noise="clip").noise_mode(ChunkPlan(total).total_latents) == mode


def test_full_history_needs_a_known_length():
    assert len(toys.run(toys.stream(81, num_cached_blocks=0), toys.frames(81))) == 81
    with pytest.raises(InputError, match="num_cached_blocks 0 .* unknown length"):
        toys.stream(None, num_cached_blocks=0)


def test_two_streams_differ_by_seed_and_repeat():
    clip = toys.frames(33)
    first, again, other = (toys.run(toys.stream(33, seed=s), clip) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class TestRefusals:
    def test_bidirectional_model(self):
        model, vae, text = toys.networks()
        config = replace(model.config, variant="bidirectional")
        bidirectional = type(model)(config, device="meta")
        with pytest.raises(InputError, match="bidirectional .* cannot stream"):
            EditStream(bidirectional, vae, text, prompt="x", height=64, width=64)

    def test_vae_of_another_kind(self):
        model, vae, text = toys.networks()
        wider = type(model)(replace(model.config, in_channels=8), device="meta")
        with pytest.raises(InputError, match="16 channels, the model takes 8"):
            EditStream(wider, vae, text, prompt="x", height=64, width=64)

    def test_text_encoder_of_another_width(self):
        model, vae, text = toys.networks()
        with pytest.raises(InputError, match="gives 99 channels, the model takes 24"):
            EditStream(model, vae, type(text)(99, 12, num_tokens=7), prompt="x", height=64, width=64)

    @pytest.mark.parametrize(
        ("size", "message"), [(32, "too small.* use height 64"), (100, "multiple of 32; use height 96")]
    )
    def test_size(self, size, message):
        with pytest.raises(InputError, match=message):
            EditStream(*toys.networks(), prompt="x", height=size, width=64)

    @pytest.mark.parametrize(
        "option",
        [{"steps": 0}, {"seed": -1}, {"seed": 2**64}, {"noise": "x"}, {"cfg_mask": "x"}, {"flow_shift": 0}],
        ids=str,
    )
    def test_options(self, option):
        ((name, value),) = option.items()
        with pytest.raises(InputError, match=f"{name} '?{value}"):
            StreamOptions(**option)

    def test_noise_device(self):
        with pytest.raises(InputError, match="noise_device 'xpu'"):
            toys.stream(33, noise_device="xpu")

    def test_too_many_frames(self):
        editor = toys.stream(33)
        with pytest.raises(InputError, match="34 frames .* stream of 33"):
            editor.push(toys.frames(34))
        toys.run(editor, toys.frames(33))
        with pytest.raises(InputError, match="finished"):
            editor.push(toys.frames(1))

    def test_state_of_another_model(self, tmp_path):
        editor = toys.stream(None)
        list(editor.push(toys.frames(33)))
        editor.state.save(tmp_path / "s.safetensors")
        other = toys.networks(seed=1)
        with pytest.raises(InputError, match="transformer of fingerprint"):
            EditStream.resume(other[0], toys.networks()[1], other[2], StreamState.load(tmp_path / "s.safetensors"))
        with pytest.raises(InputError, match="VAE of fingerprint"):
            EditStream.resume(toys.networks()[0], other[1], other[2], StreamState.load(tmp_path / "s.safetensors"))

    def test_file_that_is_no_state(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match="not a saved stream state"):
            StreamState.load(tmp_path / "a.safetensors")
        (tmp_path / "b.safetensors").write_bytes(b"x" * 40)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            StreamState.load(tmp_path / "b.safetensors")
        with pytest.raises(InputError, match="not there or not a file"):
            StreamState.load(tmp_path / "c.safetensors")
