"""Published files that are not on this machine: offered, fetched on Run, used from then on; from a hub on this machine."""

import json
from pathlib import Path

import fake_hub
import node_calls as nodes
import pytest
from sana_streaming.sana_core.weights.toy import make_toy_bundle

RELEASE, GEMMA = "Efficient-Large-Model/SANA-Streaming", "Efficient-Large-Model/gemma-2-2b-it"
VAE = "ltx2_causal_vae_0516"
STANDIN = Path(__file__).parents[1] / "comfy_standin"

# A ComfyUI in a process of its own, since the hub's library reads its settings once.
PRELUDE = """
import sys
sys.path.insert(0, {standin!r})
import comfy.model_management, comfy.utils, folder_paths
folder_paths.reset({base!r})
import sana_streaming.nodes as pack
from sana_streaming.nodes import comfy_host
from server import PromptServer
comfy_host.register_folders()
nodes = {{node.__name__.removeprefix("SanaStreaming"): node for node in pack.NODES}}

def downloads(name):
    options = nodes[name].define_schema().inputs[0].fields["options"]
    return [option for option in options if option.startswith("download: ")]
"""


@pytest.fixture
def hub(tmp_path):
    toy = make_toy_bundle(tmp_path / "toy")
    folders = {f"{VAE}/": toy / "vae", "": toy / "text_encoder"}
    files = {
        prefix: {f"{prefix}{file.name}": file.read_bytes() for file in folder.iterdir()}
        for prefix, folder in folders.items()
    }
    release = {"dit/sana_streaming_ar.pth": b"weights" * 1000, "README.md": b"", **files[f"{VAE}/"]}
    with fake_hub.FakeHub({RELEASE: release, GEMMA: files[""]}) as it:
        yield it


@pytest.fixture
def comfy(hub, tmp_path):
    """Runs code beside a ComfyUI; what it puts into ``result``."""
    base, home = tmp_path / "comfy", tmp_path / "home"
    prelude = PRELUDE.format(standin=str(STANDIN), base=str(base))

    def run(code, **environment):
        return hub.result(home, prelude + code, **environment)

    run.base = base
    return run


def test_offered_where_not_on_disk(host, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    options = {
        name: nodes.node(name).define_schema().inputs[0].fields["options"]
        for name in ("LoadModel", "LoadVAE", "LoadTextEncoder")
    }
    offered = {name: [option for option in found if option.startswith("download: ")] for name, found in options.items()}
    assert offered == {
        "LoadModel": ["download: streaming-2b", "download: bidirectional-2b"],
        "LoadVAE": ["download: vae", "download: causal-vae"],
        "LoadTextEncoder": ["download: text-encoder"],
    }
    for name, found in options.items():
        assert found[0] == "nano (built in)"
        assert all(nodes.node(name).validate_inputs(option) is True for option in found)


def test_a_file_of_the_users_own_is_known(host):
    """Wherever in a model folder it lies, but not half of a folder."""
    (nodes.models_folder("diffusion_models", "sana") / "sana_streaming_ar.pth").write_bytes(b"")
    folder = nodes.models_folder("vae", VAE)
    (folder / "config.json").write_text("{}")
    (folder / "x.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    (folder / "1.safetensors").write_bytes(b"")

    def offered(name):
        return [
            option for option in nodes.node(name).define_schema().inputs[0].fields["options"] if "download" in option
        ]

    assert offered("LoadModel") == ["download: bidirectional-2b"]
    assert "download: causal-vae" in offered("LoadVAE")
    (folder / "2.safetensors").write_bytes(b"")
    assert "download: causal-vae" not in offered("LoadVAE")
    node = nodes.node("LoadVAE")
    assert node.validate_inputs("download: causal-vae") is True
    assert node.fingerprint_inputs("download: causal-vae", "auto") == "download: causal-vae"
    assert "nothing to download" in node.validate_inputs("download: vea")


def test_fetched_on_run_and_used_from_then_on(comfy, hub):
    code = """
before = downloads("LoadVAE")
(vae,) = nodes["LoadVAE"].execute("download: causal-vae", "auto").args
bars = [bar.values == sorted(bar.values) and bar.values[-1] == bar.total for bar in comfy.utils.ProgressBar.made]
result = [before, downloads("LoadVAE"), vae.network.fingerprint, bars, [text for _, text in PromptServer.instance.texts]]
"""
    before, after, fingerprint, bars, texts = comfy(code)
    assert before == ["download: vae", "download: causal-vae"]
    assert after == ["download: vae"]
    assert bars == [True]
    assert texts[0].startswith("downloading causal-vae: ")
    assert texts[-1].startswith("decoder ")
    assert (comfy.base / "models" / "sana_streaming" / VAE / "config.json").is_file()
    asked = len(hub.requests)
    # From the file, and without a word to the hub, offline too.
    again = comfy(code, HF_HUB_OFFLINE="1")
    assert again == [after, after, fingerprint, [], texts[-1:]]
    assert len(hub.requests) == asked


def test_all_three_kinds(comfy):
    code = """
from sana_streaming.nodes.downloads import downloaded
from sana_streaming.nodes.loaders import MODEL_FOLDERS
(encoder,) = nodes["LoadTextEncoder"].execute("download: text-encoder").args
positive, _ = nodes["Prompt"].execute(encoder, "make it snow", "", 0).args
path = downloaded("download: streaming-2b", MODEL_FOLDERS, lambda text: None)
result = [str(path.relative_to(folder_paths.models_dir)), path.stat().st_size, list(positive[0][0].shape),
    downloads("LoadTextEncoder"), downloads("LoadModel")]
"""
    path, size, shape, encoders, models = comfy(code)
    assert (path, size) == ("sana_streaming/dit/sana_streaming_ar.pth", 7000)
    assert shape[:2] == [1, 300]
    assert (encoders, models) == ([], ["download: bidirectional-2b"])


def test_stop_ends_a_download(comfy):
    code = """
comfy.model_management.stop_after = 0
try:
    nodes["LoadVAE"].execute("download: causal-vae", "auto")
except comfy.model_management.InterruptProcessingException:
    result = ["stopped", downloads("LoadVAE")]
"""
    assert comfy(code) == ["stopped", ["download: vae", "download: causal-vae"]]


def test_offline_it_is_refused_before_the_run(comfy, hub):
    code = """
result = nodes["LoadVAE"].validate_inputs("download: causal-vae")
"""
    message = comfy(code, HF_HUB_OFFLINE="1")
    assert message.startswith("causal-vae is not on this machine, and HF_HUB_OFFLINE is set")
    assert "models/vae" in message
    assert hub.requests == []


def test_no_hub_within_reach(comfy, hub):
    code = """
try:
    nodes["LoadVAE"].execute("download: causal-vae", "auto")
except InputError as error:
    result = str(error)
"""
    message = comfy(code, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert "\n" not in message
    assert "run it again" in message


def test_what_the_hubs_cache_has_is_taken(comfy, hub):
    fetched = """
from sana_streaming.sana_core.weights.hub import BUNDLES, resolve_uri
resolve_uri(str(BUNDLES["causal-vae"][0]), "vae")
"""
    code = """
(vae,) = nodes["LoadVAE"].execute("download: causal-vae", "auto").args
result = downloads("LoadVAE")
"""
    comfy(fetched + "result = 0")
    sent = len(hub.gets)
    assert comfy(code) == comfy(code, HF_HUB_OFFLINE="1") == ["download: vae", "download: causal-vae"]
    assert len(hub.gets) == sent
