"""CUDA graphs inside ComfyUI: only on request, and only where the weights stay in place."""

from types import SimpleNamespace

import pytest
import torch
import toys
from sana_streaming.sana_core.streaming.passes import GraphedPasses, Passes


def patcher(**changes):
    """A model that is wholly on a GPU."""
    plain = {
        "load_device": torch.device("cuda", 0),
        "patches": {},
        "weight_wrapper_patches": {},
        "is_dynamic": bool,
        "loaded_size": lambda: 5,
        "model_size": lambda: 5,
        "model": toys.networks()[0],
    }
    return SimpleNamespace(**plain | changes)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"load_device": torch.device("cpu")}, "the model runs on cpu"),
        ({"patches": {"blocks.0.attn.qkvg.weight": [1]}}, "a LoRA changes the model"),
        ({"weight_wrapper_patches": {"blocks.0.attn.qkvg.weight": [1]}}, "a LoRA changes the model"),
        ({"loaded_size": lambda: 4}, "part of the model outside the GPU"),
        ({"is_dynamic": lambda: True}, "part of the model outside the GPU"),
    ],
)
def test_weights_that_may_move_are_not_recorded(caplog, changes, reason):
    from sana_streaming.nodes import graphs, sockets

    model = sockets.LoadedModel(patcher(**changes))
    with graphs.passes_of(model, recorded=True) as passes:
        assert type(passes) is Passes
    assert reason in caplog.text


def test_recording_is_opt_in_and_ends_with_the_run(caplog, monkeypatch):
    from sana_streaming.nodes import graphs, sockets

    released = []
    monkeypatch.setattr(GraphedPasses, "release", lambda passes: released.append(passes))
    monkeypatch.setattr("sana_streaming.sana_core.streaming.passes.CudaCapture", object)
    model = sockets.LoadedModel(patcher())
    with graphs.passes_of(model, recorded=False) as passes:
        assert type(passes) is Passes
    with pytest.raises(KeyboardInterrupt), graphs.passes_of(model, recorded=True) as passes:
        assert type(passes) is GraphedPasses
        raise KeyboardInterrupt
    assert released == [passes]
    assert not caplog.text
