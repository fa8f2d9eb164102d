"""Spatial tiles against the official vectors, against diffusers' tiling, and against the whole frame."""

import dataclasses
import re
import warnings

import golden_files
import pytest
import torch
from compare import assert_near
from safetensors import safe_open
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.models.vae_tiles import SpatialTiles, blend, decode_tiled, encode_tiled
from sana_streaming.sana_core.weights.random_init import random_vae
from sana_streaming.sana_core.weights.vae import save_vae

ATOL = 2e-5
SPATIAL = "vae/spatial_tile.safetensors"
# 8 pixels and 4 frames per latent, so that small frames have many tiles.
SMALL = VAEConfig(
    latent_channels=6,
    block_out_channels=(16, 32),
    layers_per_block=(1, 0, 1),
    downsample_type=("spatiotemporal", "spatiotemporal"),
    decoder_block_out_channels=(8, 16),
    decoder_layers_per_block=(1, 0, 1),
    decoder_upsample_type=("spatiotemporal", "spatiotemporal"),
    upsample_residual=(True, True),
    upsample_factor=(2, 2),
    patch_size=2,
    scaling_factor=0.7,
)


@pytest.fixture(scope="module", params=[False, True], ids=["noncausal", "causal"])
def vae(request):
    return _small_vae(request.param)


def _small_vae(causal):
    vae = random_vae(dataclasses.replace(SMALL, decoder_causal=causal))
    vae.latents_mean.normal_(generator=torch.Generator().manual_seed(1))
    vae.latents_std.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return vae


def _video(frames, rows, columns, batch=2):
    generator = torch.Generator().manual_seed(3)
    factor = SMALL.spatial_factor
    return torch.rand(batch, 3, frames, rows * factor, columns * factor, generator=generator) * 2 - 1


def _latents(frames, rows, columns, batch=2):
    shape = (batch, SMALL.latent_channels, frames, rows, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def _subsampled(tensors, prefix):
    """(expected, every how many rows and columns it is stored) of the key PREFIX_subN."""
    name = next(key for key in tensors if re.fullmatch(rf"{prefix}_sub\d+", key))
    return tensors[name], int(name.rsplit("sub", 1)[1])


@pytest.fixture(scope="module")
def official():
    """(network as the vectors were made with it, their tiles, their tensors)."""
    config, tensors = golden_files.load(SPATIAL)
    _, weights = golden_files.load("vae/vae_tiny_weights.safetensors")
    vae = CausalVAE(dataclasses.replace(VAEConfig.from_dict(config), decoder_causal=False))
    vae.load_state_dict(golden_files.weights(weights))
    with safe_open(golden_files.GOLDEN / SPATIAL, framework="pt") as file:
        size, stride = map(int, re.findall(r"\d+", file.metadata()["tile"])[:2])
    return vae.requires_grad_(False), SpatialTiles(size, stride), tensors


@pytest.mark.golden
def test_official_tiled_decode(official):
    vae, tiles, tensors = official
    pixels = decode_tiled(vae, tensors["latents_norm"], tiles)
    expected, every = _subsampled(tensors, "pixels")
    assert_near(pixels[..., ::every, ::every], expected, ATOL, "pixels")
    expected, every = _subsampled(tensors, "pixels_last")
    assert_near(pixels[:, :, -1:, ::every, ::every], expected, ATOL, "last frame")
    whole = decode_tiled(vae, tensors["latents_norm"])
    assert (whole - pixels).abs().max() > 100 * ATOL


@pytest.mark.golden
def test_official_tiled_encode(official):
    vae, tiles, tensors = official
    expected = tensors["latents_norm_enc"]
    # The file may leave out the axis of one frame, or of a batch of one.
    frames = tensors["video_u8"].reshape(len(expected), -1, *tensors["video_u8"].shape[-3:])
    latents = encode_tiled(vae, ((frames.float() / 255 - 0.5) / 0.5).movedim(2, 1), tiles)
    assert_near(latents, expected, ATOL)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "dim"), [("blend_t", 2), ("blend_v", 3), ("blend_h", -1)])
def test_official_blends(name, dim):
    _, tensors = golden_files.load("vae/blend.safetensors")
    cases = [key for key in tensors if key.startswith(f"{name}.extent")]
    assert cases
    for case in cases:
        after = tensors[f"{name}.b"].clone()
        blend(tensors[f"{name}.a"], after, int(case.rsplit("extent", 1)[1]), dim)
        assert_near(after, tensors[case], 1e-6, case)


@pytest.fixture(scope="module")
def oracle(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    with warnings.catch_warnings():
        # Deprecations inside diffusers are not ours.
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="needs diffusers as the second implementation")
        if not hasattr(diffusers, "AutoencoderKLLTX2Video"):
            pytest.skip(f"diffusers {diffusers.__version__} has no AutoencoderKLLTX2Video (0.37 has)")
        save_vae(vae, folder)
        return diffusers.AutoencoderKLLTX2Video.from_pretrained(folder).eval()


# Tiles and frames in latent rows and columns: cut tiles, a tile shorter than the overlap, no overlap, one row of tiles.
GEOMETRIES = [(4, 3, 8, 9), (5, 2, 10, 4), (4, 4, 10, 6), (6, 4, 6, 14), (4, 2, 4, 8)]


@pytest.mark.parametrize(("size", "stride", "rows", "columns"), GEOMETRIES)
def test_diffusers_tiles_alike(vae, oracle, size, stride, rows, columns):
    video, latents = _video(5, rows, columns), _latents(3, rows, columns)
    tiles = SpatialTiles(size * SMALL.spatial_factor, stride * SMALL.spatial_factor)
    oracle.enable_tiling(
        tile_sample_min_height=tiles.size,
        tile_sample_min_width=tiles.size,
        tile_sample_stride_height=tiles.stride,
        tile_sample_stride_width=tiles.stride,
    )
    with torch.inference_mode():
        means = oracle.encode(video).latent_dist.mode()
        pixels = oracle.decode(vae.denormalize(latents)).sample
    assert_near(encode_tiled(vae, video, tiles), vae.normalize(means), ATOL, "latents")
    assert_near(decode_tiled(vae, latents, tiles), pixels, ATOL, "pixels")


@pytest.mark.parametrize("frames", [1, 5, 13, 17, 29])
def test_calls_in_time_equal_one_call(vae, frames):
    video = _video(frames, 3, 2)
    whole, _ = vae.encode(video)
    assert_near(encode_tiled(vae, video), whole, ATOL, "latents")
    latents = _latents((frames + 3) // 4, 3, 2)
    whole = vae.decode(latents)[0] if vae.decodes_causally else vae.decode_noncausal(latents)
    assert_near(decode_tiled(vae, latents), whole, 1e-4, "pixels")


def test_a_call_sees_one_tile_and_a_few_frames():
    vae, seen = _small_vae(causal=True), {"encoder": [], "decoder": []}
    for name, shapes in seen.items():
        hook = lambda _module, inputs, shapes=shapes: shapes.append(tuple(inputs[0].shape[2:]))
        getattr(vae, name).register_forward_pre_hook(hook)
    tiles = SpatialTiles(4 * 8, 2 * 8)
    assert encode_tiled(vae, _video(41, 6, 5, batch=1), tiles).shape[2:] == (11, 6, 5)
    assert decode_tiled(vae, _latents(11, 6, 5, batch=1), tiles).shape[2:] == (41, 48, 40)
    # No call ends inside a latent frame.
    assert seen["encoder"][0][0] == 13
    for limit, shapes in (((13, 32, 32), seen["encoder"]), ((3, 4, 4), seen["decoder"])):
        assert all(size <= most for shape in shapes for size, most in zip(shape, limit, strict=True)), shapes
        assert sum(shape[0] for shape in shapes) == 6 * {13: 41, 3: 11}[limit[0]]


def test_tiles_cover_every_row_once():
    for rows in range(2, 40):
        spans = SpatialTiles().spans(rows, 32)
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].stop == spans[-1].end == rows
        assert all(2 <= span.stop - span.start <= 17 and span.end <= span.stop for span in spans)


def test_the_release_has_six_tiles():
    tiles = SpatialTiles()
    assert [span[:2] for span in tiles.spans(22, 32)] == [(0, 16), (14, 22)]
    assert [span[:2] for span in tiles.spans(40, 32)] == [(0, 16), (14, 30), (28, 40)]


def test_a_thin_rest_goes_to_the_tile_before():
    """One latent row cannot be reflected."""
    vae, tiles = _small_vae(causal=False), SpatialTiles(4 * 8, 3 * 8)
    assert [span[:2] for span in tiles.spans(7, 8)] == [(0, 4), (3, 7)]
    latents = _latents(2, 7, 4)
    assert decode_tiled(vae, latents, tiles).isfinite().all()
    assert encode_tiled(vae, _video(1, 7, 4), tiles).shape[-2:] == (7, 4)


def test_a_frame_no_larger_than_a_tile_is_one_tile(vae):
    latents, seen = _latents(2, 4, 4), []
    tiled = decode_tiled(vae, latents, SpatialTiles(4 * 8, 8), on_tile=lambda *unit: seen.append(unit))
    assert torch.equal(tiled, decode_tiled(vae, latents))
    assert seen == [(0, 1)]


def test_tiles_are_counted_and_can_be_stopped(vae):
    tiles, seen = SpatialTiles(4 * 8, 3 * 8), []

    class Stop(Exception):
        pass

    def on_tile(number, total):
        seen.append((number, total))
        if number == 3:
            raise Stop

    for work, value in ((encode_tiled, _video(1, 5, 7, batch=1)), (decode_tiled, _latents(1, 5, 7, batch=1))):
        seen.clear()
        with pytest.raises(Stop):
            work(vae, value, tiles, on_tile=on_tile)
        assert seen == [(number, 4) for number in range(4)]


def test_bfloat16_stays_bfloat16():
    vae = random_vae(SMALL, dtype=torch.bfloat16)
    tiles = SpatialTiles(4 * 8, 3 * 8)
    assert encode_tiled(vae, _video(1, 5, 6), tiles).dtype == torch.bfloat16
    assert decode_tiled(vae, _latents(1, 5, 6), tiles).dtype == torch.bfloat16


def test_what_cannot_be_tiled():
    vae = _small_vae(causal=False)
    with pytest.raises(InputError, match="stride 600 leaves gaps"):
        SpatialTiles(512, 600)
    with pytest.raises(InputError, match="stride 0 leaves gaps or no tile"):
        SpatialTiles(512, 0)
    with pytest.raises(InputError, match="tiles of 36 every 24 pixels do not fit.*multiples of 8, 16 or more"):
        decode_tiled(vae, _latents(1, 6, 6), SpatialTiles(36, 24))
    with pytest.raises(InputError, match=r"video has shape.*F = 1 \+ 4k"):
        encode_tiled(vae, _video(4, 3, 3))
    with pytest.raises(InputError, match="multiples of 8"):
        encode_tiled(vae, _video(5, 3, 3)[..., :-1])
    with pytest.raises(InputError, match="latents have shape"):
        decode_tiled(vae, _latents(1, 3, 3)[0])
