import json
import os
import subprocess
import sys

import pytest
import torch
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.state import StreamSettings, StreamState
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.toy import make_toy_bundle


@pytest.mark.parametrize(
    ("preset", "parameters", "q_shape"),
    [("streaming-2b", 2_259_529_648, [2240, 2240, 3]), ("bidirectional-2b", 2_159_177_648, [2240, 2240])],
)
def test_presets(capsys, preset, parameters, q_shape):
    assert main(["inspect", preset, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert len(described["keys"]) == 588
    assert described["parameters"] == parameters
    assert described["buffers"] == 484 * 2240 + 300 * 2304
    assert described["keys"]["blocks.19.attn.k.weight"] == q_shape
    assert described["config"]["softmax_layers"] == [3, 7, 11, 15, 19]


def test_a_file_as_text(capsys, tmp_path):
    make_toy_bundle(tmp_path)
    assert main(["inspect", str(tmp_path / "dit" / "model.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "hidden_size        224" in printed
    assert "blocks.3.attn.q.weight" in printed
    for folder in (tmp_path / "dit", tmp_path):
        assert main(["inspect", str(folder)]) == 0
        assert capsys.readouterr().out == printed


def test_what_is_not_there(capsys):
    assert main(["inspect", "gone.pth"]) == 2
    said = capsys.readouterr().err
    assert "gone.pth does not exist; give nano, streaming-2b, bidirectional-2b, or the path of" in said


def test_nano_is_checked_against_its_manifest(capsys, monkeypatch, tmp_path):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "model.safetensors").write_bytes(b"as it was")
    nano.write_manifest(tmp_path, "1")
    (tmp_path / "dit" / "model.safetensors").write_bytes(b"otherwise")
    monkeypatch.setattr(nano, "FOLDER", tmp_path)
    assert main(["inspect", "nano"]) == 2
    assert "does not describe dit/model.safetensors; install the package again" in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path):
    """A stream after its first chunk, with five frames waiting and a prompt to come."""
    options = StreamOptions(steps=2, seed=7)
    encoder = {"conv_in": torch.zeros(1, 2, 3), "conv_out": torch.zeros(4, dtype=torch.bfloat16)}
    state = StreamState(
        StreamSettings(64, 96, None, vae="abc", vae_dtype="bfloat16", options=options, decoder="causal"),
        encoder=encoder,
        waiting=torch.zeros(5, 3, 64, 96),
        frames_in=38,
        frames_out=33,
        prompt="make it night",
        schedule=((0, "make it night"), (90, "make it sepia")),
        schedule_place=1,
    )
    path = tmp_path / "stream.state"
    state.save(path)
    return path


def test_a_saved_stream(capsys, saved):
    assert main(["inspect", str(saved), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    wanted = {"height": 64, "width": 96, "total_frames": None, "vae": "abc", "decoder": "causal", "steps": 2, "seed": 7}
    assert {name: described["stream"][name] for name in wanted} == wanted
    assert "options" not in described["stream"]
    wanted = {"frames_in": 38, "frames_out": 33, "frames_waiting": 5, "chunks": 0, "finished": False}
    wanted |= {
        "prompt": "make it night",
        "prompts_to_come": [[90, "make it sepia"]],
        "bytes": 24 + 8 + 4 * 5 * 3 * 64 * 96,
    }
    assert {name: described[name] for name in wanted} == wanted
    assert described["keys"]["encoder.conv_in"] == [1, 2, 3] and len(described["keys"]) == 3


def test_a_saved_stream_as_text(capsys, saved):
    assert main(["inspect", str(saved)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["height", "64"] in lines and ["bytes", "368,672"] in lines and ["encoder.conv_in", "[1, 2, 3]"] in lines


def test_a_damaged_stream_is_told(capsys, saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    assert main(["inspect", str(saved)]) == 2
    assert str(saved) in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_early(form):
    """As in ``inspect ... | head``: no complaint, and no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sana_streaming", "inspect", "streaming-2b", *form]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
