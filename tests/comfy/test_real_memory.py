"""Memory in a real ComfyUI on the CPU: offloading gives the same frames, and nothing is left behind.

COMFY_DIR and COMFY_PYTHON name it.
"""

import os
import time
from dataclasses import replace

import clips
import lora_files
import numpy as np
import pytest
import torch
from comfy_graphs import read, workflow
from comfy_server import ComfyError, ComfyServer
from inside_comfy import results_of
from PIL import Image
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs
from sana_streaming.sana_core.weights.toy import CAPTION_CHANNELS, make_toy_bundle

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

# A pack that has every network loaded in part only, as far as SQUEEZE bytes go, as --lowvram and --novram do where there is a
# GPU; and a node that says what is held: bytes of tensors, networks that are loaded, threads.
PROBE = """
import gc, os, threading
import comfy.model_management as management, torch

if "SQUEEZE" in os.environ:
    load = management.LoadedModel.model_load

    def load_in_part(self, lowvram_model_memory=0, force_patch_weights=False):
        return load(self, float(os.environ["SQUEEZE"]), force_patch_weights)

    management.LoadedModel.model_load = load_in_part


class ProbeHeld:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"turn": ("INT", {"default": 0})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    def run(self, turn):
        gc.collect()
        storages = {}
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        loaded = [type(patcher.model).__name__ for patcher in management.loaded_models()]
        threads = [thread.name for thread in threading.enumerate()]
        return {"ui": {"bytes": [sum(storages.values())], "loaded": loaded, "threads": threads}}


NODE_CLASS_MAPPINGS = {"ProbeHeld": ProbeHeld}
"""

# Forward on the meta device, which has no weights: torch refuses to mix what was left behind with what was moved.
ON_META = """
from pack.nodes import comfy_host
from pack.sana_core.weights.dit import load_dit
from pack.sana_core.weights.lora import LoraChoice, lora_changes
from pack.sana_core.weights.vae import load_vae

CPU, META, KIND = torch.device("cpu"), torch.device("meta"), torch.bfloat16


@torch.inference_mode()
def velocity(network):
    config = network.config
    x, source = (torch.randn(1, size, 2, 3, 5, device=META) for size in (config.in_channels, config.source_channels))
    context = network.prompt_context(torch.randn(1, 7, config.caption_channels, device=META))
    return network(x, torch.tensor([893.0], device=META), source, context)[0]


@torch.inference_mode()
def round_trip(network):
    latents, _ = network.encode(torch.randn(1, 3, 9, 64, 64, device=META))
    return network.decode(latents)[0]


def patched(load):
    return comfy_host.patcher(load(), META, CPU)


def waiting(load, run):
    # For how much fits: how many weights wait outside, and where the result is.
    found = []
    for share in (0, 1 / 3, 2 / 3, 2):
        # What was on meta cannot come back.
        patcher = patched(load)
        patcher.partially_load(META, extra_memory=1 + share * patcher.model_size())
        held = [name for name, weight in patcher.model.state_dict().items() if weight.device == CPU]
        found.append([len(held), str(run(patcher.model).device)])
    return found


results = {}
for layout in ("fused", "split"):
    load = lambda: load_dit(Path(folder) / "toy", dtype=KIND, layout=layout, operations=comfy_host.operations(KIND))
    results[layout] = waiting(load, velocity)
    patcher, choice = patched(load), LoraChoice(Path(folder) / "toy_lora.safetensors", 0.7)
    changes, _ = lora_changes(patcher.model, choice, patcher.model.fingerprint)
    comfy_host.with_lora(patcher, changes).partially_load(META, extra_memory=1)
    results[layout + "+lora"] = [[0, str(velocity(patcher.model).device)]]
results["vae"] = waiting(
    lambda: load_vae(Path(folder) / "toy" / "vae", dtype=KIND, operations=comfy_host.operations(KIND)), round_trip
)
print("RESULTS " + json.dumps(results))
"""

OURS = ("video writer", "edit writer", "read ahead", "live ")
TOY = "toy (random weights)"


def server_with(folder, models, environment=None, **settings):
    """A server with the probe, a clip, a LoRA and a bidirectional model; one thread, which is faster for small networks."""
    server = ComfyServer(folder, environment={"OMP_NUM_THREADS": "1", **(environment or {})}, **settings)
    (folder / "custom_nodes" / "probe").mkdir()
    (folder / "custom_nodes" / "probe" / "__init__.py").write_text(PROBE)
    server.put_model(models / "toy_lora.safetensors", "loras")
    server.put_model(models / "bidirectional_toy.safetensors", "diffusion_models")
    server.put_input(clips.clip("carphone_pristine.mp4"), "clip.mp4")
    return server


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    toy = make_toy_bundle(folder / "toy")
    lora_files.write_lora(load_dit(toy, layout="split", dtype=torch.float32), folder / "toy_lora.safetensors")
    config = replace(toy_configs(CAPTION_CHANNELS)["dit"], variant="bidirectional")
    save_dit(random_dit(config), folder / "dit").rename(folder / "bidirectional_toy.safetensors")
    return folder


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, models):
    with server_with(tmp_path_factory.mktemp("comfy"), models) as server:
        yield server


def two_models():
    """The quick start, and beside it an edit of the same clip by another model."""
    graph = workflow("edit_a_video", n5__frames=33, n5__width=128, n5__height=96)
    graph["6"]["inputs"] |= {"width": 128, "height": 96, "crf": 0}
    for number in ("1", "2", "3", "4", "6", "7"):
        inputs = {
            key: [f"1{value[0]}", value[1]] if isinstance(value, list) and value[0] != "5" else value
            for key, value in graph[number]["inputs"].items()
        }
        graph[f"1{number}"] = {"class_type": graph[number]["class_type"], "inputs": inputs}
    for number in ("11", "12", "13"):
        graph[number]["inputs"]["file"] = TOY
    graph["17"]["inputs"]["filename_prefix"] = "video/toy"
    return graph


def stages_to_pictures():
    graph = workflow("stages", n6__max_frames=57)
    graph["10"] = {"class_type": "SanaStreamingDecodeImages", "inputs": {"vae": ["2", 0], "samples": ["7", 0]}}
    graph["11"] = {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "pictures"}}
    return graph


def eight_bits():
    graph = workflow("mixed_precision", n5__frames=33, n6__steps=2, n6__crf=0, n6__width=128, n6__height=96)
    del graph["8"], graph["9"], graph["11"], graph["12"], graph["10"]["inputs"]["plan"]
    return graph


GRAPHS = {
    "two models": two_models,
    "stages": stages_to_pictures,
    "short clip": lambda: workflow("short_clip"),
    "lora": lambda: workflow("lora"),
    "8 bits": eight_bits,
}


def results(server, name):
    """Every video and picture that a graph saves, by its prefix; pictures as one."""
    found = {}
    for file in sorted(server.output_files(server.run(GRAPHS[name]()))):
        if "output" in file.parts:
            frames = read(file) if file.suffix == ".mp4" else torch.tensor(np.asarray(Image.open(file)))[None]
            found.setdefault(file.name.rpartition("_0")[0], []).append(frames)
    return {prefix: torch.cat(parts) for prefix, parts in found.items()}


@pytest.fixture(scope="module")
def expected(comfy):
    return {name: results(comfy, name) for name in GRAPHS}


def test_what_the_graphs_give(expected):
    """That later tests compare something."""
    counts = {name: {prefix: len(frames) for prefix, frames in found.items()} for name, found in expected.items()}
    assert counts == {
        "two models": {"sana_streaming": 33, "toy": 33},
        "stages": {"stages": 57, "pictures": 57},
        "short clip": {"short": 30},
        "lora": {"lora": 33, "plain": 33, "again": 33},
        "8 bits": {"sana_streaming": 33},
    }
    nano, toy = expected["two models"].values()
    assert nano.shape == toy.shape == (33, 96, 128, 3)
    assert (nano.float() - toy.float()).abs().mean() > 5


@pytest.mark.parametrize(
    "options",
    [
        "--disable-dynamic-vram --disable-smart-memory",
        "--disable-async-offload --disable-pinned-memory --cache-none",
        "--async-offload 2 --reserve-vram 2 --cache-lru 3 --force-fp32",
    ],
)
def test_flags_that_a_cpu_knows(tmp_path, models, expected, options):
    with server_with(tmp_path, models, arguments=tuple(options.split())) as server:
        found = results(server, "two models")
        assert "Traceback" not in server.log()
    assert found.keys() == expected["two models"].keys()
    assert all(torch.equal(found[name], frames) for name, frames in expected["two models"].items())


@pytest.mark.parametrize("squeeze", [0.1, 1_000_000])
def test_networks_that_are_loaded_in_part(tmp_path, models, expected, squeeze):
    """0.1 is --novram."""
    with server_with(tmp_path, models, environment={"SQUEEZE": str(squeeze)}) as server:
        for name, frames in expected.items():
            found = results(server, name)
            assert found.keys() == frames.keys()
            for key, want in frames.items():
                # A LoRA is merged as its layer is used, not before.
                same = torch.equal(found[key], want)
                near = (found[key].float() - want.float()).abs().mean() < 0.1
                assert same or (name == "lora" and key != "plain" and near), (name, key)
        assert server.log().count("loaded partially") >= 8


def test_nothing_is_left_on_the_wrong_device(models):
    found = results_of(ON_META, models)
    assert {device for rows in found.values() for _, device in rows} == {"meta"}
    for name in ("fused", "split", "vae"):
        waiting = [count for count, _ in found[name]]
        assert waiting == sorted(waiting, reverse=True)
        assert waiting[0] > waiting[2] > waiting[3]


class Held:
    """What a server holds after unloading, which a busy one comes to when it can."""

    def __init__(self, server):
        self.server, self.turn = server, 0

    def __call__(self, at_most):
        for _ in range(10):
            self.server.free()
            time.sleep(2)
            self.turn += 1
            entry = self.server.run({"1": {"class_type": "ProbeHeld", "inputs": {"turn": self.turn}}})
            found = entry["outputs"]["1"]
            if found["bytes"][0] <= at_most:
                break
        assert found["loaded"] == []
        assert [name for name in found["threads"] if name.startswith(OURS)] == []
        return found["bytes"][0]


def stopped(server, graph, node, at):
    """Runs a graph and presses Stop when a node has made so many steps."""
    with server.listen() as events:
        prompt = server.queue(graph)
        while not events.of("progress", node) or events.of("progress", node)[-1]["value"] < at:
            time.sleep(0.01)
        server.interrupt()
        with pytest.raises(ComfyError, match="interrupted in SanaStreaming"):
            server.wait(prompt)
        assert at <= events.of("progress", node)[-1]["value"] < events.of("progress", node)[-1]["max"]


def test_stops_leave_nothing(comfy):
    """Two Stops in the middle of a chunk and a run: no more tensors after unloading than after a run alone."""
    held = Held(comfy)
    size = {"n6__width": 160, "n6__height": 128, "n6__max_frames": 57}
    comfy.run(workflow("edit_video", n6__seed=30, **size))
    comfy.run(workflow("stages", n7__seed=30, **size))
    before = held(1_000_000)
    assert before < 1_000_000
    # Of 60 steps a chunk: in the first chunk of one, in the second of the other.
    stopped(comfy, workflow("edit_video", n6__seed=31, n6__steps=60, **size), "6", 20)
    stopped(comfy, workflow("stages", n7__seed=31, n7__steps=60, **size), "7", 80)
    comfy.run(workflow("edit_video", n6__seed=32, **size))
    comfy.run(workflow("stages", n7__seed=32, **size))
    assert held(before + 100_000) <= before + 100_000
