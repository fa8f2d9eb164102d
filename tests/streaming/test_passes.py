"""Recorded passes give what plain ones give. The recorder here runs the call again where a GPU would replay it."""

import pytest
import torch
import toys
from graph_recorder import Recorder
from latent_stream import Run
from sana_streaming.sana_core.models.attention import Window
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import MOST_KINDS, GraphedPasses, Passes
from sana_streaming.sana_core.streaming.pool import StatePool


@pytest.fixture(scope="module")
def model():
    return toys.networks()[0]


@pytest.mark.parametrize(
    "options", [StreamOptions(), StreamOptions(cfg_scale=3.0), StreamOptions(reuse_last_step=True)]
)
def test_recorded_passes_change_no_bit(model, options):
    recorder = Recorder()
    plain, graphed = Run(Passes(model), options), Run(GraphedPasses(model, recorder), options)
    for index in range(7):
        if index == 5:
            plain.prompt, graphed.prompt = (run.context(9) for run in (plain, graphed))
        assert torch.equal(plain.chunk(), graphed.chunk()), index
    for (name, value), (_, other) in zip(plain.state.tensors(), graphed.state.tensors(), strict=True):
        assert torch.equal(value, other), name
    assert recorder.recorded == 1
    assert recorder.replayed >= 3 * options.passes(carry=True)


def test_two_streams_share_the_passes(model):
    recorder = Recorder()
    shared = GraphedPasses(model, recorder)
    plain = [Run(Passes(model), seed=seed) for seed in (1, 2)]
    graphed = [Run(shared, seed=seed) for seed in (1, 2)]
    for _ in range(5):
        for one, other in zip(plain, graphed, strict=True):
            assert torch.equal(one.chunk(), other.chunk())
    assert recorder.recorded == 2


def test_one_graph_serves_the_streams_of_a_page(model):
    recorder, pool = Recorder(), StatePool()
    shared = GraphedPasses(model, recorder)
    for seed in range(4):
        plain, graphed = Run(Passes(model), seed=seed), Run(shared, seed=seed, pool=pool)
        for _ in range(5):
            assert torch.equal(plain.chunk(), graphed.chunk())
        del graphed
    # One while the window fills, which every stream passes through once, and one for the full window.
    assert recorder.recorded == 2


def test_a_turned_sink_is_never_recorded(model):
    recorder = Recorder()
    options = StreamOptions(max_sink_distance=11)
    plain, graphed = Run(Passes(model), options), Run(GraphedPasses(model, recorder), options)
    for _ in range(6):
        assert torch.equal(plain.chunk(), graphed.chunk())
    assert recorder.recorded == 0


def test_what_is_kept_is_bounded_and_let_go(model):
    passes = GraphedPasses(model, Recorder())
    run = Run(passes, StreamOptions(num_cached_blocks=0, anchor_every=MOST_KINDS + 8, steps=1))
    for _ in range(MOST_KINDS + 4):
        run.chunk()
    assert len(passes._kinds) == MOST_KINDS
    passes.release()
    assert not passes._kinds and not passes._modulations
    for kind, kept in ((passes, True), (GraphedPasses(model), False)):
        before = kind._capture
        kind.release()
        assert (kind._capture is before) is kept


def test_what_cannot_be_recorded_runs_plainly(model, caplog):
    tried = []

    def refuse(call):
        tried.append(call())
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, graphed = Run(Passes(model)), Run(GraphedPasses(model, refuse))
    for _ in range(6):
        assert torch.equal(plain.chunk(), graphed.chunk())
    assert len(tried) == 1
    assert "without a CUDA graph" in caplog.text


def test_the_timestep_is_embedded_once(model, monkeypatch):
    calls, embed = [], model.modulation

    def counted(timestep):
        calls.append(timestep.tolist())
        return embed(timestep)

    monkeypatch.setattr(model, "modulation", counted)
    run = Run(Passes(model))
    for _ in range(3):
        run.chunk()
    assert sorted(calls) == [[0.0], [743.0], [893.0], [961.0], [1000.0]]


def test_new_keys_go_to_the_room_unless_gradients_are_asked_for(model):
    """What lies before them stays; where the room is too small, or would be part of a graph of gradients, there are copies."""
    old, new = torch.randn(2, 1, 4, 8, 16), torch.randn(2, 1, 4, 6, 16)
    buffers = torch.full((2, 1, 4, 15, 16), float("nan"))
    buffers[:, :, :, :8] = old
    window = Window(*buffers, used=8)
    with torch.no_grad():
        seen, own = window.joined(*new)
    assert torch.equal(torch.stack(seen), torch.cat([old, new], 3))
    assert torch.equal(torch.stack(own), new)
    assert all(part.untyped_storage().data_ptr() == buffers.untyped_storage().data_ptr() for part in (*seen, *own))
    assert buffers[:, :, :, 14:].isnan().all()

    for k, v, used in ((*new.clone().requires_grad_(), 8), (*new, 10)):
        buffers.fill_(float("nan"))
        buffers[:, :, :, :8] = old
        seen, own = Window(*buffers, used=used).joined(k, v)
        assert torch.equal(torch.stack(seen)[:, :, :, :8], old)
        assert torch.equal(torch.stack(seen)[:, :, :, used:], new)
        assert buffers[:, :, :, 8:].isnan().all()
        assert own[0] is k
