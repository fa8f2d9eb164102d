"""Example workflows: what the page needs to open them, and nothing of the machine they were saved on."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))


def boxes(nodes):
    """(left, top, right, bottom) of every node, its title bar included."""
    for node in nodes:
        (x, y), (width, height) = node["pos"], node["size"]
        yield node["id"], (x, y - 30, x + width, y + height)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_ui_workflow(path):
    graph = json.loads(path.read_text())
    assert graph["version"] == 0.4
    assert path.with_suffix(".jpg").stat().st_size < 100_000
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, source, out, target, into, kind in graph["links"]:
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][into]["link"] == link
        assert nodes[source]["outputs"][out]["type"] == kind
    shapes = list(boxes(graph["nodes"]))
    for i, (first, a) in enumerate(shapes):
        for second, b in shapes[i + 1 :]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"nodes {first} and {second} overlap"


def test_nothing_else_lies_there():
    """ComfyUI serves this folder in its template browser."""
    assert {file.suffix for file in FOLDER.iterdir()} == {".json", ".jpg"}
    assert WORKFLOWS
    assert all((FOLDER.parent / "tests" / "api_workflows" / path.name).exists() for path in WORKFLOWS)
