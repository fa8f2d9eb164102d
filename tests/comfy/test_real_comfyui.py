"""The pack in a real ComfyUI on the CPU. COMFY_DIR names a ComfyUI folder, COMFY_PYTHON its interpreter."""

import json
import os
from pathlib import Path

import pytest
from comfy_server import ComfyServer

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

NODE_IDS = {
    f"SanaStreaming{name}"
    for name in (
        "LoadModel",
        "LoadVAE",
        "LoadTextEncoder",
        "Prompt",
        "EncodeVideo",
        "Sampler",
        "DecodeVideo",
        "DecodeImages",
        "EditVideo",
        "DemoClip",
    )
}
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
