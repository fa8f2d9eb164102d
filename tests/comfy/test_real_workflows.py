"""Example workflows, help pages and translations in the real page of ComfyUI, which COMFY_DIR and COMFY_PYTHON name."""

import json
import os
import time
from pathlib import Path

import pytest
from browser import Page
from comfy_server import ComfyServer

pytestmark = [
    pytest.mark.skipif(not os.environ.get("COMFY_DIR"), reason="COMFY_DIR is not set"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]
WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))
}
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.99.0",
    "Comfy.Release.Status": "skipped",
    "Comfy.VueNodes.Enabled": False,
}
READY = (
    "window.app?.graph && window.LiteGraph && window.LiteGraph.registered_node_types.SanaStreamingEditVideo "
    "&& !document.querySelector('#splash-loader')"
)
# What is wrong with the graph as the page has it.
LOOK = """(() => {
    const wrong = [], graph = app.rootGraph ?? app.graph, types = LiteGraph.registered_node_types;
    for (const node of graph.nodes) {
        const where = `${node.id} ${node.type}`;
        if (!types[node.type] && node.type !== "MarkdownNote") { wrong.push(`${where} is missing`); continue; }
        const models = (node.properties.models ?? []).map((model) => model.name);
        const required = Object.keys(types[node.type].nodeData?.input?.required ?? {});
        for (const input of node.inputs ?? [])
            if (node.mode === 0 && !input.widget && input.link == null && required.includes(input.name))
                wrong.push(`${where}: ${input.name} is not connected`);
        for (const widget of node.widgets ?? []) {
            let values = widget.options?.values;
            if (typeof values === "function") values = values(widget, node);
            if (widget.type !== "combo" || !Array.isArray(values) || node.mode !== 0) continue;
            if (!values.includes(widget.value) && !models.includes(widget.value))
                wrong.push(`${where}: ${widget.name} is ${widget.value}`);
        }
    }
    for (const link of graph.links.values()) {
        const from = graph.getNodeById(link.origin_id)?.outputs[link.origin_slot];
        const into = graph.getNodeById(link.target_id)?.inputs[link.target_slot];
        if (into?.link !== link.id || !LiteGraph.isValidConnection(from?.type, into?.type))
            wrong.push(`link ${link.id} does not hold`);
    }
    return wrong;
})()"""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    with ComfyServer(tmp_path_factory.mktemp("comfy")) as server:
        yield server


def opened(comfy, language="en"):
    comfy.post("/settings", {**SETTINGS, "Comfy.Locale": language})
    page = Page(f"http://127.0.0.1:{comfy.port}/", 1680, 1000)
    page.until(READY, 120)
    # The page opens a workflow of its own first.
    time.sleep(2)
    page.errors.clear()
    return page


@pytest.fixture(scope="module")
def page(comfy):
    with opened(comfy) as page:
        yield page


def load(page, name):
    page.evaluate(
        f"fetch('/api/workflow_templates/sana-streaming/{name}.json').then(f => f.json()).then(g => app.loadGraphData(g))"
    )
    page.until(f"(app.rootGraph ?? app.graph).nodes.length === {len(WORKFLOWS[name]['nodes'])}")


def press_run(comfy, page):
    """Presses Run and waits; the history entry."""
    before = set(comfy.get("/history"))
    page.evaluate("document.querySelector('[data-testid=queue-button]').click()")
    end = time.monotonic() + 60
    while not (started := set(comfy.get("/history")) - before) and time.monotonic() < end:
        queue = comfy.get("/queue")
        started = {entry[1] for entry in queue["queue_running"] + queue["queue_pending"]}
        if started:
            break
        time.sleep(0.2)
    (prompt,) = started
    return comfy.wait(prompt, timeout=900)


def videos(comfy, entry):
    return [file for file in comfy.output_files(entry) if file.suffix == ".mp4" and file.parent.name == "video"]


def is_shown(page, file):
    """Waits until the page plays a file."""
    return page.until(
        f"[...document.querySelectorAll('video')].some(video => decodeURIComponent(video.src).includes({file.name!r}) "
        "&& video.videoWidth > 0)"
    )


def test_the_browser_of_templates_has_all(comfy):
    assert sorted(comfy.get("/workflow_templates")["sana-streaming"]) == list(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_without_complaint(comfy, page, name):
    page.errors.clear()
    load(page, name)
    time.sleep(1)
    assert page.evaluate(LOOK) == []
    links = page.evaluate("[...(app.rootGraph ?? app.graph).links.values()].length")
    assert links == len(WORKFLOWS[name]["links"])
    # The page asks for the size of a file that is missing, which its own rules forbid.
    assert [error for error in page.errors if "huggingface.co" not in error] == []
    missing = page.evaluate(
        "document.body.innerText.includes(' is missing') || document.body.innerText.includes('are missing')"
    )
    assert missing == needs_files(name)
    assert page.evaluate(f"fetch('/api/workflow_templates/sana-streaming/{name}.jpg').then(f => f.ok)")


def needs_files(name):
    return any("models" in node["properties"] for node in WORKFLOWS[name]["nodes"])


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if not needs_files(name)])
def test_run_gives_a_video_that_the_page_plays(comfy, page, name):
    page.errors.clear()
    load(page, name)
    entry = press_run(comfy, page)
    (file,) = videos(comfy, entry)
    assert is_shown(page, file)
    if name == "continue_a_stream":
        entry = run_the_second_part(comfy, page)
        (file,) = videos(comfy, entry)
        assert "part2" in file.name
        assert is_shown(page, file)
    assert [error for error in page.errors if "huggingface.co" not in error] == []


def run_the_second_part(comfy, page):
    """What the note tells the user to do: the parts change places, the lists are read again."""
    page.evaluate("app.refreshComboInNodes()")
    parts = "EncodeVideo|Sampler|DecodeVideo|SaveVideo|SaveState"
    page.evaluate(
        "for (const node of (app.rootGraph ?? app.graph).nodes)"
        f" if (node.mode === 2) node.mode = 0; else if (/{parts}/.test(node.type)) node.mode = 2"
    )
    return press_run(comfy, page)


def test_help_pages_are_served(comfy, page):
    for name in (node for node in comfy.object_info() if node.startswith("SanaStreaming")):
        text = page.evaluate(f"fetch('/extensions/sana-streaming/docs/{name}.md').then(f => f.ok ? f.text() : '')")
        assert text == (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_the_page_speaks_other_languages(comfy, language):
    content = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    with opened(comfy, language) as page:
        load(page, "edit_in_stages")
        shown = page.evaluate(
            "(app.rootGraph ?? app.graph).nodes.map(n => [n.type, n.title, (n.widgets ?? []).map(w => [w.name, w.label])])"
        )
    for kind, title, widgets in shown:
        if kind in content:
            assert title == content[kind]["display_name"]
            labels = {name: label for name, label in widgets if name in content[kind]["inputs"]}
            assert labels == {name: content[kind]["inputs"][name]["name"] for name in labels}
