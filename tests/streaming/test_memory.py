import pytest
import torch
import toys
from sana_streaming.sana_core.config import DIT_PRESETS, VAEConfig
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.memory import stream_memory
from sana_streaming.sana_core.streaming.options import StreamOptions


@pytest.mark.parametrize(("total", "options"), [(None, {}), (81, {"cfg_scale": 2.0}), (100, {"num_cached_blocks": 3})])
def test_carried_bytes_are_exact(total, options):
    editor = toys.stream(total, **options)
    count = 81 if total is None else total
    list(editor.push(toys.frames(count)))
    model, vae, _ = toys.networks()
    size, dtypes = (toys.SIZE, toys.SIZE), (torch.float32, torch.float32)
    needed = stream_memory(model.config, vae.config, ChunkPlan(total), size, StreamOptions(**options), *dtypes)
    waiting = editor.state.waiting
    held = editor.state.nbytes - waiting.numel() * waiting.element_size()
    assert needed.dit_state + needed.vae_state == held


def test_full_size():
    """The sizes that follow from the shapes of the release at 704x1280 in bfloat16 (docs/architecture.md)."""
    plan, dtypes = ChunkPlan(969), (torch.bfloat16, torch.bfloat16)
    vae = VAEConfig(decoder_causal=True)
    needed = stream_memory(DIT_PRESETS["streaming-2b"], vae, plan, (704, 1280), StreamOptions(), *dtypes)
    assert needed.dit_state == pytest.approx(15.2e6 + 315e6 + 78.8e6, rel=0.01)
    assert needed.vae_state == pytest.approx(2 * (470.4e6 + 297.6e6), rel=0.01)
    assert needed.dit_work < needed.vae_work < needed.total
