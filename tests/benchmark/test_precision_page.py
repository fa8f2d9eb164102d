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
    monkeypatch.setattr(
        sys, "argv", ["precision.py", "--size", "toy", "--device", "cpu", "--journal", str(tmp_path / "j.json")]
    )
    benchmark = script("precision")
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    (tmp_path / "out").mkdir()
    assert benchmark.main() == 0
    values = json.loads((tmp_path / "out" / "precision_toy.json").read_text())
    assert values["plans"]["bf16"]["pass"]["ratio"] == 1 and set(PRESETS) <= set(values["plans"])
    assert values["latency"]["source"]["kind"] == "measured"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--minutes", "0"])
    sys.argv[sys.argv.index("--journal") + 1] = str(tmp_path / "other.json")
    assert benchmark.main() == 1
