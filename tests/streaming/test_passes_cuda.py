"""CUDA graphs of the steady pass: on a GPU alone."""

import pytest
import torch
import toys
from latent_stream import Run
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.passes import GraphedPasses, Passes
from sana_streaming.sana_core.weights.random_init import random_dit

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def model():
    return random_dit(toys.CONFIGS["dit"], device="cuda")


class DeviceRun(Run):
    """A stream whose latents lie on the GPU."""

    def tensors(self, seed, *shape):
        return super().tensors(seed, *shape).cuda()


@pytest.mark.parametrize(
    "options", [StreamOptions(), StreamOptions(cfg_scale=3.0), StreamOptions(reuse_last_step=True)]
)
def test_graphs_change_no_bit(model, options):
    plain, graphed = DeviceRun(Passes(model), options), DeviceRun(GraphedPasses(model), options)
    for index in range(8):
        if index == 5:
            plain.prompt, graphed.prompt = (run.context(9) for run in (plain, graphed))
        assert torch.equal(plain.chunk(), graphed.chunk()), index
    assert any(not isinstance(kind, int) for kind in graphed.passes._kinds.values())


@pytest.mark.parametrize("passes", [Passes, GraphedPasses])
def test_a_steady_chunk_never_waits_for_the_device(model, passes):
    run = DeviceRun(passes(model))
    for _ in range(5):
        run.chunk()
    inputs = run.inputs()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run.chunk(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_passes_go_on_after_a_release(model):
    plain, graphed = DeviceRun(Passes(model)), DeviceRun(GraphedPasses(model))
    for index in range(10):
        if index == 6:
            graphed.passes.release()
        assert torch.equal(plain.chunk(), graphed.chunk()), index
    assert any(not isinstance(kind, int) for kind in graphed.passes._kinds.values())


def test_graphs_take_no_more_memory_with_every_chunk(model):
    run = DeviceRun(GraphedPasses(model))
    reserved = []
    for _ in range(12):
        run.chunk()
        reserved.append(torch.cuda.memory_reserved())
    assert len(set(reserved[6:])) == 1
