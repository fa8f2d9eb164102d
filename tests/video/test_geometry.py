import golden_files
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.geometry import (
    fill_and_crop,
    floor_size,
    pixels_to_image,
    pixels_to_uint8,
    resize_and_crop,
)

SIZES = st.integers(1, 4096)


@pytest.mark.golden
def test_geometry_is_that_of_the_release() -> None:
    cases = golden_files.load_json("text/resize_crop.json")["geometry"]
    for case in cases:
        fit = fill_and_crop(case["src_h"], case["src_w"], case["dst_h"], case["dst_w"])
        assert (fit.scaled_height, fit.scaled_width, fit.top, fit.left) == (
            case["scaled_h"], case["scaled_w"], case["top"], case["left"],
        ), case  # fmt: skip


@given(SIZES, SIZES, SIZES, SIZES)
def test_the_crop_lies_inside_the_scaled_frame(height: int, width: int, target_height: int, target_width: int) -> None:
    fit = fill_and_crop(height, width, target_height, target_width)
    assert 0 <= fit.top <= fit.scaled_height - target_height
    assert 0 <= fit.left <= fit.scaled_width - target_width
    assert fit.scaled_height == target_height or fit.scaled_width == target_width


@pytest.mark.golden
def test_values_are_those_of_the_release() -> None:
    for case in golden_files.load_json("text/resize_crop.json")["values"]:
        t, i, j, c = torch.meshgrid(
            *(torch.arange(case[key]) for key in ("frames", "src_h", "src_w")), torch.arange(3), indexing="ij"
        )
        frames = ((31 * t + 17 * c + 7 * i * i + 13 * case["s"] * j + i * j) % 256).to(torch.uint8)
        expected = torch.tensor(case["expected_tchw"]).view(case["frames"], 3, case["dst_h"], case["dst_w"])
        torch.testing.assert_close(
            resize_and_crop(frames, case["dst_h"], case["dst_w"]), expected, rtol=0, atol=2e-6
        )  # the file holds six decimals


@pytest.mark.golden
def test_pixels_are_those_of_the_release_from_video_and_from_image() -> None:
    _, tensors = golden_files.load("vae/preprocess.safetensors")
    cases = sorted(key.removesuffix(".u8") for key in tensors if key.startswith("case_") and key.endswith(".u8"))
    assert cases
    for case in cases:
        frames = tensors[f"{case}.u8"].permute(0, 2, 3, 1)
        height, width = tensors[f"{case}.target_hw"].tolist()
        pixels = resize_and_crop(frames, height, width)
        torch.testing.assert_close(pixels, tensors[f"{case}.out"], rtol=0, atol=1e-6)
        assert torch.equal(resize_and_crop(frames.float() / 255, height, width), pixels)


@pytest.mark.golden
def test_uint8_is_truncated_like_the_release() -> None:
    _, tensors = golden_files.load("vae/preprocess.safetensors")
    listed = golden_files.load_json("text/output_quantisation.json")
    for values, expected in (
        (tensors["post.pixels"], tensors["post.u8"]),
        (torch.tensor(listed["values"]), torch.tensor(listed["uint8"], dtype=torch.uint8)),
    ):
        out = pixels_to_uint8(values.flatten().view(1, 1, 1, -1).expand(2, 3, 1, -1))
        assert torch.equal(out, expected.flatten().view(1, 1, -1, 1).expand(2, 1, -1, 3))


@pytest.mark.golden
def test_sizes_are_floored_like_the_release() -> None:
    for case in golden_files.load_json("text/resize_crop.json")["size_flooring"]:
        assert floor_size(case["requested_h"], 32) == case["used_h"]
        assert floor_size(case["requested_w"], 32) == case["used_w"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(37, 53), (32, 48)], ids=["scaled", "as it is"])
def test_any_split_gives_the_same_bits(size: tuple[int, int], dtype: torch.dtype) -> None:
    frames = torch.randint(0, 256, (7, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    if dtype.is_floating_point:
        frames = (frames / 255).to(dtype)
    whole = resize_and_crop(frames, 32, 48)
    for splits in ([1] * 7, [3, 4], [5, 2]):
        parts = [resize_and_crop(part, 32, 48) for part in frames.split(splits)]
        assert torch.equal(torch.cat(parts), whole)
    # The same frames as a view with other strides.
    assert torch.equal(resize_and_crop(frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), 32, 48), whole)


def test_frames_of_the_target_size_come_back_exactly() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3)
    pixels = resize_and_crop(frames, 16, 16)
    assert torch.equal(pixels, (frames.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(pixels_to_image(pixels), frames / 255, rtol=0, atol=1e-7)


def test_image_is_clamped_and_contiguous() -> None:
    image = pixels_to_image(torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5]).view(1, 1, 1, 5).expand(2, 3, 4, 5).bfloat16())
    assert image.dtype == torch.float32 and image.shape == (2, 4, 5, 3) and image.is_contiguous()
    assert image[1, 3, :, 2].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"0x4"):
        fill_and_crop(4, 0, 32, 32)
    with pytest.raises(InputError, match=r"31 pixels.*at least 32"):
        floor_size(31, 32)
    with pytest.raises(InputError, match=r"\(2, 3, 8, 8\)"):
        resize_and_crop(torch.zeros(2, 3, 8, 8), 8, 8)
    with pytest.raises(InputError, match="int64"):
        resize_and_crop(torch.zeros(2, 8, 8, 3, dtype=torch.int64), 8, 8)
