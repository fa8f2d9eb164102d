"""Example workflows against the schemas of a fresh install: what the page would find missing, wrong or left over."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
CORE = {
    "LoadVideo",
    "SaveVideo",
    "MarkdownNote",
    "SolidMask",
    "MaskComposite",
    "InvertMask",
    "PreviewImage",
    "PreviewAny",
    "GetVideoComponents",
    "ImageScaleBy",
    "CreateVideo",
}
# Modes of a node that does not run.
MUTED, BYPASSED = 2, 4
# What the page draws as a widget.
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture
def schemas():
    from sana_streaming.nodes import NODES

    return {node.__name__: node.define_schema() for node in NODES}


def graph(path):
    return json.loads(path.read_text(encoding="utf-8"))


def widget_names(schema):
    """The names of a node's widgets in the order of ``widgets_values``."""
    for slot in schema.inputs:
        if slot.io_type in WIDGETS:
            yield slot.id
            # The page gives this to every seed.
            if slot.id == "seed":
                yield "control_after_generate"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_are_as_the_schemas_say(path, schemas):
    for node in graph(path)["nodes"]:
        schema = schemas.get(node["type"])
        if schema is None:
            assert node["type"] in CORE
            continue
        # What was added to a node since has a default.
        present = {slot["name"] for slot in node["inputs"]}
        assert (
            {slot.id for slot in schema.inputs if not slot.optional} <= present <= {slot.id for slot in schema.inputs}
        )
        outputs = [slot.fields["display_name"] for slot in schema.outputs]
        assert [slot["name"] for slot in node["outputs"]] == outputs[: len(node["outputs"])]
        names = [name for name in widget_names(schema) if name in present or name == "control_after_generate"]
        values = dict(zip(names, node["widgets_values"], strict=True))
        check_values(node, schema, values)
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        needed = {slot.id for slot in schema.inputs if not slot.optional and slot.io_type not in WIDGETS}
        assert needed <= linked, node["type"]


def check_values(node, schema, values):
    """Numbers within their limits, choices that are offered, or files that the page is told where to get."""
    files = {model["name"] for model in node["properties"].get("models", [])}
    for slot in schema.inputs:
        if slot.id not in values:
            continue
        if slot.io_type in ("INT", "FLOAT"):
            assert slot.fields["min"] <= values[slot.id] <= slot.fields["max"], slot.id
        if slot.io_type == "COMBO" and node["mode"] not in (MUTED, BYPASSED):
            assert values[slot.id] in files | set(slot.fields["options"]), (node["type"], slot.id)
    for model in node["properties"].get("models", []):
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith(f"/{model['name']}")
        assert model["directory"] == "diffusion_models"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_join_what_fits(path):
    content = graph(path)
    nodes = {node["id"]: node for node in content["nodes"]}
    for link, source, out, target, into, _ in content["links"]:
        given = nodes[source]["outputs"][out]["type"]
        taken = nodes[target]["inputs"][into]["type"]
        assert taken == "*" or given in taken.split(","), link
    listed = {link[0] for link in content["links"]}
    held = {slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None}
    assert held == listed
    assert content["last_node_id"] >= max(nodes)
    assert content["last_link_id"] >= max(listed)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_tells_what_to_do(path):
    (note,) = (node for node in graph(path)["nodes"] if node["type"] == "MarkdownNote")
    assert note["widgets_values"][0].startswith("## ")


def test_every_node_is_in_an_example(schemas):
    used = {node["type"] for path in WORKFLOWS for node in graph(path)["nodes"]}
    assert set(schemas) <= used
