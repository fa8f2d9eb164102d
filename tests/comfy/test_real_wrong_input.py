"""What a user is told of wrong input in a real ComfyUI, before the run where the input allows it.

COMFY_DIR and COMFY_PYTHON name it.
"""

import os
from dataclasses import replace

import clips
import lora_files
import pytest
import torch
from comfy_graphs import read, saved, workflow
from comfy_server import ComfyError, ComfyServer
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.video.reader import probe
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS, make_toy_bundle

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]


def write_loras(folder):
    """For the toy; of a wider model; of Stable Diffusion and Wan; with two ranks; and a web page."""
    toy = load_dit(make_toy_bundle(folder / "toy"), layout="split", dtype=torch.float32)
    tensors = load_file(lora_files.write_lora(toy, folder / "toy_lora.safetensors"))
    small = toy_configs(CAPTION_CHANNELS)["dit"]
    wide = random_dit(replace(small, hidden_size=2 * small.hidden_size, num_heads=2 * small.num_heads), layout="split")
    lora_files.write_lora(wide, folder / "wide_lora.safetensors")
    down = next(name for name in tensors if name.endswith(".lora_down.weight"))
    save_file(tensors | {down: torch.cat([tensors[down]] * 2)}, folder / "rank_lora.safetensors")
    for name, layer, ends in (
        ("sd", "lora_unet_down_blocks_0_attentions_0_proj_in", ("lora_down", "lora_up")),
        ("wan", "diffusion_model.blocks.0.self_attn.q", ("lora_A", "lora_B")),
    ):
        shapes = zip(ends, ((4, 320), (320, 4)), strict=True)
        save_file(
            {f"{layer}.{end}.weight": torch.zeros(shape) for end, shape in shapes}, folder / f"{name}_lora.safetensors"
        )
    (folder / "page_lora.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    return sorted(folder.glob("*_lora.safetensors"))


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    server = ComfyServer(tmp_path_factory.mktemp("comfy"))
    for file in write_loras(tmp_path_factory.mktemp("models")):
        server.put_model(file, "loras")
    with server:
        server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
        yield server


def with_pictures(name="edit_video", *, width=96, height=64, count=20, alpha=False, sound=None, **changes):
    """A graph whose video is made of grey pictures."""
    graph = workflow(name, **changes)
    graph["20"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": width, "height": height, "batch_size": count, "color": 0x808080},
    }
    pictures = ["20", 0]
    if alpha:
        graph["21"] = {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": width, "height": height}}
        graph["22"] = {"class_type": "JoinImageWithAlpha", "inputs": {"image": pictures, "alpha": ["21", 0]}}
        pictures = ["22", 0]
    if sound is not None:
        graph["23"] = {"class_type": "EmptyAudio", "inputs": {"duration": sound, "sample_rate": 44100, "channels": 2}}
        graph["24"] = {"class_type": "CreateVideo", "inputs": {"images": pictures, "audio": ["23", 0], "fps": 10.0}}
        pictures = ["24", 0]
    graph["6"]["inputs"]["video"] = pictures
    return graph


def told(comfy, graph):
    """The video, what was written on nodes, and what the log says more."""
    before = len(comfy.log())
    with comfy.listen() as events:
        entry = comfy.run(graph)
        events.wait_for("execution_success")
    return saved(comfy, entry), " ".join(text for _, text in events.texts), comfy.log()[before:]


def test_sound_that_is_longer_than_the_video(comfy):
    """It ends with the pictures, as a player would end it, and that is said."""
    video, _, log = told(comfy, with_pictures(sound=30.0))
    assert (probe(video).num_frames, probe(video).has_audio) == (20, True)
    assert probe(video).duration < 2.2
    assert "the sound is 30.0 s long and the pictures end at 2.0 s: the rest of it is left out" in log
    graph = with_pictures("stages", sound=30.0)
    graph["8"]["inputs"]["audio"] = ["23", 0]
    video, texts, _ = told(comfy, graph)
    assert probe(video).duration < 2.2
    assert "the sound is 30.0 s long and the pictures end at 2.0 s" in texts
    assert "the sound is" not in told(comfy, with_pictures(sound=2.2))[2]


def test_pictures_with_transparency(comfy):
    video, _, log = told(comfy, with_pictures(alpha=True))
    assert "the pictures are RGBA: what is transparent is left out" in log
    assert torch.equal(read(video), read(told(comfy, with_pictures(n6__preview="side-by-side"))[0]))


def test_sources_of_odd_sizes_are_taken(comfy):
    for width, height in ((97, 33), (1, 1)):
        info = probe(told(comfy, with_pictures(width=width, height=height))[0])
        assert (info.width, info.height) == (96, 64)


@pytest.mark.parametrize("name", ["edit_video", "stages"])
def test_sizes_that_cannot_be_edited(comfy, name):
    for width, height, message in (
        (100, 64, "width 100 is not a multiple of 32; use width 96 instead"),
        (96, 70, "height 70 is not a multiple of 32; use height 64 instead"),
    ):
        with pytest.raises(ComfyError, match=message):
            comfy.run(workflow(name, n6__width=width, n6__height=height))
    # Before the run, by ComfyUI itself.
    for width, height, message in ((96, 0, "(?s)smaller than min.*height"), (16416, 64, "(?s)bigger than max.*width")):
        with pytest.raises(ComfyError, match=message):
            comfy.queue(workflow(name, n6__width=width, n6__height=height))


def test_what_is_left_out_is_said(comfy):
    graph = workflow("edit_video")
    for values in graph.values():
        if values["class_type"] == "SanaStreamingPrompt":
            del values["inputs"]["prompt"]
    with pytest.raises(ComfyError, match="Required input is missing: prompt"):
        comfy.queue(graph)


def test_masks_of_another_size(comfy):
    """Any size will do; another shape is said."""
    for width, height, expected in ((176, 144, False), (22, 18, False), (50, 500, True)):
        graph = workflow("keep_mask", n6__max_frames=33)
        graph["30"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": width, "height": height}}
        graph["10"]["inputs"]["mask"] = ["30", 0]
        _, texts, _ = told(comfy, graph)
        assert "33 frames, 1 mask" in texts
        assert (f"the mask is {width}x{height} and the source 176x144, which is another shape" in texts) == expected


def test_a_mask_beside_another_part_of_the_source(comfy):
    with pytest.raises(ComfyError, match="the source has 100 frames from start_frame 20 on, the edit has 120"):
        comfy.run(workflow("keep_mask", n6__start_frame=0, n6__max_frames=0))


def only_with(name):
    """The edit with the LoRA alone."""
    graph = workflow("lora", n6__file=name)
    for number in ("8", "9", "11", "12"):
        del graph[number]
    return graph


def test_loras_that_cannot_be_any_of_this_kind(comfy):
    """Before the run: these need no model to tell."""
    for name, message in (
        ("sd", "is not a LoRA of this model: it has lora_unet_down.*use a LoRA that was made for this model"),
        ("rank", r"by lora_up.weight \(224, 2, 1\) and lora_down.weight \(4, 224, 1\), which do not belong together"),
        ("page", "is a web page; download the file itself"),
    ):
        with pytest.raises(ComfyError, match=message):
            comfy.queue(only_with(f"{name}_lora.safetensors"))


def test_loras_of_another_model(comfy):
    for name, message in (
        ("wide", r"which do not fit the model's \(224, 224\); use a LoRA that was made for this model"),
        ("wan", "blocks.0.self_attn.q by .*, which the model does not have; use a LoRA that was made for this model"),
    ):
        with pytest.raises(ComfyError, match=message):
            comfy.run(only_with(f"{name}_lora.safetensors"))


@pytest.mark.parametrize(
    ("node", "entry", "folder"),
    [("1", "streaming-2b", "diffusion_models"), ("2", "causal-vae", "vae"), ("3", "text-encoder", "text_encoders")],
)
def test_downloads_while_offline(comfy, node, entry, folder):
    """Before the run."""
    message = f"{entry} is not on this machine, and HF_HUB_OFFLINE is set.*put the files of .* into models/{folder}"
    with pytest.raises(ComfyError, match=message):
        comfy.queue(workflow("edit_video", **{f"n{node}__file": f"download: {entry}"}))
    with pytest.raises(
        ComfyError, match="'download: more' is nothing to download; choose one of download: streaming-2b"
    ):
        comfy.queue(workflow("edit_video", **{f"n{node}__file": "download: more"}))


def test_a_download_where_the_hub_does_not_answer(tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    with ComfyServer(tmp_path / "comfy", environment=environment) as server:
        server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
        with pytest.raises(ComfyError, match="the connection to http://127.0.0.1:9 failed or broke off.*run it again"):
            server.run(workflow("edit_video", n2__file="download: causal-vae"), timeout=120)
