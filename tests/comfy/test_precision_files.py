"""Quantized files in a real ComfyUI: its own reader and layers, ours on top of them, and ours alone give the same bits."""

import json
import os
from pathlib import Path

import pytest
import torch
from comfy_server import ComfyServer
from inside_comfy import results_of
from sana_streaming.sana_core.precision.calibration import calibrated
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.weights.convert import convert
from sana_streaming.sana_core.weights.dit import load_dit, save_dit
from sana_streaming.sana_core.weights.nano import nano_folder
from small_dit import CONFIG, velocity, write

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]
SPLIT_FP8 = Plan("split", {f"blocks.{block}.self.{part}": "fp8" for block in range(4) for part in "qkv"})
MIXED = Plan(
    "mixed",
    {
        "blocks.0.ffn.in": "mxfp8",
        "blocks.1.ffn.out": "nvfp4",
        "blocks.2.cross.o": "int8-hadamard",
        "blocks.3.ffn.temporal": "int8",
        "blocks.3.self.o": "fp8",
    },
)
PLANS = {name: preset(name, CONFIG) for name in ("fp8", "int8", "paper-mpq")} | {"split": SPLIT_FP8, "mixed": MIXED}

SCRIPT = """
from pack.nodes import comfy_host
from pack.sana_core.models.dit import SanaStreamingDiT
from pack.sana_core.weights.dit import load_dit

CPU, DTYPE = torch.device("cpu"), torch.bfloat16


@torch.inference_mode()
def velocity(model):
    x, source, embeds = (torch.load(Path(folder) / "inputs.pt")[name] for name in ("x", "source", "embeds"))
    return model(x, torch.tensor([893] * len(x)), source, model.prompt_context(embeds))[0]


def same(model, file):
    return bool(velocity(model).equal(torch.load(file.parent / "want.pt")))


def by_comfyui(file, config, layout, disabled):
    state = comfy.utils.load_torch_file(str(file), safe_load=True)
    operations = comfy.ops.mixed_precision_ops({}, DTYPE, disabled=disabled)
    model = SanaStreamingDiT(config, layout=layout, operations=operations, dtype=DTYPE)
    model.load_state_dict(state, strict=True)
    return model.eval()


def shares(file):
    # With nothing disabled ComfyUI multiplies in fp8 on a CPU too; one input for q, k and v must not change a bit.
    asked = comfy_host.layers._computes
    comfy_host.layers._computes = lambda *_: True
    operations = comfy_host.quantized_operations(DTYPE, CPU)
    comfy_host.layers._computes = asked
    model = load_dit(file, dtype=DTYPE, quantized_operations=operations)
    made = []
    quantize = comfy.ops.QuantizedTensor.from_float.__func__
    comfy.ops.QuantizedTensor.from_float = classmethod(lambda cls, *a, **k: made.append(1) or quantize(cls, *a, **k))
    got = velocity(model)
    plain = by_comfyui(file, model.config, "split", set())
    count = len(made)
    return {"same": bool(velocity(plain).equal(got)), "made": [count, len(made) - count]}


results = {}
for file in sorted(Path(folder).glob("*/model.safetensors")):
    operations = comfy_host.quantized_operations(DTYPE, CPU)
    network = load_dit(file, dtype=DTYPE, operations=comfy_host.operations(DTYPE), quantized_operations=operations)
    patcher = comfy_host.patcher(network, CPU, CPU)
    comfy_host.load([patcher], 0)
    results[file.parent.name] = {
        "adapter": same(patcher.model, file),
        "host layers": isinstance(network.blocks[0].attn.proj, operations.Linear),
        "ours": same(load_dit(file, dtype=DTYPE), file),
        "comfyui": same(by_comfyui(file, network.config, network.layout, {"float8_e4m3fn", "mxfp8", "nvfp4"}), file),
    }
    if file.parent.name == "split":
        results["shares"] = shares(file)
print("RESULTS " + json.dumps(results))
"""


def test_every_reader_gives_the_same_bits(tmp_path):
    original = write(tmp_path / "original", dtype=torch.bfloat16).rename(tmp_path / "original.safetensors")
    for name, plan in PLANS.items():
        model = load_dit(original, precision=calibrated(load_dit(original), plan))
        save_dit(model, tmp_path / name)
        torch.save(velocity(model), tmp_path / name / "want.pt")
    draw = torch.Generator().manual_seed(3)
    sizes = {"x": (2, 8, 2, 3, 5), "source": (2, 8, 2, 3, 5), "embeds": (2, 7, 24)}
    torch.save({name: torch.randn(size, generator=draw) for name, size in sizes.items()}, tmp_path / "inputs.pt")
    results = results_of(SCRIPT, tmp_path)
    # Of each of 4 blocks one input for q, k and v, where ComfyUI alone makes three.
    assert results.pop("shares") == {"same": True, "made": [4, 12]}
    right = {"adapter": True, "host layers": True, "ours": True, "comfyui": True}
    assert results == dict.fromkeys(PLANS, right)


def test_the_loader_node_takes_a_quantized_file(tmp_path):
    convert(nano_folder() / "dit", tmp_path / "small.safetensors", precision="paper-mpq")
    graph = json.loads((ROOT / "tests" / "api_workflows" / "edit_a_video.json").read_text())
    graph["5"]["inputs"]["frames"] = 33
    edited = []
    with ComfyServer(tmp_path / "comfy") as comfy:
        comfy.put_model(tmp_path / "small.safetensors", "diffusion_models")
        for file in ("nano (built in)", "small.safetensors"):
            graph["1"]["inputs"]["file"] = file
            entry = comfy.run(graph)
            (video,) = (path for path in comfy.output_files(entry) if "output" in path.parts)
            with VideoReader(video) as reader:
                edited.append(torch.stack(list(reader)).float())
    plain, quantized = edited
    assert plain.shape == quantized.shape and 0 < (plain - quantized).abs().mean() < 4
