"""What ComfyUI's registry of packs reads: pyproject.toml, the pictures, the list of changes."""

import re
import sys
from pathlib import Path

from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
CONTENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = CONTENT["project"], CONTENT["tool"]["comfy"]
# One that is unknown to the registry makes it forget all.
ACCELERATORS = {f"GPU :: {kind}" for kind in ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal")}


def test_name_version_and_licence():
    assert re.fullmatch(r"[a-z](?:[-_]?[a-z0-9])*", PROJECT["name"])
    assert "comfyui" not in PROJECT["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / PROJECT["license"]["file"]).is_file()
    assert len(PROJECT["classifiers"]) == len(set(PROJECT["classifiers"]))
    environments = {line.removeprefix("Environment :: ") for line in PROJECT["classifiers"] if line.startswith("Env")}
    assert environments <= ACCELERATORS


def test_nothing_is_installed_over_comfyuis_packages():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line and not line.startswith("#")]


def test_the_packs_own_fields():
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes"} <= set(COMFY)
    assert COMFY["DisplayName"] == "SANA-Streaming"
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])
    with Image.open(ROOT / COMFY["Icon"]) as icon, Image.open(ROOT / COMFY["Banner"]) as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
