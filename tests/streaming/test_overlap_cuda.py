"""Overlap on a GPU: the same bits, in lanes of their own, and a host that does not wait within a chunk."""

import pytest
import torch
import toys
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.streaming.lanes import HostCopy, Lane, StageClock, hand_over
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import GraphedPasses
from sana_streaming.sana_core.streaming.state import StreamState
from sana_streaming.sana_core.weights.random_init import RandomPrompts, random_dit, random_vae

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

CUDA = torch.device("cuda", 0)
COUNT = 33 + 6 * 24 + 7


@pytest.fixture(scope="module", autouse=True)
def _same_bits():
    """Convolutions may choose another algorithm from call to call."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.fixture(scope="module")
def networks():
    model = random_dit(toys.CONFIGS["dit"], device=CUDA, dtype=torch.bfloat16)
    return model, random_vae(toys.CONFIGS["vae"], device=CUDA, dtype=torch.bfloat16), RandomPrompts(24, 12, 7)


@pytest.fixture(scope="module")
def clip():
    return toys.frames(COUNT, 256, 256)


def stream(networks, overlap=True, size=256, **more):
    settings = {"prompt": "x", "height": size, "width": size, "options": StreamOptions(steps=4)}
    return EditStream(*networks, **settings, overlap=overlap, **more)


def edited(editor, clip, block=24):
    """Every frame, through pinned memory, waited for late."""
    copies = []
    for piece in clip.split(block):
        editor.push(piece)
        copies += [chunk.to_host() for chunk in editor.drain(ahead=True)]
    copies += [chunk.to_host() for chunk in editor.flush()]
    return torch.cat([copy.wait() for copy in copies])


@pytest.fixture(scope="module")
def expected(networks, clip):
    return edited(stream(networks, overlap=False), clip)


@pytest.mark.parametrize("block", [5, 24, COUNT])
def test_the_frames_are_the_same(networks, clip, expected, block):
    for _ in range(3):
        assert torch.equal(edited(stream(networks), clip, block), expected)


def test_the_frames_are_the_same_with_graphs(networks, clip):
    model, vae, _ = networks
    frames = []
    for overlap in (False, True):
        vae.use_graphs()
        frames.append(edited(stream(networks, overlap, passes=GraphedPasses(model)), clip))
        assert vae.captured_graphs == ["encode", "decode"]
    vae.use_graphs(False)
    assert torch.equal(*frames)


def test_two_streams_share_the_lanes(networks, clip, expected):
    editors = [stream(networks), stream(networks)]
    copies = [[], []]
    for piece in clip.split(24):
        for editor, out in zip(editors, copies, strict=True):
            out += [chunk.to_host() for chunk in editor.push(piece)]
    for editor, out in zip(editors, copies, strict=True):
        out += [chunk.to_host() for chunk in editor.flush()]
        assert torch.equal(torch.cat([copy.wait() for copy in out]), expected)


def test_pixels_may_be_used_on_the_current_lane(networks, clip, expected):
    """Queued behind the next chunk, and let go of at once."""
    editor = stream(networks)
    editor.push(clip)
    frames = [chunk.frames for chunk in editor.flush()]
    assert torch.equal(torch.cat(frames).cpu(), expected)


def test_frames_on_the_gpu_may_come(networks, clip, expected):
    assert torch.equal(edited(stream(networks), clip.to(CUDA)), expected)


@pytest.mark.parametrize("again", [True, False], ids=["overlap", "plain"])
def test_a_state_is_whole_when_it_is_saved(tmp_path, networks, clip, expected, again):
    """At once, with work still queued, and gone on with."""
    editor, out, start = stream(networks), [], 0
    for stop in (33, 57, 90, 130):
        out += [chunk.to_host() for chunk in editor.push(clip[start:stop])]
        editor.state.save(tmp_path / "s.safetensors")
        state, start = StreamState.load(tmp_path / "s.safetensors"), stop
        editor = EditStream.resume(*networks, state, overlap=again)
    out += [chunk.to_host() for chunk in (*editor.push(clip[start:]), *editor.flush())]
    assert torch.equal(torch.cat([copy.wait() for copy in out]), expected)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "plain"])
def test_the_host_waits_for_nothing_within_a_chunk(networks, clip, overlap):
    """But, with overlap, for the frames that come out, by an event."""
    editor = stream(networks, overlap)
    pinned = clip.pin_memory()
    out = [chunk.to_host() for chunk in editor.push(pinned[: 33 + 72])]
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        out += [chunk.to_host() for chunk in editor.push(pinned[33 + 72 : 33 + 120])]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(out) == (5 if overlap else 6)


def test_the_chunk_before_comes_while_the_next_is_at_work(networks, clip):
    """Its decoding does not wait for passes that take long."""
    editor = stream(networks)
    run, slept = editor._passes._run, []

    def slow(*arguments):
        # About a second in all, on the model's lane.
        torch.cuda._sleep(200_000_000)
        slept.append(1)
        return run(*arguments)

    list(editor.push(clip[: 33 + 24]))
    torch.cuda.synchronize()
    editor._passes._run = slow
    editor.push(clip[57:105])
    chunk = next(editor.drain())
    queued = Lane(CUDA).mark()
    assert slept and not queued.event.query()
    chunk.to_host().wait()
    assert not queued.event.query()


def test_memory_does_not_grow(networks, clip):
    editor, peaks = stream(networks), []
    list(editor.push(clip[:33]))
    for _ in range(6):
        for piece in clip[33 : 33 + 144].split(24):
            for chunk in editor.push(piece):
                chunk.to_host().wait()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.memory_reserved(CUDA))
        torch.cuda.reset_peak_memory_stats(CUDA)
    assert peaks[-1] == peaks[-2] == peaks[-3]


def test_seconds_are_those_of_the_device():
    clock, lane, side = StageClock(), Lane(CUDA), Lane.side(CUDA, "test")
    for each in (lane, side):
        with each.work(), clock.timed("sleep", each):
            torch.cuda._sleep(20_000_000)
    assert 0.004 < clock.read()["sleep"] < 1
    assert not clock._running


def test_what_is_handed_over_is_waited_for_and_kept():
    lane, side = Lane(CUDA), Lane.side(CUDA, "test")
    for number in range(20):
        torch.cuda._sleep(5_000_000)
        tensor = torch.full((1 << 20,), float(number), device=CUDA)
        with side.work():
            pass
        taken = hand_over(tensor, lane, side)
        with side.work():
            torch.cuda._sleep(20_000_000)
            result = taken.double()
        copy = HostCopy.of(result, side)
        del tensor, taken
        # Would take the memory that was let go of.
        torch.full((1 << 20,), -1.0, device=CUDA)
        assert (copy.wait() == number).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "plain"])
def test_the_vae_may_be_on_another_gpu(tmp_path, networks, clip, expected, overlap):
    model, _, prompts = networks
    vae = random_vae(toys.CONFIGS["vae"], device="cuda:1", dtype=torch.bfloat16)
    editor = stream((model, vae, prompts), overlap)
    out = [chunk.to_host() for chunk in editor.push(clip[:100])]
    editor.state.save(tmp_path / "s.safetensors")
    editor = EditStream.resume(model, vae, prompts, StreamState.load(tmp_path / "s.safetensors"), overlap=overlap)
    out += [chunk.to_host() for chunk in (*editor.push(clip[100:]), *editor.flush())]
    assert torch.equal(torch.cat([copy.wait() for copy in out]), expected)
