"""Recording of CUDA graphs: on a GPU alone."""

import gc

import pytest
import torch
from sana_streaming.sana_core.models.cuda_graph import record

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)


@pytest.fixture
def x():
    return torch.arange(4.0, device="cuda")


def test_a_graph_repeats_the_call(x):
    graph, result = record(lambda: x * 2, torch.cuda.Stream())
    x.fill_(5)
    graph.replay()
    assert result.tolist() == [10.0] * 4


def test_a_call_that_reads_a_value_leaves_everything_as_it_was(x):
    side, before = torch.cuda.Stream(), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        record(lambda: x * x.sum().item(), side)
    assert torch.cuda.current_stream() == before
    # A block that another stream has used is taken again once that stream is done.
    block = torch.empty(2**22, device="cuda")
    place = block.data_ptr()
    block.record_stream(side)
    del block
    torch.cuda.synchronize()
    again = torch.empty(2**22, device="cuda")
    assert again.data_ptr() == place
    graph, result = record(lambda: x + 1, torch.cuda.Stream())
    graph.replay()
    assert result.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("shared", [False, True], ids=["own pool", "shared pool"])
def test_a_call_that_fails_in_its_recording_leaves_the_pool_to_its_graphs(x, shared):
    side, calls = torch.cuda.Stream(), []

    def fails_the_second_time():
        calls.append(1)
        y = x * 3
        if len(calls) == 2:
            raise RuntimeError("no room")
        return y

    before, result = record(lambda: x * 2, side)
    with pytest.raises(RuntimeError, match="no room"):
        record(fails_the_second_time, side, before.pool() if shared else None)
    gc.collect()
    torch.cuda.empty_cache()
    torch.empty(2**22, device="cuda").fill_(7)
    before.replay()
    assert result.tolist() == [0.0, 2.0, 4.0, 6.0]
