"""chunk_tile against the official vectors, and streamed against the whole in every split."""

import re
from dataclasses import replace
from typing import Any

import golden_files
import pytest
import torch
from compare import assert_near
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models import chunk_tile
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.stream_decoder import stream_decoder
from torch import Tensor

# Two temporal doublings, so that a tile is not of the release's length; spatial factor 4.
SMALL = VAEConfig(
    latent_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=(1, 0, 1),
    downsample_type=("temporal", "spatiotemporal"),
    decoder_block_out_channels=(8, 16),
    decoder_layers_per_block=(1, 0, 1),
    decoder_upsample_type=("temporal", "spatiotemporal"),
    upsample_residual=(True, True),
    upsample_factor=(2, 2),
    patch_size=2,
    scaling_factor=0.7,
)


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    torch.manual_seed(0)
    vae = CausalVAE(SMALL)
    vae.latents_mean.normal_()
    return vae.eval().requires_grad_(False)


def latents_of(frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, SMALL.latent_channels, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def stream(vae: CausalVAE, latents: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Frames of every call and of the flush, and the states between them."""
    assert sum(sizes) == latents.shape[2]
    state: dict[str, Tensor] = {}
    outputs, states = [], []
    for part in latents.split(sizes, dim=2):
        output, state = chunk_tile.decode(vae, part, state)
        outputs.append(output)
        states.append(state)
    return [*outputs, chunk_tile.flush(vae, state)], states


@pytest.mark.golden
def test_golden_decodes() -> None:
    config, tensors = golden_files.load("vae/decode_chunk_tile.safetensors")
    vae = CausalVAE(replace(VAEConfig.from_dict(config), decoder_causal=False))
    vae.load_state_dict(golden_files.weights(golden_files.load("vae/vae_tiny_weights.safetensors")[1]))
    found = {key: re.fullmatch(r"pixels_(\d+)(?:_sub(\d+))?", key) for key in tensors}
    cases = [(int(match[1]), int(match[2] or 1), tensors[key]) for key, match in found.items() if match]
    assert len(cases) >= 4
    for count, step, expected in cases:
        latents = tensors["latents_norm"][:, :, :count]
        with torch.no_grad():
            assert_near(chunk_tile.decode_clip(vae, latents)[..., ::step, ::step], expected, 2e-5, f"{count} latents")
            streamed = torch.cat(stream(vae, latents, [1] * count)[0], dim=2)
        assert_near(streamed[..., ::step, ::step], expected, 2e-5, f"{count} latents, streamed")


@pytest.mark.golden
def test_golden_blends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official tiles in place of the network's."""
    _, tensors = golden_files.load("vae/blend.safetensors")
    tiles = [tensors[f"temporal.tile_{i}"] for i in range(sum(key.startswith("temporal.tile_") for key in tensors))]
    assert len(tiles) >= 6
    vae = CausalVAE(replace(VAEConfig(), patch_size=1, downsample_type=("temporal",) * 3, **_NARROW))
    marks = torch.arange(len(tiles)).float().view(1, 1, -1, 1, 1)
    marks = marks.expand(len(tiles[0]), 4, -1, *tiles[0].shape[-2:])
    monkeypatch.setattr(vae, "decode_noncausal", lambda window: tiles[int(window[0, 0, 0, 0, 0])].clone())
    for sizes in ([len(tiles)], [1] * len(tiles), [2, len(tiles) - 2]):
        assert_near(torch.cat(stream(vae, marks, sizes)[0], dim=2), tensors["temporal.out"], 1e-6, str(sizes))


# Temporal factor 8, spatial factor 1.
_NARROW: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (4, 4, 4),
    "layers_per_block": (0, 0, 0, 0),
    "decoder_block_out_channels": (8, 8, 8),
    "decoder_layers_per_block": (0, 0, 0, 0),
    "decoder_upsample_type": ("temporal",) * 3,
    "upsample_factor": (1, 1, 1),
}


def test_interior_frames_are_the_three_tile_mix(vae: CausalVAE) -> None:
    """The closed form of docs/model.md, written out for one frame after the other."""
    factor, count = SMALL.temporal_factor, 8
    latents = latents_of(count)
    tiles = [vae.decode_noncausal(latents[:, :, i : i + 4])[:, :, 1:] for i in range(count)]
    out, extent = chunk_tile.decode_clip(vae, latents), 2 * factor
    for i in range(2, count - 3):
        for x in range(factor):
            older = (x + factor) / extent * tiles[i - 1][:, :, factor + x]
            older = older + (factor - x) / extent * tiles[i - 2][:, :, 2 * factor + x]
            expected = x / extent * tiles[i][:, :, x] + (1 - x / extent) * older
            assert_near(out[:, :, 1 + factor * i + x], expected, 1e-5, f"tile {i}, frame {x}")


@pytest.mark.parametrize(
    "sizes", [[1], [2], [3], [1, 1, 1], [4], [3, 1], [5, 3, 3], [1] * 11, [2, 1, 7, 1], [3] * 3 + [2], [10, 1]], ids=str
)
def test_any_split_gives_the_same_bits(vae: CausalVAE, sizes: list[int]) -> None:
    count = sum(sizes)
    whole = chunk_tile.decode_clip(vae, latents_of(count))
    outputs, states = stream(vae, latents_of(count), sizes)
    assert whole.shape == (2, 3, 1 + SMALL.temporal_factor * (count - 1), 8, 12)
    assert torch.equal(torch.cat(outputs, dim=2), whole)
    done = 0
    for size, output, state in zip(sizes, outputs, states, strict=False):
        before, done = max(0, 1 + 4 * (done - 3)) if done > 3 else 0, done + size
        after = 1 + 4 * (done - 3) if done > 3 else 0
        assert output.shape[2] == after - before
        assert chunk_tile.held_frames(vae, state) == 1 + 4 * (done - 1) - after
    assert outputs[-1].shape[2] == chunk_tile.held_frames(vae, states[-1])


@pytest.mark.parametrize(("count", "tiles"), [(1, 1), (2, 1), (5, 4)])
def test_no_tile_is_decoded_in_vain(vae: CausalVAE, monkeypatch: pytest.MonkeyPatch, count: int, tiles: int) -> None:
    windows, whole = [], vae.decode_noncausal
    monkeypatch.setattr(vae, "decode_noncausal", lambda window: windows.append(window) or whole(window))
    chunk_tile.decode_clip(vae, latents_of(count))
    assert len(windows) == tiles


def test_memory_is_flat_over_100_latents(vae: CausalVAE) -> None:
    _, states = stream(vae, latents_of(100, batch=1), [4, *[1] * 96])
    layouts = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in states]
    assert all(layout == layouts[0] for layout in layouts)
    assert layouts[0]["latents"][0][2] == 3
    assert layouts[0]["blended"][0][2] == 2 * SMALL.temporal_factor
    for value in states[-1].values():
        assert value.is_contiguous()
        assert value.untyped_storage().nbytes() == value.nbytes


def test_calls_leave_the_state_alone_and_a_saved_one_goes_on(vae: CausalVAE) -> None:
    from safetensors.torch import load, save

    latents, sizes = latents_of(9), [2, 1, 1, 3, 2]
    outputs, _ = stream(vae, latents, sizes)
    state: dict[str, Tensor] = {}
    for part, expected in zip(latents.split(sizes, dim=2), outputs, strict=False):
        kept = {key: value.clone() for key, value in state.items()}
        chunk_tile.decode(vae, part, state)
        assert all(torch.equal(state[key], value) for key, value in kept.items())
        output, state = chunk_tile.decode(vae, part, load(save(state)))
        assert torch.equal(output, expected)
    assert torch.equal(chunk_tile.flush(vae, state), chunk_tile.flush(vae, load(save(state))))


def test_low_precision() -> None:
    torch.manual_seed(0)
    vae = CausalVAE(SMALL).requires_grad_(False).to(torch.bfloat16)
    outputs, states = stream(vae, latents_of(7), [2, 5])
    assert {value.dtype for value in (*outputs, *states[-1].values())} == {torch.bfloat16}
    assert torch.equal(torch.cat(outputs, dim=2), chunk_tile.decode_clip(vae, latents_of(7)))


def test_the_config_chooses_the_decoder(vae: CausalVAE) -> None:
    assert (stream_decoder(vae).name, stream_decoder(vae).delay_latents) == ("chunk_tile", 3)
    causal = CausalVAE(replace(SMALL, decoder_causal=True)).requires_grad_(False)
    decoder = stream_decoder(causal)
    assert (decoder.name, decoder.delay_latents) == ("causal", 0)
    pixels, state = decoder.decode(latents_of(2))
    assert torch.equal(pixels, causal.decode(latents_of(2))[0])
    assert (decoder.held_frames(state), decoder.flush(state)) == (0, None)
    assert (stream_decoder(vae).held_frames({}), stream_decoder(vae).flush({})) == (0, None)


def test_what_does_not_fit_is_refused(vae: CausalVAE) -> None:
    latents = latents_of(5)
    _, state = chunk_tile.decode(vae, latents)
    with pytest.raises(InputError, match=r"\(2, 5, 5, 2, 3\)"):
        chunk_tile.decode(vae, torch.zeros(2, 5, 5, 2, 3))
    with pytest.raises(InputError, match=r"\(1, \(2, 3\), 'float32', 'cpu'\)"):
        chunk_tile.decode(vae, latents[:1], state)
    with pytest.raises(InputError, match=r"\(3, 2\)"):
        chunk_tile.decode(vae, latents.mT, state)
    causal_state = CausalVAE(replace(SMALL, decoder_causal=True)).decode(latents)[1]
    for call in (chunk_tile.flush, lambda vae, state: chunk_tile.decode(vae, latents, state)):
        with pytest.raises(InputError, match="not the latents and blended frames"):
            call(vae, causal_state)
        for damaged in ({"blended": state["blended"][:, :, 1:]}, {"blended": state["blended"].double()}):
            with pytest.raises(InputError, match="not of one chunk_tile decode"):
                call(vae, {**state, **damaged})
        with pytest.raises(InputError, match="not of one chunk_tile decode"):
            call(vae, {**state, "latents": latents})
