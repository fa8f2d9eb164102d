"""docs/precision.md says what benchmarks/results hold, and what it says of formats and presets is so."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from sana_streaming.sana_core.config import DiTConfig, read_json
from sana_streaming.sana_core.precision.formats import FORMATS
from sana_streaming.sana_core.precision.plan import PRESETS, preset
from sana_streaming.sana_core.precision.report import unit_bytes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "precision.md"
RESULTS = ROOT / "benchmarks" / "results"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(header):
    """Cells of the table that begins with this cell, without markup."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    found = []
    for line in lines:
        if line.startswith(f"| {header} |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    return found
                found.append([cell.strip() for cell in row.strip("|").split("|")])
    pytest.fail(f"no table {header}")


def test_page_and_results_agree(tmp_path):
    page = tmp_path / "precision.md"
    shutil.copy(PAGE, page)
    script("precision_page").update_page(page, RESULTS)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run benchmarks/precision_page.py"
    text = PAGE.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert all((PAGE.parent / picture).is_file() for picture in pictures)
    assert {*pictures} == {str(path.relative_to(tmp_path)) for path in (tmp_path / "images").iterdir()}


def test_the_page_would_notice(tmp_path):
    page, results = tmp_path / "precision.md", tmp_path / "results" / "cpu"
    shutil.copy(PAGE, page)
    results.mkdir(parents=True)
    values = read_json(RESULTS / "cpu" / "precision.json")
    values["plans"]["fp8"]["free_run"]["edit_psnr"] += 1
    (results / "precision.json").write_text(json.dumps(values))
    script("precision_page").update_page(page, results.parent)
    assert page.read_text(encoding="utf-8") != PAGE.read_text(encoding="utf-8")


def test_a_device_without_the_formats_of_a_preset(tmp_path):
    """Hopper profiles neither nvfp4 nor mxfp8: the published plan has the time of its passes and no latency."""
    values = read_json(RESULTS / "cpu" / "precision.json")
    for name, row in values["plans"].items():
        row["pass"] = {"milliseconds": 1.0, "ratio": 1.0}
        row.pop("free_run", None)
        if name == "paper-mpq":
            kept = {key: row[key] for key in ("formats", "unit_bytes", "blocks", "pass")}
    values["plans"] = {**values["plans"], "paper-mpq": kept}
    page = script("precision_page")
    assert not any("paper-mpq" in line for line in page.findings(values))
    assert any(line.startswith("| paper-mpq | 2.92 | - |") for line in page.plan_table(values))
    files = tmp_path / "front.png", tmp_path / "map.png"
    assert page.draw(values, *files) == list(files) and all(file.is_file() for file in files)
    # Plans of which nothing but the time is known, as older results have them.
    values["plans"] = {name: row for name, row in values["plans"].items() if name not in page.MAPPED}
    values["plans"]["paper-mpq"] = {"pass": row["pass"]}
    files = tmp_path / "other.png", tmp_path / "no_map.png"
    assert page.draw(values, *files) == [files[0]] and not files[1].exists()
    assert "Formats by block" not in page.section(values, {"front": "x.png"})


def test_formats_are_as_listed():
    listed = {row[0]: row for row in rows("format")}
    assert list(listed) == list(FORMATS)
    for name, kind in FORMATS.items():
        assert float(listed[name][1]) == round(kind.bits(2240, 2240), 2)
        if name != "bf16":
            assert listed[name][3].removeprefix("compute capability ") == ".".join(map(str, kind.min_capability))


def test_presets_are_as_listed():
    config = DiTConfig()
    listed = {row[0]: row[2] for row in rows("preset")}
    assert list(listed) == list(PRESETS)
    assert listed == {name: f"{unit_bytes(preset(name, config), config) / 1e9:.2f} GB" for name in PRESETS}


@pytest.mark.nano
def test_what_was_measured_is_what_was_promised():
    """8 bits lose less than 1 dB, and no preset or uniform format beats the front."""
    values = read_json(RESULTS / "cpu" / "precision.json")
    base = values["plans"]["bf16"]["free_run"]["edit_psnr"]
    for name in ("fp8", "int8"):
        assert base - values["plans"][name]["free_run"]["edit_psnr"] < 1
    slack = 1 + 1e-5
    for name in ("bf16", *FORMATS.keys() - {"bf16"}, "paper-mpq"):
        plan = values["plans"][name]
        assert any(
            point["latency_ms"] <= plan["latency_ms"] * slack and point["error"] <= plan["error"] * slack
            for point in values["front"]
        ), name


def test_the_benchmark_runs_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    asked = ["precision.py", "--size", "toy", "--device", "cpu", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", asked)
    benchmark = script("precision")
    assert benchmark.main() == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"precision_toy.json", "precision_cpu_toy.json"}
    values = json.loads((tmp_path / "out" / "precision_toy.json").read_text())
    assert values["plans"]["bf16"]["pass"]["ratio"] == 1 and set(PRESETS) <= set(values["plans"])
    assert values["latency"]["source"]["kind"] == "measured" and values["latency"]["tokens"] == 72
    # The CPU has no product in nvfp4, so what is said of it is arithmetic.
    paper = values["plans"]["paper-mpq"]
    assert paper.keys() == {"formats", "unit_bytes", "blocks", "pass"}
    precision_page = script("precision_page")
    values |= {"date": "today", "torch": "2", "device": "CPU"}
    files = [tmp_path / name for name in ("front.png", "map.png")]
    drawn = precision_page.draw(values, *files)
    assert drawn == files
    text = precision_page.section(values, {"front": "front.png", "map": "map.png"})
    assert "in float32, 72 tokens:" in text and "1 calibration clip, chunks late" in text
    monkeypatch.setattr(sys, "argv", [*asked, "--minutes", "0", "--journal", str(tmp_path / "other.json")])
    assert benchmark.main() == 1
