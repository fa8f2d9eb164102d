"""Constants folded into the weights of the VAE: the same results from another residual stream."""

import dataclasses

import pytest
import torch
from compare import relative_rms
from sana_streaming.kernels.vae_norm import eager
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.vae_layers import ResidualBlock
from sana_streaming.sana_core.models.vae_scale import scaled_weights
from sana_streaming.sana_core.weights.random_init import random_vae
from vae_norm_cases import SMALL_VAE

# All kinds of samplers, shortcuts that average and that copy.
RELEASE_LIKE = dataclasses.replace(
    SMALL_VAE,
    downsample_type=("spatial", "temporal", "spatiotemporal"),
    block_out_channels=(12, 24, 48),
    decoder_upsample_type=("spatiotemporal", "spatiotemporal"),
    decoder_block_out_channels=(16, 32),
    decoder_layers_per_block=(1, 2, 1),
    upsample_residual=(True, True),
    upsample_factor=(2, 2),
)


@pytest.fixture(params=[SMALL_VAE, RELEASE_LIKE], ids=["small", "release-like"])
def vae(request):
    return random_vae(request.param, dtype=torch.float64)


def results(vae):
    """Everything that comes out of both directions, and the largest value of either residual stream."""
    peaks = {"encoder": 0.0, "decoder": 0.0}
    for name, module in vae.named_modules():
        if isinstance(module, ResidualBlock):
            direction = name.split(".")[0]

            def note(_module, _given, out, direction=direction):
                peaks[direction] = max(peaks[direction], out.total().abs().max().item())

            module.register_forward_hook(note)
    generator = torch.Generator().manual_seed(1)
    config = vae.config
    video = torch.rand(1, 3, 9, 2 * config.spatial_factor, 3 * config.spatial_factor, generator=generator) * 2 - 1
    latents = torch.randn(1, config.latent_channels, 3, 2, 3, generator=generator)
    state, given = None, {"moments": vae.moments(video), "noncausal": vae.decode_noncausal(latents)}
    for number, part in enumerate(video.split([1, 8], 2)):
        given[f"encode {number}"], state = vae.encode(part, state)
    state = None
    for number, part in enumerate(latents.split([1, 2], 2)):
        given[f"decode {number}"], state = vae.decode(part, state)
    return given, peaks


def scaled(vae, encoder, decoder):
    other = CausalVAE(vae.config, dtype=vae.dtype)
    other.load_state_dict(scaled_weights(vae, encoder, decoder))
    return other.requires_grad_(False)


@pytest.mark.parametrize(("encoder", "decoder"), [(0.3, 0.01), (7.0, 1.0), (1.0, 1 / 64)])
def test_results_are_the_same_and_the_streams_are_not(vae, encoder, decoder, monkeypatch):
    """Without the norms' epsilon, the one number that the constant does not go into."""
    monkeypatch.setattr(eager, "RMS_EPSILON", 0.0)
    (expected, before), (got, after) = results(vae), results(scaled(vae, encoder, decoder))
    for name, value in expected.items():
        assert relative_rms(got[name], value) <= 1e-10, name
    assert after == pytest.approx({"encoder": encoder * before["encoder"], "decoder": decoder * before["decoder"]})


def test_powers_of_two_change_no_bit_but_through_epsilon(vae, monkeypatch):
    factors = (1 / 4, 1 / 8)
    for name, value in results(vae)[0].items():
        assert relative_rms(results(scaled(vae, *factors))[0][name], value) <= 1e-5, name
    monkeypatch.setattr(eager, "RMS_EPSILON", 0.0)
    expected, got = results(vae)[0], results(scaled(vae, *factors))[0]
    assert all(got[name].equal(value) for name, value in expected.items())


def test_the_vae_itself_stays_as_it_is(vae):
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    made = scaled_weights(vae, 0.5, 0.5)
    assert all(value.equal(before[key]) for key, value in vae.state_dict().items())
    assert made.keys() == before.keys() and not any(made[key] is value for key, value in vae.state_dict().items())


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_other_factors_are_refused(vae, factor):
    with pytest.raises(InputError, match="decoder factor is"):
        scaled_weights(vae, decoder=factor)
