"""What a user is told of input that will not do, or not as one would think."""

from fractions import Fraction

import node_calls as nodes
import pytest
import torch
from safetensors.torch import save_file
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.reader import probe


def sound(seconds, rate=8000):
    return {"waveform": torch.zeros(1, 2, int(seconds * rate)), "sample_rate": rate}


def test_an_empty_prompt_before_the_run():
    node = nodes.node("Prompt")
    assert "the prompt is empty; say what should change" in node.validate_inputs("  \n")
    # Over a link, or left out, which ComfyUI says itself.
    assert node.validate_inputs(None) is node.validate_inputs() is True
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


def test_sound_at_another_rate():
    from comfy_api import latest

    vae = nodes.vae()
    clip = latest.VideoFromComponents(latest.VideoComponents(torch.rand(17, 64, 96, 3), Fraction(8)))
    latent, _ = nodes.encode(vae, clip)
    video = nodes.decode_video(vae, latent, fps=16.0, audio=sound(17 / 8))[0]
    assert not probe(video.get_stream_source()).has_audio
    assert nodes.texts()[-1].endswith("the sound is left out: fps 16 is not the source's 8")
    nodes.decode_video(vae, latent, audio=sound(17 / 8))
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
