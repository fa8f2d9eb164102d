"""``queue`` against stand-ins for ComfyUI on this machine: every job ends once, whatever breaks on the way."""

import json
import os
import re
import signal
import threading
import time

from fake_comfy import FakeComfy
from queue_work import GRAPH, Work
from sana_streaming.sana_core.queueing import batch


def test_every_clip_with_every_prompt(work, comfy, capsys):
    assert work.run(comfy) == 0
    work.check_results()
    row = work.rows()[0]
    assert row["output"] == "clip0__make-it-night.mp4"
    assert (row["server"], row["attempts"], row["seconds"], row["error"]) == (comfy.url, "1", "2.5", "")
    assert len(comfy.uploads) == 2, "each clip is sent once"
    printed = capsys.readouterr()
    assert printed.out == f"6 done, 0 failed: {work.out / 'results.csv'}\n"
    assert "2 clips x 3 prompts = 6 jobs" in printed.err
    assert re.search(r"\[6/6\] clip1.mp4, '.*': done in 2.5 s on http", printed.err)


def test_a_clip_that_the_server_has_is_not_sent_again(work, comfy):
    assert work.run(comfy) == 0
    work.out = work.folder / "again"
    assert work.run(comfy) == 0
    work.check_results()
    assert (len(comfy.ran), len(comfy.uploads)) == (12, 2)


def test_the_shortest_queue_is_chosen(work, pair):
    """One server is full of others' work: it gets nothing while the other one has less to do."""
    busy, idle = pair
    busy.foreign = [f"other {number}" for number in range(9)]
    assert work.run(busy, idle) == 0
    assert (len(busy.ran), len(idle.ran)) == (0, 6)


def test_two_servers_share(work, pair):
    def release(prompt):
        # Until each has one that runs and one that waits, nothing ends.
        pair[0].wait_for(lambda: sum(len(it.graphs) for it in pair) >= 4)
        for it in pair:
            it.hold.set()

    for it in pair:
        it.hold.clear()
        it.on_start = release
    assert work.run(*pair) == 0
    work.check_results()
    assert sum(len(it.ran) for it in pair) == 6 and all(len(it.ran) >= 2 for it in pair)


def test_a_server_killed_in_the_middle_loses_nothing(work, pair):
    dying, other = pair
    dying.hold.clear()
    dying.on_start = lambda prompt: dying.kill()
    assert work.run(dying, other) == 0
    work.check_results()
    assert len(other.ran) == 6
    assert sorted(row["attempts"] for row in work.rows()) == ["1"] * 4 + ["2"] * 2
    assert {row["server"] for row in work.rows()} == {other.url}


def hold_at(comfy, number):
    """The prompt of that number, from 1, begins but does not end."""

    def take(prompt):
        if len(comfy.ran) == number - 1:
            comfy.hold.clear()

    comfy.on_take = take


def test_the_only_server_restarts_in_the_middle(work, comfy, capsys):
    def restart(prompt):
        if len(comfy.ran) == 3:
            comfy.kill()
            time.sleep(0.3)
            comfy.hold.set()
            comfy.start()

    hold_at(comfy, 3)
    comfy.on_start = restart
    assert work.run(comfy) == 0
    work.check_results()
    assert len(comfy.ran) == 7
    err = capsys.readouterr().err
    assert f"{comfy.url} has gone away" in err and f"{comfy.url} is there" in err


def test_a_restart_that_nobody_notices(work, comfy):
    """The server is back before the first try to reach it, without what it had."""

    def restart(prompt):
        if len(comfy.ran) == 1:
            comfy.wait_for(lambda: len(comfy.queue) == 1)
            comfy.kill()
            comfy.hold.set()
            comfy.start()

    hold_at(comfy, 1)
    comfy.on_start = restart
    assert work.run(comfy) == 0
    work.check_results()
    assert [row["error"] for row in work.rows()] == [""] * 6
    assert "failed" not in {event["event"] for event in work.events()}


def test_a_broken_websocket_costs_nothing(work, comfy):
    def drop(prompt):
        if len(comfy.ran) == 1:
            comfy.drop_sockets()
            time.sleep(0.2)
            comfy.hold.set()

    hold_at(comfy, 1)
    comfy.on_start = drop
    assert work.run(comfy) == 0
    work.check_results()
    assert [row["attempts"] for row in work.rows()] == ["1"] * 6


def test_without_messages_the_queue_is_looked_at(work, comfy):
    comfy.deaf = True
    assert work.run(comfy) == 0
    work.check_results()


def test_a_server_that_chooses_its_own_ids(work, comfy):
    comfy.own_ids = True
    assert work.run(comfy) == 0
    work.check_results()


def test_a_job_that_fails_is_tried_once_more_on_the_other_server(tmp_path, pair, capsys):
    """The other server has the longer queue, and is still the one."""
    work = Work(tmp_path, clips=1, prompts=("sepia",))
    failing, good = pair
    good.foreign = ["another's"] * 5
    failing.fail = lambda prompt: "CUDA is out\nof memory"
    assert work.run(failing, good) == 0
    work.check_results()
    assert (failing.ran, good.ran) == (["sepia"], ["sepia"])
    assert "tried once more: SanaStreamingEditVideo: CUDA is out of memory" in capsys.readouterr().err


def test_a_job_that_fails_twice_has_failed(work, comfy, capsys):
    comfy.fail = lambda prompt: "no such style" if prompt == "sepia" else None
    assert work.run(comfy) == 1
    rows = {(row["clip"], row["prompt"]): row for row in work.rows()}
    assert {key for key, row in rows.items() if row["status"] == "failed"} == {
        ("clip0.mp4", "sepia"),
        ("clip1.mp4", "sepia"),
    }
    row = rows["clip0.mp4", "sepia"]
    assert (row["attempts"], row["output"], row["error"]) == ("2", "", "SanaStreamingEditVideo: no such style")
    assert comfy.ran.count("sepia") == 4
    assert capsys.readouterr().out.startswith("4 done, 2 failed: ")
    comfy.fail = lambda prompt: None
    assert work.run(comfy) == 0
    work.check_results()
    assert len(comfy.ran) == 10, "the second run does what failed, and nothing else"


def test_a_refused_clip_and_a_workflow_that_saved_nothing(work, comfy):
    comfy.refuse = "file: 'clip.mp4'"
    assert work.run(comfy) == 1
    assert {row["error"] for row in work.rows()} == {"LoadVideo: Value not in list file: 'clip.mp4'"}
    comfy.refuse, comfy.save = "", False
    assert work.run(comfy) == 1
    assert {row["error"] for row in work.rows()} == {"the workflow saved no file; it needs a node such as Save Video"}


def test_a_job_that_takes_its_server_down_does_not_do_so_for_ever(tmp_path, comfy):
    work = Work(tmp_path, clips=1, prompts=("fine", "deadly", "good"))

    def take(prompt):
        comfy.hold.clear() if prompt == "deadly" else comfy.hold.set()

    def die(prompt):
        if prompt == "deadly":
            # By then the answer to its /prompt has arrived.
            time.sleep(0.05)
            comfy.kill()
            comfy.start()

    comfy.on_take, comfy.on_start = take, die
    assert work.run(comfy) == 1
    assert comfy.ran.count("deadly") == batch.MAX_LOSSES
    assert [row["status"] for row in work.rows()] == ["done", "failed", "done"]
    assert "went away 3 times while it ran" in work.rows()[1]["error"]


def test_ctrl_c_takes_back_what_is_ours_and_the_next_run_goes_on(work, comfy, capsys):
    def stop(prompt):
        if len(comfy.ran) == 3:
            comfy.foreign = ["another's"]
            comfy.wait_for(lambda: len(comfy.queue) == 1)
            os.kill(os.getpid(), signal.SIGINT)

    hold_at(comfy, 3)
    comfy.on_start = stop
    assert work.run(comfy) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"
    assert (len(comfy.interrupted), len(comfy.deleted)) == (1, 1)
    assert comfy.foreign == ["another's"]
    assert [row["status"] for row in work.rows()] == ["done"] * 2 + ["waiting"] * 4
    comfy.hold.set()
    comfy.on_take = comfy.on_start = lambda prompt: None
    comfy.foreign = []
    assert work.run(comfy) == 0
    work.check_results()
    assert len(comfy.ran) == 7
    assert "6 jobs, 2 of them done before" in capsys.readouterr().err


def cut_after(work, event, count):
    """Leaves of the journal what a run that died after the ``count``-th such event had written, and half a line more."""
    file = work.out / "results.journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if json.loads(line)["event"] == event]
    end = places[count - 1] + 1
    file.write_text("".join(lines[:end]) + lines[end][:20])


def test_a_run_that_died_goes_on_with_what_the_server_has(work, comfy):
    assert work.run(comfy) == 0
    cut_after(work, "queued", 4)
    assert work.run(comfy) == 0
    work.check_results()
    assert len(comfy.ran) == 8, "the four that were queued are taken from the server"
    assert [row["attempts"] for row in work.rows()] == ["1"] * 6


def test_what_runs_elsewhere_is_cancelled_when_the_server_is_back(tmp_path, pair):
    """A server that could not be reached still has a job that another one has done since."""
    work = Work(tmp_path, clips=1, prompts=("make it night",))
    first, second = pair
    first.hold.clear()
    second.hold.clear()
    lost = {}

    def cut_off(prompt):
        lost["prompt"] = first.running
        first.kill()
        second.wait_for(lambda: second.ran == ["make it night"])
        first.running = None
        first.queue = []
        first.foreign = [lost["prompt"][0]]
        first.start()
        second.wait_for(lambda: bool(first.deleted))
        second.hold.set()

    first.on_start = cut_off
    assert work.run(first, second) == 0
    work.check_results()
    assert first.deleted == [lost["prompt"][0]]


def test_a_finished_batch_asks_no_server(work, comfy):
    assert work.run(comfy) == 0
    comfy.kill()
    assert work.run(comfy) == 0
    (work.out / "clip0__sepia.mp4").unlink()
    comfy.start()
    assert work.run(comfy) == 0
    assert comfy.ran.count("sepia") == 3 and len(comfy.ran) == 7


def test_no_server_for_long(work, comfy, capsys):
    comfy.hold.clear()
    comfy.on_start = lambda prompt: comfy.kill()
    assert work.run(comfy, options=["--server-wait", "0.5"]) == 1
    assert capsys.readouterr().out == f"0 done, 0 failed, 6 left: {work.out / 'results.csv'}\n"
    comfy.hold.set()
    comfy.on_start = lambda prompt: None
    comfy.start()
    assert work.run(comfy) == 0
    work.check_results()


def test_the_only_server_comes_within_the_wait_that_was_asked_for(work, comfy, capsys):
    comfy.kill()
    timer = threading.Timer(0.5, comfy.start)
    timer.start()
    assert work.run(comfy, options=["--server-wait", "20"]) == 0
    timer.join()
    work.check_results()
    assert capsys.readouterr().err.count("no server answers yet: ") == 1


def test_no_server_within_the_wait_that_was_asked_for(work, comfy, capsys):
    comfy.kill()
    assert work.run(comfy, options=["--server-wait", "0.5"]) == 2
    yet, end = capsys.readouterr().err.splitlines()[-2:]
    assert yet == f"no server answers yet: {comfy.url} (Connection refused); it is waited for"
    assert (
        end == f"error: no server answers: {comfy.url} (Connection refused); start ComfyUI there, or correct --server"
    )


def test_a_server_that_comes_late(work, comfy):
    with FakeComfy() as late:
        late.kill()
        comfy.on_start = lambda prompt: late.start() if len(comfy.ran) == 1 else None
        comfy.hold.clear()
        late.on_start = lambda prompt: comfy.hold.set()
        assert work.run(comfy, late) == 0
        work.check_results()
        assert late.ran


def test_header_password_and_seed(work, comfy):
    comfy.header = "Authorization: Basic dXNlcjpzZWNyZXQ="
    assert work.run(comfy.url.replace("//", "//user:secret@"), options=["--seed", "18"]) == 0
    assert {graph["6"]["inputs"]["seed"] for graph in comfy.graphs} == {18}
    for file in ("results.csv", "results.journal.jsonl"):
        assert "secret" not in (work.out / file).read_text()
    comfy.header = "X-Key: abc"
    work.out = work.folder / "again"
    assert work.run(comfy, options=["--header", "X-Key: abc"]) == 0
    work.check_results()


def test_places_that_are_named(work, comfy):
    graph = GRAPH | {"14": {"class_type": "SanaStreamingPrompt", "inputs": {"prompt": "second"}}}
    work.workflow.write_text(json.dumps(graph))
    assert work.run(comfy, options=["--prompt-input", "14.prompt", "--video-input", "5.file"]) == 0
    assert {graph["4"]["inputs"]["prompt"] for graph in comfy.graphs} == {"of the file"}
    assert {graph["14"]["inputs"]["prompt"] for graph in comfy.graphs} == {"make it night", "make it snow", "sepia"}
