"""The pack in a real ComfyUI on the CPU. COMFY_DIR names a ComfyUI folder, COMFY_PYTHON its interpreter."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import clips
import pytest
import torch
from comfy_graphs import as_many_threads_as_the_server, read, saved, workflow
from comfy_server import ComfyError, ComfyServer, cached_nodes
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.short_clip import ShortClip, ShortClipOptions
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.video.writer import VideoWriter
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS, make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

NODE_IDS = set(json.loads((Path(__file__).parents[1] / "nodes" / "schemas.json").read_text()))
# Packages that a user has for other packs or not at all: loading them is slow, or fails.
HEAVY = {"transformers", "diffusers", "triton", "av", "tokenizers", "huggingface_hub", "matplotlib", "torchvision"}

# A pack without nodes that writes down what it finds when it is loaded.
PROBE = """
import json, logging, sys
import torch
torch_state = {{
    "default dtype": str(torch.get_default_dtype()),
    "gradients": torch.is_grad_enabled(),
    "threads": torch.get_num_threads(),
    "deterministic": torch.are_deterministic_algorithms_enabled(),
}}
seen = {{"modules": sorted(sys.modules), "path": sys.path, "torch": torch_state}}
with open({file!r}, "w") as file:
    json.dump(seen, file)
sys.stdout.flush()
logging.info({marker!r})
NODE_CLASS_MAPPINGS = {{}}
"""


class Probes:
    """Two packs around ours. ComfyUI reads a folder of packs in any order, but one folder after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("before", "after"):
            pack = folder / name / "probe"
            pack.mkdir(parents=True)
            source = PROBE.format(file=str(folder / f"{name}.json"), marker=self.marker(name))
            (pack / "__init__.py").write_text(source)
        paths = {
            "before": {"is_default": True, "custom_nodes": str(folder / "before")},
            "after": {"custom_nodes": str(folder / "after")},
        }
        # JSON is YAML.
        self.paths_file = folder / "extra_model_paths.yaml"
        self.paths_file.write_text(json.dumps(paths))

    @staticmethod
    def marker(name: str) -> str:
        return f"=== {name} the pack ==="

    def seen(self, name: str) -> dict[str, object]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def between(self, log: str) -> list[str]:
        """What ComfyUI wrote while our pack was loaded."""
        text = log.split(self.marker("before"), 1)[1].split(self.marker("after"), 1)[0]
        return [line for line in text.splitlines() if line.strip() not in ("", "[INFO]")]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    return Probes(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, probes):
    arguments = ("--extra-model-paths-config", str(probes.paths_file))
    with ComfyServer(tmp_path_factory.mktemp("comfy"), arguments=arguments) as server:
        yield server


def test_the_pack_loads_without_a_word(comfy, probes):
    said = [line for line in probes.between(comfy.log()) if "Automatically register web folder" not in line]
    assert said == []
    assert "IMPORT FAILED" not in comfy.log()


def test_every_node_is_there(comfy):
    info = comfy.object_info()
    assert {name for name in info if name.startswith("SanaStreaming")} == NODE_IDS
    for name in NODE_IDS:
        assert info[name]["category"].split("/")[0] == "SANA-Streaming"
        assert info[name]["python_module"] == "custom_nodes.sana-streaming"


def test_loading_brings_no_package_of_others(comfy, probes):
    before, after = probes.seen("before"), probes.seen("after")
    brought = set(after["modules"]) - set(before["modules"])
    assert any("sana-streaming" in name for name in brought), "the probes do not stand around the pack"
    assert {name.split(".")[0] for name in brought} & HEAVY == set()
    assert after["path"] == before["path"]
    assert after["torch"] == before["torch"]


@pytest.fixture(scope="module")
def clip(comfy):
    return comfy.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")


@pytest.fixture(scope="module")
def by_cli(tmp_path_factory):
    """The clip edited by the command line with the workflows' settings."""
    folder = tmp_path_factory.mktemp("cli")
    toy = make_toy_bundle(folder / "toy")
    command = ["edit", str(clips.clip("carphone_pristine.mp4")), str(folder / "out.mkv"), "--model", str(toy)]
    command += ["--height", "64", "--width", "96", "--prompt", "turn it into a watercolour", "--crf", "0"]
    with as_many_threads_as_the_server():
        assert main(command) == 0
    return read(folder / "out.mkv")


@pytest.mark.parametrize("name", ["edit_video", "stages"])
def test_frames_equal_the_command_line(comfy, clip, by_cli, name):
    entry = comfy.run(workflow(name))
    assert torch.equal(read(saved(comfy, entry)), by_cli)


def test_another_seed_uses_the_loaders_again(comfy, clip):
    comfy.run(workflow("edit_video", n6__seed=10))
    entry = comfy.run(workflow("edit_video", n6__seed=11))
    assert {"1", "2", "3", "4", "5"} <= cached_nodes(entry)
    assert "6" not in cached_nodes(entry)


def test_progress_and_a_preview_of_each_chunk(comfy, clip):
    with comfy.listen() as events:
        entry = comfy.run(workflow("edit_video", n6__seed=12, n6__max_frames=81))
        events.wait_for("execution_success")
    assert probe(saved(comfy, entry)).num_frames == 81
    assert [preview.node for preview in events.previews] == ["6"] * 3
    assert all(preview.image.startswith(b"\xff\xd8") for preview in events.previews)
    counts = [message["value"] for message in events.of("progress", "6")]
    assert counts == sorted(counts)
    assert events.of("progress", "6")[-1]["max"] == 20


def test_stop_ends_within_a_step_and_the_partial_file_plays(comfy, clip):
    with comfy.listen() as events:
        prompt = comfy.queue(workflow("edit_video", n6__seed=13, n6__steps=60, n6__width=256, n6__height=256))
        while not events.previews:
            time.sleep(0.01)
        before = events.of("progress", "6")[-1]["value"]
        comfy.interrupt()
        with pytest.raises(ComfyError, match="interrupt"):
            comfy.wait(prompt)
        assert events.of("progress", "6")[-1]["value"] - before <= 15, "Stop took more than a moment's steps"
    (path,) = re.findall(r"finished are in (\S+\.mp4)", comfy.log())
    assert probe(path).num_frames == 25
    entry = comfy.run(workflow("edit_video", n6__seed=14))
    assert probe(saved(comfy, entry)).num_frames == 120


def test_two_queue_items_over_the_state_sockets_equal_one(comfy, clip, by_cli):
    """The second item holds the first one's nodes, whose states come from the cache."""
    part = {"n6__max_frames": 57, "n6__total_frames": 120, "n9__filename_prefix": "part1"}
    first = workflow("stages", **part)
    one = read(saved(comfy, comfy.run(first)))
    second = workflow("stages", n6__start_frame=57, n6__total_frames=120, n9__filename_prefix="part2")
    both = dict(first)
    for node in ("6", "7", "8", "9"):
        inputs = {
            key: [f"1{value[0]}", value[1]] if isinstance(value, list) and value[0] in "678" else value
            for key, value in second[node]["inputs"].items()
        }
        both[f"1{node}"] = {"class_type": second[node]["class_type"], "inputs": inputs}
    # One state goes through all three nodes, and from the end of one part to the beginning of the next.
    both["16"]["inputs"]["state"] = ["8", 1]
    entry = comfy.run(both)
    assert {"6", "7", "8"} <= cached_nodes(entry)
    (path,) = (file for file in comfy.output_files(entry) if file.name.startswith("part2"))
    assert torch.equal(torch.cat([one, read(path)]), by_cli)


def short_clip_by_library(folder, weights):
    """The clip edited by the library with the settings of short_clip.json."""
    toy, size = make_toy_bundle(folder / "toy"), {"height": 64, "width": 544}
    with VideoReader(clips.clip("carphone_pristine.mp4"), max_frames=30) as reader:
        frames, rate = torch.stack(list(reader)), reader.frame_rate
    run = ShortClip(
        load_dit(weights, dtype=torch.float32),
        load_vae(toy / "vae", dtype=torch.float32),
        GemmaTextEncoder(toy / "text_encoder"),
        ShortClipOptions(steps=4),
        total_frames=30,
        prompt="turn it into a watercolour",
        **size,
    )
    with as_many_threads_as_the_server():
        run.push(frames)
        with VideoWriter(folder / "short.mkv", **size, frame_rate=rate, crf=0) as writer:
            for piece in run.flush():
                writer.write(piece.frames)
    return read(folder / "short.mkv")


def test_a_short_clip_equals_the_library(comfy, clip, tmp_path):
    config = replace(toy_configs(CAPTION_CHANNELS)["dit"], variant="bidirectional")
    weights = save_dit(random_dit(config), tmp_path / "dit")
    comfy.put_model(weights, "diffusion_models", "bidirectional_toy.safetensors")
    with comfy.listen() as events:
        entry = comfy.run(workflow("short_clip"))
        events.wait_for("execution_success")
    assert torch.equal(read(saved(comfy, entry)), short_clip_by_library(tmp_path, weights))
    assert events.of("progress", "7")[-1]["max"] == 4
    assert ("1", "bidirectional model: for the Short Sampler") in events.texts
    with pytest.raises(ComfyError, match="the model is the bidirectional one, which sees a clip whole"):
        comfy.run(workflow("edit_video", n1__file="bidirectional_toy.safetensors"))
    with pytest.raises(ComfyError, match="the model is the streaming one, which edits chunk by chunk"):
        comfy.run(workflow("short_clip", n1__file="toy (random weights)"))


def test_stop_in_a_short_clip_within_a_step(comfy, clip, tmp_path):
    config = replace(toy_configs(CAPTION_CHANNELS)["dit"], variant="bidirectional")
    comfy.put_model(save_dit(random_dit(config), tmp_path / "dit"), "diffusion_models", "bidirectional_toy.safetensors")
    with comfy.listen() as events:
        prompt = comfy.queue(workflow("short_clip", n7__steps=900, n7__seed=5))
        while not events.of("progress", "7"):
            time.sleep(0.01)
        before = events.of("progress", "7")[-1]["value"]
        comfy.interrupt()
        with pytest.raises(ComfyError, match="interrupted in SanaStreamingShortSampler"):
            comfy.wait(prompt)
        assert events.of("progress", "7")[-1]["value"] - before <= 15, "Stop took more than a moment's steps"


def test_a_prompt_schedule_with_nano(comfy):
    """The scene turns from grey to sunset at 2 seconds: frame 49 is the first of a chunk from there on."""
    frames = read(saved(comfy, comfy.run(workflow("prompt_schedule")))).float()
    assert len(frames) == 97
    red, _, blue = frames.mean((1, 2)).unbind(-1)
    warmth = red - blue
    assert warmth[:49].abs().max() < 6
    assert warmth[52:].min() > 20
    with pytest.raises(ComfyError, match="'soon' is not a time; use seconds"):
        comfy.queue(workflow("prompt_schedule", n6__at="soon"))
    with pytest.raises(ComfyError, match="begins at frame 1440, after the last chunk of the clip has begun"):
        comfy.run(workflow("prompt_schedule", n6__at="01:00"))


def test_source_and_edit_side_by_side_with_chunk_tile(comfy, clip):
    graph = workflow("edit_video", n2__decoder="chunk_tile", n6__compare="side-by-side", n6__max_frames=57)
    with comfy.listen() as events:
        entry = comfy.run(graph)
        events.wait_for("execution_success")
    info = probe(saved(comfy, entry))
    assert (info.width, info.height, info.num_frames) == (192, 64, 57)
    late = "decoder chunk_tile: frames come 3 latent frames (24 frames) late"
    assert ("2", late) in events.texts
    assert [text for number, text in events.texts if number == "6"][-1].startswith("57 frames in ")


def test_free_returns_the_memory(comfy, clip):
    large = {"n6__width": 512, "n6__height": 512, "n6__max_frames": 57}
    # The first run brings in libraries and fills the allocator's own reserves.
    comfy.run(workflow("edit_video", n6__seed=20, **large))
    comfy.free()
    time.sleep(2)
    before = comfy.memory()
    comfy.reset_peak_memory()
    comfy.run(workflow("edit_video", n6__seed=21, **large))
    used = comfy.peak_memory() - before
    comfy.free()
    time.sleep(2)
    left = comfy.memory() - before
    assert used > 100_000_000
    assert left < 0.1 * used
    assert cached_nodes(comfy.run(workflow("edit_video", n6__seed=21))) == set()


def test_wrong_wiring_is_said_before_the_run(comfy, clip):
    with pytest.raises(ComfyError, match="gone.pth.*models/diffusion_models"):
        comfy.queue(workflow("edit_video", n1__file="gone.pth"))
    with pytest.raises(ComfyError, match="(?s)received_type|mismatch"):
        comfy.queue(workflow("edit_video", n6__vae=["1", 0]))
    with pytest.raises(ComfyError, match="the prompt is empty"):
        comfy.run(workflow("edit_video", n4__prompt=" "))
    with pytest.raises(ComfyError, match="start_frame 500 is not in the 120 frames"):
        comfy.run(workflow("edit_video", n6__start_frame=500))


def test_the_template_runs_on_a_fresh_install(comfy):
    entry = comfy.run(workflow("edit_a_video"))
    (path,) = (file for file in comfy.output_files(entry) if "sana_streaming" in file.name)
    assert probe(path).num_frames == 97
