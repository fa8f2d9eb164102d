"""Quantized copies of models in a real ComfyUI: bits, LoRAs, memory, and the example workflow with its profile."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from comfy_server import ComfyError, ComfyServer, cached_nodes
from sana_streaming.sana_core.precision.apply import apply_plan
from sana_streaming.sana_core.precision.calibration import calibrated
from sana_streaming.sana_core.precision.plan import preset, read_plan
from sana_streaming.sana_core.training.config import LoraSettings
from sana_streaming.sana_core.training.lora import Lora
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.weights.convert import convert
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.lora import apply_lora
from sana_streaming.sana_core.weights.nano import nano_folder
from small_dit import CONFIG, velocity, write

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "tests" / "api_workflows" / "mixed_precision.json"
PLANS = ("fp8", "int8", "paper-mpq")

SCRIPT = """
import asyncio, importlib.util, json, sys
from pathlib import Path

comfy_dir, root, folder = sys.argv[1:]
folder = Path(folder)
sys.path.insert(0, comfy_dir)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management, folder_paths, torch
before = set(sys.modules)
folder_paths.folder_names_and_paths["diffusion_models"][0].append(str(folder))
folder_paths.folder_names_and_paths["loras"][0].append(str(folder))
spec = importlib.util.spec_from_file_location("pack", Path(root) / "__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
asyncio.run(extension.on_load())
nodes = {node.__name__.removeprefix("SanaStreaming"): node for node in asyncio.run(extension.get_node_list())}
from pack.nodes import comfy_host


def call(name, *args):
    with torch.inference_mode():
        return nodes[name].execute(*args).args


@torch.inference_mode()
def velocity(model, load=True):
    if load:
        comfy_host.load([model.patcher], 0)
    x, source, embeds = (torch.load(folder / "inputs.pt")[name] for name in ("x", "source", "embeds"))
    network = model.network
    return network(x, torch.tensor([893] * len(x)), source, network.prompt_context(embeds))[0]


def same(model, name):
    return bool(velocity(model).equal(torch.load(folder / f"{name}.pt")))


def held(model):
    return {value.data_ptr() for value in model.network.state_dict().values()}


results = {}
(base,) = call("LoadModel", "original.safetensors", "bfloat16", "auto")
(changed,) = call("LoadLora", base, "lora.safetensors", 0.5)
before = velocity(base)
for name in ("fp8", "int8", "paper-mpq"):
    small, report = call("Precision", base, name, False)
    saved = call("LoadModel", f"{name}.safetensors", "bfloat16", "auto")[0]
    lora = call("LoadLora", small, "lora.safetensors", 0.5)[0]
    into = call("Precision", changed, name, False)[0]
    results[name] = {
        "node": same(small, name),
        "saved": same(saved, name),
        "lora behind": same(lora, f"{name}+lora"),
        "and without it again": same(small, name),
        "lora before": same(into, f"lora+{name}"),
        "fingerprints": small.fingerprint == saved.fingerprint != base.fingerprint,
        "base stays": bool(velocity(base).equal(before)),
        "bytes of its own": held(small).isdisjoint(held(base)),
        "counted": small.patcher.model_size() == sum(
            value.numel() * value.element_size() for value in small.network.state_dict().values()
        ),
    }
    # What does not fit is dequantized where it is computed, the LoRA merged as it goes by.
    comfy.model_management.unload_all_models()
    lora.patcher.partially_load(torch.device("cpu"), extra_memory=20_000)
    got, want = velocity(lora, load=False), torch.load(folder / f"{name}+lora.pt")
    # Layers that the plan leaves alone are ComfyUI's, which then merges in bfloat16.
    results[name]["partly loaded"] = lora.network.model_lowvram and bool((got - want).norm() < 0.01 * want.norm())
    comfy.model_management.unload_all_models()
    results[name]["unloads"] = comfy.model_management.loaded_models() == []
results["kitchen"] = "comfy_kitchen" in sys.modules
print("RESULTS " + json.dumps(results))
"""


def write_files(folder):
    """The original, its quantized files, a LoRA, and what the library computes with each of them."""
    write(folder / "first", dtype=torch.bfloat16).rename(folder / "original.safetensors")
    original = folder / "original.safetensors"
    lora = Lora(load_dit(original, layout="split", dtype=torch.float32), LoraSettings(rank=2, alpha=4.0), 1)
    for pair in lora.pairs.values():
        pair.up.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    lora.save(folder / "lora.safetensors", torch.float32)
    for name in PLANS:
        convert(original, folder / f"{name}.safetensors", precision=name)
        quantized = load_dit(folder / f"{name}.safetensors")
        torch.save(velocity(quantized), folder / f"{name}.pt")
        apply_lora(quantized, folder / "lora.safetensors", 0.5)
        torch.save(velocity(quantized), folder / f"{name}+lora.pt")
        merged = load_dit(original)
        apply_lora(merged, folder / "lora.safetensors", 0.5)
        apply_plan(merged, calibrated(merged, preset(name, CONFIG)))
        torch.save(velocity(merged), folder / f"lora+{name}.pt")
    draw = torch.Generator().manual_seed(3)
    sizes = {"x": (2, 8, 2, 3, 5), "source": (2, 8, 2, 3, 5), "embeds": (2, 7, 24)}
    torch.save({name: torch.randn(size, generator=draw) for name, size in sizes.items()}, folder / "inputs.pt")


def test_every_way_gives_the_same_bits(tmp_path):
    write_files(tmp_path)
    python = os.environ.get("COMFY_PYTHON", "python")
    command = [python, "-c", SCRIPT, os.environ["COMFY_DIR"], str(ROOT), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.split("RESULTS ")[1])
    assert results.pop("kitchen"), "it is ComfyUI's own, which it imports itself"
    wrong = {name: [what for what, right in found.items() if not right] for name, found in results.items()}
    assert not any(wrong.values()), wrong


def workflow(**changes):
    graph = json.loads(WORKFLOW.read_text())
    for place, value in changes.items():
        node, key = place.split("__")
        graph[node.removeprefix("n")]["inputs"][key] = value
    return graph


# Few enough trials for a test.
QUICK = {"n9__formats": "nvfp4", "n9__steps": 1, "n5__frames": 65, "n6__steps": 1}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    with ComfyServer(tmp_path_factory.mktemp("comfy")) as server:
        yield server


def frames(comfy, entry):
    (path,) = (path for path in comfy.output_files(entry) if path.suffix == ".mp4")
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


@pytest.mark.nano
def test_the_workflow_is_stopped_and_goes_on(comfy):
    with comfy.listen() as events:
        prompt = comfy.queue(workflow(**QUICK))
        # Not every measurement is told.
        while not any(re.match(r"error ([3-9]|\d\d) of", text) for _, text in events.texts):
            assert not events.of("execution_success"), "nothing was told of it"
            time.sleep(0.02)
        comfy.interrupt()
        with pytest.raises(ComfyError, match="interrupted in SanaStreamingProfilePrecision"):
            comfy.wait(prompt)
        (journal,) = (comfy.base / "output/sana_streaming/profiles").iterdir()
        known = json.loads(journal.read_text())["sections"]["error"]
        entry = comfy.run(workflow(**QUICK))
        events.wait_for("execution_success")
    assert "1" in cached_nodes(entry)
    errors = json.loads(journal.read_text())["sections"]["error"]
    assert len(known) < len(errors) == 44 and known.items() <= errors.items()
    files = {path.name: path for path in comfy.output_files(entry)}
    plan = read_plan(files["plan_00001_.precision.json"])
    assert set(plan.formats.values()) == {"nvfp4"}
    (report,) = entry["outputs"]["12"]["text"]
    assert report.splitlines()[0].startswith("precision auto: ")
    assert "nvfp4 saves memory but no time here: cpu has no fast product in nvfp4" in report
    assert "projected for RTX 5090 with matrices of the 2B network, 2640 tokens, by the profile of this plan" in report
    (chart,) = entry["outputs"]["11"]["images"]
    assert (comfy.base / "temp" / chart["filename"]).stat().st_size > 10_000
    assert len(frames(comfy, entry)) == 65
    # The file as a preset: the same plan, so the same frames.
    graph = workflow(**QUICK, n10__preset="sana_streaming/plan_00001_.precision.json [output]")
    del graph["10"]["inputs"]["plan"]
    assert frames(comfy, comfy.run(graph)).equal(frames(comfy, entry))


@pytest.mark.nano
def test_the_copy_edits_as_its_file_does(comfy, tmp_path):
    """Applied, saved and loaded."""
    graph = workflow(n5__frames=33, n6__steps=2)
    del graph["8"], graph["9"], graph["11"], graph["12"], graph["10"]["inputs"]["plan"]
    by_node = frames(comfy, comfy.run(graph))
    convert(nano_folder() / "dit", tmp_path / "nano_fp8.safetensors", torch.float32, precision="fp8")
    comfy.put_model(tmp_path / "nano_fp8.safetensors", "diffusion_models")
    graph["1"]["inputs"]["file"] = "nano_fp8.safetensors"
    graph["6"]["inputs"]["model"] = ["1", 0]
    del graph["10"]
    assert frames(comfy, comfy.run(graph)).equal(by_node)
    graph["1"]["inputs"]["file"] = "nano (built in)"
    assert not frames(comfy, comfy.run(graph)).equal(by_node)


def test_what_is_refused_before_the_run(comfy):
    with pytest.raises(ComfyError, match="no format is called fp4"):
        comfy.queue(workflow(n9__formats="fp4"))
    graph = workflow(n10__preset="gone.precision.json")
    # Its outputs could be made without the other node.
    del graph["9"], graph["11"], graph["10"]["inputs"]["plan"]
    with pytest.raises(ComfyError, match=r"'gone.precision.json' is not in ComfyUI's input folder"):
        comfy.queue(graph)
