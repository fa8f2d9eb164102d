"""``queue``: what ComfyUI refuses, and what is refused before it is asked."""

import json

import pytest
from queue_work import GRAPH, Work
from sana_streaming.sana_core.cli import main


def refusal(number, *errors):
    return {"error": {"message": "refused"}, "node_errors": {number: {"class_type": "Size", "errors": list(errors)}}}


def custom(name, words=""):
    """As ComfyUI says it once for each input that the validator of a node has."""
    details = f"{name} - {words}" if words else name
    kind, message = "custom_validation_failed", "Custom validation failed for node"
    return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name}}


SIZE = refusal("6", *(custom(name, "width 100 - is not\na multiple of 32") for name in ("width", "height")))


def test_a_workflow_that_is_refused_ends_the_run(work, comfy, capsys):
    comfy.refuse = SIZE
    words = f"error: --server {comfy.url} refuses the workflow: Size: width 100 - is not a multiple of 32"
    assert refused(work, capsys, comfy) == words
    assert {row["status"] for row in work.rows()} == {"waiting"}
    assert {event["event"] for event in work.events()} == {"begin", "queued", "returned"}
    comfy.refuse = ""
    assert work.run(comfy) == 0
    work.check_results()


def test_a_workflow_without_outputs_ends_the_run(work, comfy, capsys):
    error = {"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": "", "extra_info": {}}
    comfy.refuse = {"error": error, "node_errors": {}}
    assert "refuses the workflow: the workflow saves nothing; add Save Video" in refused(work, capsys, comfy)


def test_a_refusal_that_may_be_of_one_job_fails_only_that(work, comfy):
    odd = refusal("4", custom("prompt", "no such style"), custom("negative_prompt", "no such style"), custom("prompt"))
    comfy.refusal_of = lambda graph: odd if graph["4"]["inputs"]["prompt"] == "sepia" else ""
    assert work.run(comfy) == 1
    assert [row["status"] for row in work.rows()] == ["done", "done", "failed"] * 2
    assert work.rows()[2]["error"] == "Size: no such style; Custom validation failed for node prompt"


def test_a_workflow_that_was_taken_once_does_not_end_the_run(work, comfy):
    comfy.refusal_of = lambda graph: SIZE if graph["5"]["inputs"]["file"].startswith("clip1") else ""
    assert work.run(comfy) == 1
    assert [row["status"] for row in work.rows()] == ["done"] * 3 + ["failed"] * 3


def test_a_workflow_that_one_server_refuses_is_done_by_the_other(work, pair):
    pair[0].refuse = SIZE
    assert work.run(*pair) == 0
    work.check_results()
    assert {row["server"] for row in work.rows()} == {pair[1].url}


def test_a_workflow_that_both_servers_refuse_ends_the_run(work, pair, capsys):
    for it in pair:
        it.refuse = SIZE
    assert "refuses the workflow: Size: width 100" in refused(work, capsys, *pair)


def refused(work, capsys, *servers, options=(), code=2):
    assert work.run(*servers, options=options) == code
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ")
    return err[-1]


def test_workflows_that_do_not_fit(work, capsys):
    def words(graph, *options):
        work.workflow.write_text(graph if isinstance(graph, str) else json.dumps(graph))
        return refused(work, capsys, "http://127.0.0.1:9", options=options)

    assert "the API needs the other format: Workflow > Export (API)" in words({"nodes": [], "links": []})
    assert "is not JSON" in words("{")
    assert "is not a workflow in API format" in words([1])
    two = GRAPH | {"9": GRAPH["4"]}
    assert "2 places: 4.prompt, 9.prompt; choose with --prompt-input" in words(two)
    assert (
        "no node LoadVideo or VHS_LoadVideo or VHS_LoadVideoFFmpeg; say where with --video-input NODE.INPUT; "
        "if it takes no clip, put a Load Video node in"
    ) in words({"4": GRAPH["4"]})
    assert "if it takes no prompt, put a SANA-Streaming Prompt node in" in words({"5": GRAPH["5"]})
    assert "no input 5.clip; it has 4.prompt, 4.negative_prompt, 5.file" in words(GRAPH, "--video-input", "5.clip")
    assert "6.seed is 3, not a text" in words(GRAPH, "--video-input", "6.seed")
    linked = GRAPH | {"4": {"class_type": "SanaStreamingPrompt", "inputs": {"prompt": ["9", 0]}}}
    assert "4.prompt comes from node 9" in words(linked)
    assert "are both 4.prompt" in words(GRAPH, "--video-input", "4.prompt")
    assert "--seed -1 is out of range" in words(GRAPH, "--seed", "-1")
    no_seed = {key: node for key, node in GRAPH.items() if key != "6"}
    assert "no node of" in words(no_seed, "--seed", "1")


def test_bad_input(work, comfy, capsys):
    for url in ("127.0.0.1:8188", "ftp://host", "http://", "http://host:99999999", "http://[::1", "http://host/?a=b"):
        assert f"--server {url} is not the address of a server" in refused(work, capsys, url)
    assert "is given twice" in refused(work, capsys, comfy, comfy)
    assert "--header 'X-Key' is not" in refused(work, capsys, comfy, options=["--header", "X-Key"])
    assert "--server-wait 0 is not a time" in refused(work, capsys, comfy, options=["--server-wait", "0"])
    clips = str(work.folder / "clips")
    assert "is the folder of the clips" in refused(work, capsys, comfy, options=["--output-dir", clips])
    empty = work.folder / "empty"
    empty.mkdir()
    assert "has no video file" in refused(work, capsys, comfy, options=["--video-dir", str(empty)])
    assert "cannot be read" in refused(work, capsys, comfy, options=["--video-dir", str(empty / "gone")])
    for name, text, words in (
        ("a.txt", "# nothing\n\n", "holds no prompt"),
        ("a.json", '{"a": 1}', "is not a list of texts"),
        ("b.json", "[", "is not JSON"),
    ):
        (work.folder / name).write_text(text)
        assert words in refused(work, capsys, comfy, options=["--prompts", str(work.folder / name)])
    assert not comfy.graphs


def test_servers_that_cannot_be_used(work, comfy, capsys):
    assert "no server answers: http://127.0.0.1:9 (Connection refused); start" in refused(
        work, capsys, "http://127.0.0.1:9", options=["--seed", "5"]
    )
    comfy.classes = ("LoadVideo", "SaveVideo")
    assert f"--server {comfy.url}: it has no node SanaStreamingEditVideo; install" in refused(work, capsys, comfy)
    comfy.header = "X-Key: abc"
    assert "HTTP 401 Unauthorized: it asks for a login; give one with --header" in refused(work, capsys, comfy)
    comfy.header = ""
    assert f"--server {comfy.url}/nowhere: HTTP 404 Not Found" in refused(work, capsys, f"{comfy.url}/nowhere")


def test_the_journal_is_of_one_workflow_and_one_run(work, comfy, capsys):
    assert work.run(comfy) == 0
    assert "is of another workflow or --seed" in refused(work, capsys, comfy, options=["--seed", "5"])
    journal = work.out / "results.journal.jsonl"
    whole = journal.read_text()
    journal.write_text(whole + "not json\n")
    assert f"line {len(whole.splitlines()) + 1} is not of a journal" in refused(work, capsys, comfy)


def test_the_journal_keeps_other_runs_out(work, comfy, capsys):
    pytest.importorskip("fcntl")
    comfy.hold.clear()
    seen = []

    def second_run(prompt):
        if not seen:
            seen.append(main(["queue", str(work.workflow), "--server", comfy.url, *options]))
            comfy.hold.set()

    options = ["--video-dir", f"{work.folder}/clips", "--prompts", str(work.prompts), "--output-dir", str(work.out)]
    comfy.on_start = second_run
    assert work.run(comfy) == 0
    assert seen == [2]
    assert "is in use by another run" in capsys.readouterr().err
    work.check_results()


def test_names_and_prompts(tmp_path, comfy):
    work = Work(tmp_path, clips=1)
    (tmp_path / "clips/clip0.MOV").write_bytes(b"another")
    (tmp_path / "clips/notes.txt").write_text("not a clip")
    (tmp_path / "clips/.hidden.mp4").write_text("not a clip either")
    work.prompts = tmp_path / "prompts.json"
    prompts = ["Make it night!", "make it NIGHT", "夜にする", "???", "make it night!", "# not a comment", "x" * 400]
    work.prompts.write_text(json.dumps([*prompts, prompts[0], " "]), encoding="utf-8")
    work.names = [(clip, prompt) for clip in ("clip0.MOV", "clip0.mp4") for prompt in prompts]
    assert work.run(comfy) == 0
    work.check_results()
    names = [row["output"] for row in work.rows()]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(name.encode()) < 255 for name in names)
    assert any("夜にする" in name for name in names)
