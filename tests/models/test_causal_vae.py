"""The causal VAE against the official vectors, against diffusers, and against itself in other splits."""

import re
import warnings
from pathlib import Path
from typing import Any

import golden_files
import pytest
import torch
from compare import assert_near, relative_rms
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE, VAEState
from sana_streaming.sana_core.weights.vae import save_vae
from torch import Tensor

# Every kind of sampler, odd widths, a decoder that differs from the encoder, spatial factor 8.
MIXED = VAEConfig(
    latent_channels=6,
    block_out_channels=(12, 24, 48),
    layers_per_block=(1, 0, 1, 1),
    downsample_type=("spatial", "temporal", "spatiotemporal"),
    decoder_block_out_channels=(8, 8, 16),
    decoder_layers_per_block=(1, 1, 0, 1),
    decoder_upsample_type=("spatial", "spatiotemporal", "temporal"),
    upsample_residual=(True, False, True),
    upsample_factor=(2, 1, 2),
    patch_size=2,
    scaling_factor=0.7,
    decoder_causal=True,
)


def random_vae(config: VAEConfig, seed: int = 0) -> CausalVAE:
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    return vae.eval().requires_grad_(False)


def random_video(config: VAEConfig, frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = 2 * config.spatial_factor, 3 * config.spatial_factor
    return torch.rand(batch, 3, frames, *sides, generator=generator) * 2 - 1


def random_latents(config: VAEConfig, frames: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, config.latent_channels, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden_vae() -> CausalVAE:
    config, tensors = golden_files.load("vae/vae_tiny_weights.safetensors")
    vae = CausalVAE(VAEConfig.from_dict(config))
    vae.load_state_dict(golden_files.weights(tensors))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    return random_vae(MIXED)


def golden_video(tensors: dict[str, Tensor]) -> Tensor:
    frames = tensors["video_u8"]
    frames = frames if frames.ndim == 5 else frames[None]
    return ((frames.float() / 255 - 0.5) / 0.5).movedim(2, 1)


def cases(tensors: dict[str, Tensor], prefix: str) -> dict[int, tuple[Tensor, int]]:
    """Number of frames -> (expected, every how many rows and columns it is stored) for keys PREFIX_N[_subM]."""
    found = ((re.fullmatch(rf"{prefix}_(\d+)(?:_sub(\d+))?", key), value) for key, value in tensors.items())
    return {int(match[1]): (value, int(match[2] or 1)) for match, value in found if match}


def streams(tensors: dict[str, Tensor]) -> dict[str, list[tuple[int, int]]]:
    """Name -> (frames, latent frames) of each call."""
    names = sorted(key.split(".")[0] for key in tensors if key.startswith("stream_") and key.endswith(".frames"))
    return {
        name: list(zip(tensors[f"{name}.frames"].tolist(), tensors[f"{name}.latents"].tolist(), strict=True))
        for name in names
    }


def run(step: Any, x: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[VAEState]]:
    """Outputs and states of ``step`` (encode or decode) on ``x`` cut into calls of ``sizes`` frames."""
    assert sum(sizes) == x.shape[2]
    state: VAEState | None = None
    outputs, states = [], []
    for part in x.split(sizes, dim=2):
        output, state = step(part, state)
        outputs.append(output)
        states.append(state)
    return outputs, states


@pytest.mark.golden
def test_golden_moments_and_latents(golden_vae: CausalVAE) -> None:
    _, tensors = golden_files.load("vae/encode.safetensors")
    video = golden_video(tensors)
    moments, latents = cases(tensors, "moments"), cases(tensors, "latents_norm")
    assert moments and latents
    for frames, (expected, _) in moments.items():
        assert_near(golden_vae.moments(video[:, :, :frames]), expected, 2e-5)
    for frames, (expected, _) in latents.items():
        assert_near(golden_vae.encode(video[:, :, :frames])[0], expected, 2e-5)


@pytest.mark.golden
def test_golden_encode_streams(golden_vae: CausalVAE) -> None:
    _, tensors = golden_files.load("vae/encode.safetensors")
    video, plans = golden_video(tensors), streams(tensors)
    expected, _ = cases(tensors, "latents_norm")[video.shape[2]]
    assert len(plans) >= 5
    for name, calls in plans.items():
        outputs, _ = run(golden_vae.encode, video, [frames for frames, _ in calls])
        assert [output.shape[2] for output in outputs] == [count for _, count in calls], name
        assert_near(torch.cat(outputs, dim=2), expected, 2e-5)


@pytest.mark.golden
def test_golden_decode(golden_vae: CausalVAE) -> None:
    _, tensors = golden_files.load("vae/decode_causal.safetensors")
    latents, pixels = tensors["latents_norm"], cases(tensors, "pixels")
    assert_near(golden_vae.denormalize(latents), tensors["latents_raw"], 1e-6)
    assert_near(golden_vae.normalize(tensors["latents_raw"]), latents, 1e-6)
    assert pixels
    for count, (expected, step) in pixels.items():
        assert_near(golden_vae.decode(latents[:, :, :count])[0][..., ::step, ::step], expected, 2e-5)


@pytest.mark.golden
def test_golden_decode_streams(golden_vae: CausalVAE) -> None:
    _, tensors = golden_files.load("vae/decode_causal.safetensors")
    latents, plans = tensors["latents_norm"], streams(tensors)
    count, factor = latents.shape[2], golden_vae.config.temporal_factor
    expected, step = cases(tensors, "pixels")[count]
    plans["ours, the last latent frame alone"] = [(factor * (count - 2) + 1, count - 1), (factor, 1)]
    assert len({tuple(calls) for calls in plans.values()}) >= 5
    for name, calls in plans.items():
        outputs, _ = run(golden_vae.decode, latents, [count for _, count in calls])
        assert [output.shape[2] for output in outputs] == [frames for frames, _ in calls], name
        assert_near(torch.cat(outputs, dim=2)[..., ::step, ::step], expected, 1e-4)


@pytest.mark.golden
def test_golden_noncausal_decode(golden_vae: CausalVAE) -> None:
    _, tensors = golden_files.load("vae/decode_chunk_tile.safetensors")
    oneshot = cases(tensors, "noncausal_oneshot")
    assert oneshot
    for count, (expected, step) in oneshot.items():
        pixels = golden_vae.decode_noncausal(tensors["latents_norm"][:, :, :count])
        assert_near(pixels[..., ::step, ::step], expected, 2e-5)


@pytest.mark.parametrize("config", [MIXED, VAEConfig.from_dict({**MIXED.to_dict(), "decoder_causal": False})])
def test_diffusers_reads_our_files_and_agrees(config: VAEConfig, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # Deprecations inside diffusers are not ours.
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="needs diffusers as the second implementation")
        if not hasattr(diffusers, "AutoencoderKLLTX2Video"):
            pytest.skip(f"diffusers {diffusers.__version__} has no AutoencoderKLLTX2Video (0.37 has)")
        vae = random_vae(config)
        save_vae(vae, tmp_path)
        oracle = diffusers.AutoencoderKLLTX2Video.from_pretrained(tmp_path).eval()
        video, latents = random_video(config, 9), random_latents(config, 3)
        with torch.inference_mode():
            moments = oracle.encode(video).latent_dist.parameters
            pixels = oracle.decode(vae.denormalize(latents)).sample
    assert oracle.state_dict().keys() == vae.state_dict().keys()
    assert oracle.config.spatial_compression_ratio == config.spatial_factor
    assert_near(vae.moments(video), moments, 2e-5)
    assert_near(vae.decode(latents)[0] if config.decoder_causal else vae.decode_noncausal(latents), pixels, 2e-5)


@pytest.mark.parametrize("sizes", [[1] * 13, [2, 1, 7, 3], [5, 8], [9, 4], [3, 10]])
def test_any_encode_split_equals_the_whole(vae: CausalVAE, sizes: list[int]) -> None:
    video = random_video(MIXED, 13)
    outputs, _ = run(vae.encode, video, sizes)
    whole, _ = vae.encode(video)
    assert whole.shape == (2, MIXED.latent_channels, 4, 2, 3)
    assert_near(torch.cat(outputs, dim=2), whole, 2e-5)


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 3], [1, 4], [4, 1], [2, 1, 2]])
def test_any_decode_split_equals_the_whole(vae: CausalVAE, sizes: list[int]) -> None:
    latents = random_latents(MIXED, 5)
    outputs, _ = run(vae.decode, latents, sizes)
    whole, _ = vae.decode(latents)
    assert whole.shape == (2, 3, 17, 2 * MIXED.spatial_factor, 3 * MIXED.spatial_factor)
    assert_near(torch.cat(outputs, dim=2), whole, 1e-4)


def test_latents_of_a_prefix_do_not_depend_on_what_follows(vae: CausalVAE) -> None:
    video = random_video(MIXED, 9)
    other = video.clone()
    other[:, :, 5:] = 0
    assert_near(vae.encode(video)[0][:, :, :2], vae.encode(other)[0][:, :, :2], 1e-6)
    latents = random_latents(MIXED, 4)
    changed = latents.clone()
    changed[:, :, 2:] = 0
    assert_near(vae.decode(latents)[0][:, :, :5], vae.decode(changed)[0][:, :, :5], 1e-6)
    assert not torch.allclose(vae.decode_noncausal(latents)[:, :, :5], vae.decode_noncausal(changed)[:, :, :5])


def stream_of(vae: CausalVAE, direction: str, batch: int = 2, seed: int = 1) -> tuple[Any, Tensor, list[int]]:
    """(step, input, call sizes) of four calls; the second encode call leaves frames pending."""
    if direction == "encode":
        return vae.encode, random_video(MIXED, 13, batch, seed), [1, 3, 5, 4]
    return vae.decode, random_latents(MIXED, 5, batch, seed), [1, 1, 2, 1]


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_state_keeps_its_keys_and_bytes(vae: CausalVAE, direction: str) -> None:
    step, x, _ = stream_of(vae, direction)
    sizes = [1, 4, 4, 4] if direction == "encode" else [1, 1, 2, 1]
    _, states = run(step, x, sizes)
    layouts = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in states]
    assert all(layout == layouts[0] for layout in layouts)
    for value in states[-1].values():
        assert value.is_contiguous()
        assert value.untyped_storage().nbytes() == value.nbytes


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_calls_leave_state_and_input_alone_and_can_be_repeated(vae: CausalVAE, direction: str) -> None:
    step, x, sizes = stream_of(vae, direction)
    before = x.clone()
    state: VAEState = {}
    for part in x.split(sizes, dim=2):
        kept = {key: value.clone() for key, value in state.items()}
        first, after = step(part, state)
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        again, after_again = step(part, state)
        assert torch.equal(first, again)
        assert all(torch.equal(after[key], after_again[key]) for key in after)
        state = after
    assert torch.equal(x, before)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_saved_state_goes_on(vae: CausalVAE, direction: str) -> None:
    from safetensors.torch import load, save

    step, x, sizes = stream_of(vae, direction)
    outputs, _ = run(step, x, sizes)
    state: VAEState = {}
    for part, expected in zip(x.split(sizes, dim=2), outputs, strict=True):
        output, state = step(part, load(save(state)))
        assert torch.equal(output, expected)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_two_streams_share_the_weights(vae: CausalVAE, direction: str) -> None:
    step, x, sizes = stream_of(vae, direction)
    _, y, _ = stream_of(vae, direction, seed=2)
    alone = run(step, x, sizes)[0], run(step, y, sizes)[0]
    x_state: VAEState = {}
    y_state: VAEState = {}
    for i, (x_part, y_part) in enumerate(zip(x.split(sizes, dim=2), y.split(sizes, dim=2), strict=True)):
        x_out, x_state = step(x_part, x_state)
        y_out, y_state = step(y_part, y_state)
        assert torch.equal(x_out, alone[0][i])
        assert torch.equal(y_out, alone[1][i])


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_batch_items_do_not_mix(vae: CausalVAE, direction: str) -> None:
    step, x, sizes = stream_of(vae, direction)
    together = torch.cat(run(step, x, sizes)[0], dim=2)
    for i in range(len(x)):
        assert_near(torch.cat(run(step, x[i : i + 1], sizes)[0], dim=2), together[i : i + 1], 2e-5)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_gradients_flow_through_the_state(vae: CausalVAE, direction: str) -> None:
    step, x, sizes = stream_of(vae, direction)
    x.requires_grad_(True)
    outputs, _ = run(step, x, sizes)
    outputs[-1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, 0].abs().sum() > 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_inference_mode_and_low_precision(direction: str, dtype: torch.dtype, bound: float) -> None:
    vae = random_vae(MIXED).to(dtype)
    step, x, sizes = stream_of(vae, direction)
    with torch.inference_mode():
        outputs, states = run(step, x, sizes)
    assert {value.dtype for value in (*outputs, *states[-1].values())} == {dtype}
    exact = torch.cat(run(stream_of(random_vae(MIXED), direction)[0], x, sizes)[0], dim=2)
    assert relative_rms(torch.cat(outputs, dim=2), exact) < bound


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"patch_size": 1}, 8),
        ({"patch_size": 2}, 16),
        ({"downsample_type": ("temporal", "spatiotemporal", "temporal"), "patch_size": 4}, 8),
        ({"downsample_type": ("spatial", "spatial", "temporal"), "patch_size": 4}, 16),
    ],
)
def test_other_factors(changes: dict[str, Any], factor: int) -> None:
    small = {
        "latent_channels": 8,
        "block_out_channels": (16, 16, 32),
        "layers_per_block": (1, 1, 1, 1),
        "downsample_type": ("spatiotemporal", "spatiotemporal", "spatiotemporal"),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_causal": True,
    }
    values = {**small, **changes}
    config = VAEConfig(**values, decoder_upsample_type=values["downsample_type"])
    vae, frames = random_vae(config), 1 + 2 * config.temporal_factor
    assert config.spatial_factor == factor
    video = random_video(config, frames, batch=1)
    latents, state = vae.encode(video)
    assert latents.shape == (1, 8, 3, 2, 3)
    assert not any(value.shape[2] for key, value in state.items() if key.endswith(".pending"))
    pixels, _ = vae.decode(latents)
    assert pixels.shape == video.shape
    assert vae.decode_noncausal(latents).shape == video.shape


def test_convolutions_come_from_operations() -> None:
    class Operations:
        class Conv3d(torch.nn.Conv3d):
            pass

    vae = CausalVAE(VAEConfig(), operations=Operations, device="meta", dtype=torch.bfloat16)
    leaves = [module for module in vae.modules() if [*module.parameters(recurse=False)]]
    assert {type(leaf) for leaf in leaves} == {Operations.Conv3d}
    # Not every namespace's Conv3d obeys padding_mode.
    assert {leaf.padding_mode for leaf in leaves} == {"zeros"}
    # The public VAE (docs/model.md).
    assert len(vae.state_dict()) == 184
    assert sum(value.numel() for value in vae.state_dict().values()) == 1_222_479_857
    assert {value.dtype for value in vae.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 4, 1, 16, 16), "(1, 4, 1, 16, 16)"),
        ((3, 1, 16, 16), "(3, 1, 16, 16)"),
        ((1, 3, 0, 16, 16), "F >= 1"),
        ((1, 3, 1, 20, 16), "16 x 20"),
        ((1, 3, 1, 16, 20), "20 x 16"),
        ((1, 3, 1, 8, 16), "at least 16"),
    ],
)
def test_wrong_video_is_refused(vae: CausalVAE, shape: tuple[int, ...], named: str) -> None:
    for call in (vae.encode, vae.moments):
        with pytest.raises(InputError, match=re.escape(named)):
            call(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 5, 1, 2, 2), (6, 1, 2, 2), (1, 6, 0, 2, 2), (1, 6, 1, 1, 2)])
def test_wrong_latents_are_refused(vae: CausalVAE, shape: tuple[int, ...]) -> None:
    for call in (vae.decode, vae.decode_noncausal):
        with pytest.raises(InputError, match=re.escape(str(shape))):
            call(torch.zeros(shape))


def test_clips_that_break_the_frame_law_are_refused(vae: CausalVAE) -> None:
    with pytest.raises(InputError, match=r"8 frames.*1 \+ 4k"):
        vae.moments(random_video(MIXED, 8))


def test_decode_needs_a_causal_decoder() -> None:
    config = VAEConfig.from_dict({**MIXED.to_dict(), "decoder_causal": False})
    vae = random_vae(config)
    assert not vae.decodes_causally
    with pytest.raises(InputError, match="decoder='causal'"):
        vae.decode(random_latents(config, 1))


def test_states_of_other_streams_are_refused(vae: CausalVAE) -> None:
    video, latents = random_video(MIXED, 1), random_latents(MIXED, 1)
    encoder_state, decoder_state = vae.encode(video)[1], vae.decode(latents)[1]
    with pytest.raises(InputError, match="of the encoder"):
        vae.encode(video, decoder_state)
    with pytest.raises(InputError, match="of the decoder"):
        vae.decode(latents, {**decoder_state, "more": torch.zeros(1)})
    with pytest.raises(InputError, match=r"batch 2, 24 x 16.*batch 1, 24 x 16"):
        vae.encode(video[:1], encoder_state)
    with pytest.raises(InputError, match=r"24 x 16.*16 x 24"):
        vae.encode(video.mT, encoder_state)
    with pytest.raises(InputError, match=r"float64.*float32"):
        vae.decode(latents, {key: value.double() for key, value in decoder_state.items()})
