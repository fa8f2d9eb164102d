"""What users' workflows rest on: node ids, input names, their order and types never change; only additions at the end.

A socket may take further types, and an input may become optional.
"""

import asyncio
import json
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).parent / "schemas.json"
PACK = "sana_streaming"


def all_nodes():
    from sana_streaming import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    return asyncio.run(extension.get_node_list())


def described():
    """The frozen part of every schema."""
    nodes = {}
    for node in all_nodes():
        schema = node.define_schema()
        nodes[schema.node_id] = {
            "inputs": [[slot.id, slot.io_type, "optional" if slot.optional else "required"] for slot in schema.inputs],
            "outputs": [slot.io_type for slot in schema.outputs],
        }
    return nodes


def test_nothing_is_renamed_removed_or_reordered(request):
    """To freeze additions, and only these: ``python -m pytest tests/nodes/test_schemas.py --update-schemas``."""
    frozen, now = json.loads(SNAPSHOT.read_text()), described()
    assert list(now)[: len(frozen)] == list(frozen)
    for node_id, schema in frozen.items():
        assert now[node_id]["outputs"][: len(schema["outputs"])] == schema["outputs"], node_id
        kept = [slot for slot in now[node_id]["inputs"] if slot[0] in {name for name, _, _ in schema["inputs"]}]
        assert [name for name, _, _ in kept] == [name for name, _, _ in schema["inputs"]], node_id
        for (name, types, need), (_, frozen_types, frozen_need) in zip(kept, schema["inputs"], strict=True):
            assert need in (frozen_need, "optional"), (node_id, name)
            assert set(frozen_types.split(",")) <= set(types.split(",")), (node_id, name)
    if request.config.getoption("--update-schemas"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    else:
        assert now == frozen, "the schemas grew: run with --update-schemas to freeze the additions"


def test_every_input_says_what_it_is_for():
    for node in all_nodes():
        schema = node.define_schema()
        assert schema.node_id == node.__name__
        assert schema.node_id.startswith("SanaStreaming")
        assert schema.description.endswith(".")
        assert schema.search_aliases
        for slot in schema.inputs:
            assert slot.fields["tooltip"], (schema.node_id, slot.id)


def test_execute_takes_the_inputs_by_name():
    import inspect

    for node in all_nodes():
        schema = node.define_schema()
        taken = list(inspect.signature(node.execute).parameters)
        assert sorted(taken) == sorted(slot.id for slot in schema.inputs), schema.node_id


def test_unknown_keywords_of_older_versions_are_dropped(monkeypatch):
    """A schema or an input that does not know a keyword would lose the whole pack."""
    from comfy_api.latest import io
    from sana_streaming.nodes import comfy_host

    class OldInput:
        def __init__(self, name, default=None):
            self.name, self.default = name, default

    class OldKind:
        Input = OldInput

    made = comfy_host.widget(OldKind, "x", default=3, advanced=True, tooltip="t")
    assert (made.name, made.default) == ("x", 3)
    assert comfy_host.schema(node_id="x", essentials_category="Basics").node_id == "x"
    assert io.Schema("x").node_id == "x"


def test_patcher_of_older_versions(monkeypatch):
    import comfy.model_patcher
    import torch
    from sana_streaming.nodes import comfy_host

    monkeypatch.delattr(comfy.model_patcher, "CoreModelPatcher")
    made = comfy_host.patcher(torch.nn.Linear(1, 1), torch.device("cpu"), torch.device("cpu"))
    assert type(made).__name__ == "ModelPatcher"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "api_workflows").glob("*.json")), ids=lambda p: p.stem
)
def test_api_workflows_fit_the_schemas(path):
    schemas = {node.define_schema().node_id: node.define_schema() for node in all_nodes()}
    workflow = json.loads(path.read_text())
    for node in workflow.values():
        schema = schemas.get(node["class_type"])
        if schema is None:
            assert not node["class_type"].startswith("SanaStreaming")
            continue
        known = {slot.id for slot in schema.inputs}
        needed = {slot.id for slot in schema.inputs if not slot.optional}
        assert needed <= set(node["inputs"]) <= known, node["class_type"]
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in workflow
