import json
import os
import subprocess
import sys

import pytest
from sana_streaming.sana_core.cli import main
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
    assert "gone.pth does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_early(form):
    """As in ``inspect ... | head``: no complaint, and no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sana_streaming", "inspect", "streaming-2b", *form]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
