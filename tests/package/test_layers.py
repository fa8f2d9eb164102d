"""The house rules that a machine can check: imports go down, importing is light, the package list is the tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
ROOMS = ("nodes", "sana_core", "kernels")
# What each room may import of ours.
BELOW = {"kernels": {"kernels"}, "sana_core": {"sana_core", "kernels"}, "nodes": set(ROOMS)}
HEAVY = (
    "triton",
    "transformers",
    "diffusers",
    "av",
    "huggingface_hub",
    "tokenizers",
    "requests",
    "httpx",
    "comfy_kitchen",
)


def modules():
    """(file, dotted name inside the package) of every module that is shipped."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield file, parts[:-1] if parts[-1] == "__init__" else parts


def imported_rooms(file, parts):
    """Rooms that a module imports, at any depth of its code; fails on absolute imports of ours."""
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split("."))
            names = [target] if any(target) and target[0] else [(*base, alias.name) for alias in node.names]
            yield from (name[0] for name in names)
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in ("sana_streaming", *ROOMS), f"{file}: import of {name} is not relative"


def test_imports_go_down_only():
    found = 0
    for file, parts in modules():
        for room in imported_rooms(file, parts):
            assert room in BELOW[parts[0]], f"{file.relative_to(ROOT)} imports {room}"
            found += 1
    assert found > 50


def test_the_rule_would_notice(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from ..sana_core import config\n")
    assert list(imported_rooms(file, ("kernels", "x"))) == ["sana_core"]
    file.write_text("from ..sana_core.config import DiTConfig\nfrom .. import nodes\n")
    assert list(imported_rooms(file, ("kernels", "x"))) == ["sana_core", "nodes"]


@pytest.mark.parametrize("entry", ["", ".sana_core.cli", "everything"])
def test_importing_is_light(entry):
    """No heavy package and no network, whatever of ours is imported."""
    names = (
        [entry] if entry != "everything" else [f".{'.'.join(parts)}" for _, parts in modules() if parts[0] != "nodes"]
    )
    code = (
        "import sys, socket, importlib\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {names!r}: importlib.import_module('sana_streaming' + name)\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not heavy, heavy\n"
        f"assert not [p for p in sys.path if p == {str(ROOT)!r}], sys.path\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_package_list_is_the_tree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file, _ in modules()}
    expected = {"sana_streaming", *(".".join(("sana_streaming", *folder.parts)) for folder in folders)}
    assert set(settings["packages"]) == expected
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_requirements_leave_the_users_packages_alone():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert {line for line in lines if line} <= {"huggingface_hub>=0.34,<3"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [name for extra in project["optional-dependencies"].values() for name in extra]
    assert not [name for name in named if name.startswith(("torch", "diffusers")) and name not in _dev(project)]


def _dev(project):
    return project["optional-dependencies"]["dev"]
