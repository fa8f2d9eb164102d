"""``precision profile`` and ``precision compare`` from the command line."""

import json

import pytest
from sana_streaming.sana_core.cli import build_parser, main
from sana_streaming.sana_core.precision.footage import NUM_FRAMES
from sana_streaming.sana_core.precision.free_running import EDITS
from sana_streaming.sana_core.precision.latency import TARGETS
from sana_streaming.sana_core.precision.plan import UNQUANTIZED, preset_names, read_plan
from sana_streaming.sana_core.precision.profile import QUANTIZED
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle

SMALL = ("--device", "cpu", "--scenes", "1", "--height", "64", "--width", "64", "--steps", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


def run(*arguments, code=0):
    assert main(["precision", *map(str, arguments)]) == code


@pytest.mark.slow
def test_profile_writes_a_plan_for_this_network(bundle, tmp_path, capfd):
    plan, chart, blocks = (tmp_path / name for name in ("plan.json", "front.png", "map.png"))
    asked = ("profile", plan, "--model", bundle, *SMALL, "--formats", "nvfp4")
    asked += ("--latency", "projected", "--sizes", "2b", "--max-latency", 0.25)
    journal = tmp_path / "plan.profile.json"
    run(*asked, "--chart", chart, "--map", blocks)
    said = capfd.readouterr()
    assert (
        "per pass of 2640 tokens in matrices of the 2B network, projected from the data sheet of RTX 5090" in said.out
    )
    assert "error 1/44" in said.err and "errs no more than" not in said.out
    assert "auto" in said.out and "Highs" not in said.out
    model = load_dit(bundle / "dit")
    found = read_plan(plan)
    found.check(model.config, model.fingerprint)
    assert set(found.formats.values()) == {"nvfp4"}
    measured = found.measurements
    assert measured["latency_ms"] <= 0.25 * measured["unquantized_latency_ms"] * (1 + 1e-6)
    assert chart.read_bytes().startswith(b"\x89PNG") and blocks.read_bytes().startswith(b"\x89PNG")

    # Another budget, and another size of frames, are answered by the journal beside the plan.
    kept = json.loads(journal.read_text())["sections"]
    run(*asked[:-1], 0.5)
    assert read_plan(plan).measurements["latency_ms"] > measured["latency_ms"]
    run(*asked[:-2], "--latency-size", "384x640")
    said = capfd.readouterr()
    assert "auto: the fastest plan that errs no more than nvfp4 in all matrices" in said.out
    assert read_plan(plan).measurements["latency"]["tokens"] == 3 * 12 * 20
    assert json.loads(journal.read_text())["sections"]["error"] == kept["error"]
    # Nobody asked for it without a chart.
    assert "bfloat16" in kept["check"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(journal.read_text()) | {"sections": {**kept, "check": {}}}))
    run(*asked[:-2], "--max-latency", 1, "--journal", other, "--map", blocks)
    assert "bfloat16" not in json.loads(other.read_text())["sections"]["check"]
    # Nothing is quantized within all the time, which is a map too.
    assert read_plan(plan).formats == {}
    run(*asked[:-1], 0.25)
    capfd.readouterr()

    rows = tmp_path / "rows.json"
    # The held-out clips are at their smallest here.
    few = ("--held-out", 1, "--edits", "sepia", "--frames", 9)
    run("compare", plan, "--model", bundle, *SMALL, *few, "--json", rows)
    said = capfd.readouterr()
    found = json.loads(rows.read_text())["rows"]
    assert list(found) == ["bf16", "rounding", "plan"] and found["plan"]["noise_power"] > 0
    assert "SQNR dB" in said.out and "plan: free run 1" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profile", "p.json", "--formats", "int9"), "no format is called int9"),
        (("profile", "p.json", "--latency", "projected", "--target", "tpu"), "targets are rtx4090"),
        (("profile", "p.json", "--journal", "p.json"), "are the same file"),
        (("profile", "p.json", *SMALL, "--latency-size", "60x64"), "height 60 is not a multiple of 8"),
        (("compare", "int9"), "precision int9 is neither a preset"),
        (("compare", "int8", "--edits", "snow"), "no edit is called snow; there are"),
        (("compare", "int8", "int8", "--scenes", "1", "--height", "64", "--width", "64"), "two plans are called int8"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=2)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_size_is_two_numbers(capsys):
    with pytest.raises(SystemExit):
        main(["precision", "profile", "p.json", "--latency-size", "720p"])
    assert "720p is no size; give HEIGHTxWIDTH in pixels, such as 704x1280" in capsys.readouterr().err


def test_help_names_what_there_is():
    actions = build_parser()._subparsers._group_actions[0].choices["precision"]._subparsers._group_actions[0].choices
    options = {(name, action.dest): action for name in ("profile", "compare") for action in actions[name]._actions}
    assert (
        ", ".join(QUANTIZED) in options["profile", "formats"].help and UNQUANTIZED in options["profile", "formats"].help
    )
    assert all(target in options["profile", "target"].help for target in TARGETS)
    assert ", ".join(preset_names()) in options["compare", "plans"].help
    assert " ".join(EDITS) in options["compare", "edits"].help
    assert options["compare", "frames"].default == NUM_FRAMES
    assert f"first {NUM_FRAMES} frames" in options["profile", "clip"].help
