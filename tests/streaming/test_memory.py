from dataclasses import replace

import pytest
import torch
import toys
from sana_streaming.sana_core.config import DIT_PRESETS, VAEConfig
from sana_streaming.sana_core.models.vae_tiles import RELEASE_TILES
from sana_streaming.sana_core.short_clip import ShortClipOptions, sample_short
from sana_streaming.sana_core.streaming.chunks import ChunkPlan
from sana_streaming.sana_core.streaming.memory import clip_vae_memory, short_memory, stream_memory
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.weights.random_init import random_dit
from torch.profiler import ProfilerActivity, profile


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


def peak_bytes(run):
    """Most bytes that were allocated at once while ``run`` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("cfg_scale", [1.0, 6.0])
def test_a_clip_that_is_denoised_whole_takes_what_is_foreseen(cfg_scale):
    """A network of the release's proportions, thinner."""
    changes = {"hidden_size": 448, "num_heads": 4, "depth": 8, "softmax_layers": (3, 7), "caption_channels": 24}
    config = replace(DIT_PRESETS["bidirectional-2b"], in_channels=16, source_channels=16, **changes)
    model, text = random_dit(config), toys.networks()[2]
    embedded = text.encode("make it snow")
    rows = 2 if cfg_scale > 1 else 1
    context = model.prompt_context(embedded.embeds.repeat(rows, 1, 1), embedded.mask.repeat(rows, 1))
    source, options = torch.randn(1, 16, 11, 8, 10), ShortClipOptions(steps=2, cfg_scale=cfg_scale)
    measured = peak_bytes(lambda: sample_short(model, context, torch.randn_like(source), source, options))
    assert measured == pytest.approx(short_memory(config, 11, (8, 10), cfg_scale > 1, torch.float32), rel=0.1)


def test_a_clip_at_full_size():
    """81 frames of 704x1280 in bfloat16, with guidance: tiles spare memory, more where all frames of a tile are at once."""
    denoised = short_memory(DIT_PRESETS["bidirectional-2b"], 11, (22, 40), True, torch.bfloat16)
    assert denoised == pytest.approx(4.18e9, rel=0.01)
    for causal in (True, False):
        config = VAEConfig(decoder_causal=causal)
        tiled, whole = (
            clip_vae_memory(config, 11, (704, 1280), tiles, torch.bfloat16) for tiles in (RELEASE_TILES, None)
        )
        assert tiled < 0.6 * whole
        assert whole > 2 * 3 * 81 * 704 * 1280 * 2
