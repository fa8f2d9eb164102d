"""The nodes on stand-ins for ComfyUI (tests/comfy_standin)."""

import sys
from pathlib import Path

import pytest

STANDIN = str(Path(__file__).parents[1] / "comfy_standin")


@pytest.fixture(autouse=True, scope="session")
def _standin():
    """Only tests in this folder see the stand-ins."""
    sys.path.insert(0, STANDIN)
    yield
    sys.path.remove(STANDIN)


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """A fresh ComfyUI: empty folders, nothing loaded, no Stop."""
    import comfy.cli_args
    import comfy.model_management
    import comfy.utils
    import folder_paths
    from sana_streaming.nodes import comfy_host
    from server import PromptServer

    folder_paths.reset(tmp_path)
    comfy_host.register_folders()
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path / "prompts"))
    monkeypatch.setattr(comfy.model_management, "stop_after", None)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Auto)
    monkeypatch.setattr(comfy.cli_args.args, "preview_size", 512)
    comfy.model_management.loaded.clear()
    comfy.utils.ProgressBar.made.clear()
    PromptServer.instance.texts.clear()
    return comfy.model_management
