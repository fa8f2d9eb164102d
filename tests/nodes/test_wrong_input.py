"""What a user is told of input that will not do, or not as one would think."""

import node_calls as nodes
import pytest
import torch
from safetensors.torch import save_file
from sana_streaming.sana_core.errors import InputError


def sound(seconds, rate=8000):
    return {"waveform": torch.zeros(1, 2, int(seconds * rate)), "sample_rate": rate}


@pytest.mark.parametrize("name", ["EncodeVideo", "EditVideo"])
def test_sizes_before_the_run(name):
    node = nodes.node(name)
    for size, message in (
        ((100, 64), "width 100 is not a multiple of 32; use width 96 instead"),
        ((96, 70), "height 70 is not a multiple of 32; use height 64 instead"),
        ((0, 64), "width 0 is too small; the smallest is 64, so use width 64 instead"),
        ((None, 33), "height 33 is too small; the smallest is 64, so use height 64 instead"),
        ((96, 16416), "height 16416 is too large; use height 16384 at most"),
        # Over a link, not known before the run.
        ((None, None), True),
        ((96, None), True),
        ((16384, 64), True),
    ):
        assert node.validate_inputs(width=size[0], height=size[1]) == message


def test_an_empty_prompt_before_the_run():
    node = nodes.node("Prompt")
    assert "the prompt is empty; say what should change" in node.validate_inputs("  \n")
    assert node.validate_inputs(None) is True
    assert node.validate_inputs("make it snow") is True


def test_loras_before_the_run(host):
    loras = nodes.models_folder("loras")
    layer = "diffusion_model.blocks.0.attn.q"
    for name, tensors, message in (
        ("sd", {"lora_unet_down.lora_down.weight": (4, 9)}, "is not a LoRA of this model.*made for this model"),
        ("half", {f"{layer}.lora_A.weight": (4, 9)}, "has blocks.0.attn.q without .lora_up.weight"),
        (
            "ranks",
            {f"{layer}.lora_A.weight": (4, 9), f"{layer}.lora_B.weight": (9, 2)},
            r"lora_up.weight \(9, 2\) and lora_down.weight \(4, 9\), which do not belong together",
        ),
    ):
        file = loras / f"{name}.safetensors"
        save_file({key: torch.zeros(size) for key, size in tensors.items()}, file)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(nodes.node("LoadLora").validate_inputs(file.name))
    save_file(
        {f"{layer}.lora_A.weight": torch.zeros(4, 9), f"{layer}.lora_B.weight": torch.zeros(9, 4)},
        loras / "ok.safetensors",
    )
    assert nodes.node("LoadLora").validate_inputs("ok.safetensors") is True


def test_pictures_with_and_without_too_many_channels(caplog):
    from sana_streaming.nodes.frames import open_clip

    pictures = torch.rand(3, 64, 96, 4)
    with open_clip(pictures, 0, 0) as clip:
        (block,) = clip.frames.blocks(8)
    assert block.equal(pictures[..., :3])
    assert "the pictures are RGBA: what is transparent is left out" in caplog.text
    for wrong in (pictures[..., :1], pictures[0]):
        with (
            pytest.raises(InputError, match=r"are no RGB pictures, \[frames, height, width, 3\]"),
            open_clip(wrong, 0, 0),
        ):
            pass


def test_sound_that_goes_on_after_the_pictures(caplog):
    from sana_streaming.nodes.frames import spare_sound

    assert spare_sound(None, 2) == spare_sound(sound(2.4), 2) == spare_sound(sound(1), 2) == ""
    vae = nodes.vae()
    latent, _ = nodes.encode(vae, torch.rand(17, 64, 96, 3))
    nodes.decode_video(vae, latent, audio=sound(3))
    said = "the sound is 3.0 s long and the pictures end at 1.1 s: the rest of it is left out"
    assert nodes.texts()[-1].endswith(said)
    # More of the stream follows, and with it of the sound.
    latent, _ = nodes.encode(vae, torch.rand(33, 64, 96, 3), total_frames=80)
    nodes.decode_video(vae, latent, audio=sound(5))
    assert "the sound" not in nodes.texts()[-1]


def test_masks_of_another_shape():
    from sana_streaming.nodes.keep_mask import _report

    assert _report(9, torch.ones(1, 64, 96), (64, 96)) == _report(9, torch.ones(32, 48), (64, 96)) == "9 frames, 1 mask"
    # Rounded, not another shape.
    assert _report(9, torch.ones(1, 101, 57), (1280, 720)) == "9 frames, 1 mask"
    assert _report(9, torch.ones(9, 8, 12), (64, 96)) == "9 frames, 9 masks"
    assert _report(9, torch.ones(4, 8, 12), (64, 96)).endswith("from frame 4 on the last mask is used")
    text = _report(9, torch.ones(1, 96, 64), (64, 96))
    assert "the mask is 64x96 and the source 96x64, which is another shape" in text
