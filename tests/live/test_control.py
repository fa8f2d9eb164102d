"""Messages: what is understood, what is refused, and that refusals say why in one line."""

import io
import json

import pytest
from live_streams import MemorySession, MemorySource
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.live.control import MAX_BYTES, Command, parse_command
from sana_streaming.sana_core.live.json_lines import JsonLines, answer


@pytest.mark.parametrize("verb", ["pause", "resume", "reset", "stop", "state"])
def test_verbs(verb):
    assert parse_command(json.dumps({"command": verb})) == Command(verb)
    assert parse_command(json.dumps({"command": verb, "id": "x"}).encode()) == Command(verb, id="x")


def test_settings():
    message = {"command": "set", "prompt": " make it snow\n", "steps": 2, "anchor_every": 0, "compare": "wipe", "id": 3}
    wanted = Command("set", prompt="make it snow", steps=2, anchor_every=0, compare="wipe", id=3)
    assert parse_command(json.dumps(message)) == wanted


@pytest.mark.parametrize(
    "message, said",
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_00, "no JSON"),
        ("[1]", "no object"),
        ("null", "no object"),
        ("{}", "command None"),
        ('{"command": ["set"]}', "command \\['set'\\]"),
        ('{"command": "shell"}', "command 'shell'"),
        ('{"command": "pause", "prompt": "x"}', "knows no 'prompt'"),
        ('{"command": "set"}', "sets nothing"),
        ('{"command": "set", "seed": 3}', "knows no 'seed'"),
        ('{"command": "set", "prompt": ""}', "prompt ''"),
        ('{"command": "set", "prompt": 5}', "prompt 5"),
        ('{"command": "set", "prompt": "a\\u0000b"}', "control characters"),
        (json.dumps({"command": "set", "prompt": "x" * 5000}), "prompt 'xxx"),
        ('{"command": "set", "steps": 0}', "steps 0"),
        ('{"command": "set", "steps": 101}', "steps 101"),
        ('{"command": "set", "steps": true}', "steps True"),
        ('{"command": "set", "steps": 2.5}', "steps 2.5"),
        ('{"command": "set", "anchor_every": -1}', "anchor_every -1"),
        ('{"command": "set", "compare": "mirror"}', "compare 'mirror'"),
        ('{"command": "set", "compare": {}}', "compare {}"),
        ('{"command": "pause", "id": {}}', "id {}"),
        ('{"command": "pause", "id": true}', "id True"),
        (json.dumps({"command": "set", "prompt": "x" * MAX_BYTES}), "too long"),
        (b"\xff\xfe{", "no JSON"),
    ],
)
def test_refusals_say_why_in_one_line(message, said):
    with pytest.raises(InputError, match=said) as refusal:
        parse_command(message)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250


def test_json_lines_answer_each_command_and_go_on_after_nonsense():
    output = io.StringIO()
    lines = [
        '{"command": "state", "id": 1}',
        "nonsense",
        "",
        "\xff\xfe",
        "x" * (3 * MAX_BYTES),
        '{"command": "set", "prompt": "b", "id": 2}',
        '{"command": "stop", "id": "last"}',
    ]
    with MemorySession(MemorySource()) as session:
        JsonLines(output).listen(session, io.BytesIO("\n".join([*lines, ""]).encode("latin-1")))
        session.join()
    answers = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [(answer["type"], answer.get("id")) for answer in answers] == [
        ("state", None),
        ("error", None),
        ("error", None),
        ("error", None),
        ("accepted", 2),
        ("accepted", "last"),
    ]
    assert answers[0]["status"] in ("connecting", "running") and answers[0]["prompt"] == "a"
    assert "no JSON" in answers[2]["message"] and "too long" in answers[3]["message"]


def test_a_command_that_fails_is_refused_and_the_control_goes_on(monkeypatch, caplog):
    with MemorySession(MemorySource()) as session:
        monkeypatch.setattr(session.prompts, "prepare", lambda prompt: 1 / 0)
        reply = answer(session, '{"command": "set", "prompt": "b", "id": 7}')
        assert reply == {"type": "error", "message": "division by zero", "id": 7}
        assert answer(session, '{"command": "pause"}')["type"] == "accepted"
    assert "the command 7 failed" in caplog.text
