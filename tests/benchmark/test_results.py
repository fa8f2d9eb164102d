"""The file of results, the command, and the page that is made of it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from sana_streaming.sana_core.benchmark.results import Results, check_results, read_results
from sana_streaming.sana_core.benchmark.sizes import Bench
from sana_streaming.sana_core.benchmark.table import table, with_section
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.commands import bench as bench_command
from sana_streaming.sana_core.errors import InputError

ROOT = Path(__file__).parents[2]
BENCH = Bench.on(torch.device("cpu"))


def timing(median, baseline=False, **speedup):
    return {
        "median_ms": median,
        "iqr_ms": 0.5,
        "repeats": 9,
        "of_floor": 2.0 / median,
        "baseline": baseline,
        "speedup": speedup,
        "details": {},
    }


def record(row="gdn", size="704x1280", frames=0):
    return {
        "row": row,
        "size": size,
        "group": "operator",
        "what": "something",
        "formula": "all of it",
        "date": "2026-01-01",
        "frames": frames,
        "bytes": 1000,
        "flops": 4000,
        "steps": [{"bytes": 1000, "flops": 4000, "calls": 1}],
        "floor_ms": 2.0,
        "bound": "memory",
        "ceilings": {"copy_bytes_per_second": 5e8, "matmul_flops_per_second": 4e12},
        "timings": {"eager": timing(4.0, released=3.0), "released": timing(12.0, True, released=1.0)},
        "skipped": {"compiled": "no compiler"},
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "results" / "cpu" / "bench.json"
    path.parent.mkdir(parents=True)
    results = Results.open(BENCH, path)
    results.add(record())
    results.add(record("chunk", "384x640", frames=24))
    return path


def test_rows_are_added_and_replaced(file):
    again = Results.open(BENCH, file)
    assert list(again.rows) == ["gdn@704x1280", "chunk@384x640"]
    again.add({**record(), "flops": 1})
    assert [row["flops"] for row in read_results(file)["rows"].values()] == [1, 4000]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("key", ["device", "torch", "triton", "dtype", "seed"])
def test_rows_of_elsewhere_are_not_mixed_in(file, key):
    values = json.loads(file.read_text())
    values[key] = {"triton": None, "seed": 5}.get(key, "another")
    file.write_text(json.dumps(values))
    before = file.read_text()
    with pytest.raises(InputError, match=rf"holds rows of {key} .*this run is of {key} .*--replace"):
        Results.open(BENCH, file)
    assert file.read_text() == before
    assert Results.open(BENCH, file, replace=True).rows == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.pop("device"), "results have"),
        (lambda values: values.update(format=99), "format is 99"),
        (lambda values: values["rows"].update(x=record()), "row x says it is gdn@704x1280"),
        (lambda values: values["rows"]["gdn@704x1280"].update(flops="many"), "flops is 'many'"),
        (lambda values: values["rows"]["gdn@704x1280"].pop("ceilings"), "row gdn@704x1280 has"),
        (lambda values: values["rows"]["gdn@704x1280"]["timings"]["eager"].pop("iqr_ms"), "gdn@704x1280, eager"),
    ],
)
def test_the_schema_is_checked(file, change, said):
    values = json.loads(file.read_text())
    check_results(values, "file")
    change(values)
    with pytest.raises(InputError, match=said):
        check_results(values, "file")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "bench.json"
    for text in ("not json", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"bench\.json"):
            Results.open(BENCH, path)


def test_kept_results_are_of_this_form():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/bench.json")):
        assert read_results(path)["rows"]


def test_table(file):
    lines = table(read_results(file)).splitlines()
    assert lines[0].endswith("| frames/s | over released |")
    assert lines[2] == "| gdn | 704x1280 | eager | 4 | 0.5 | 2 (memory) | 50 % | - | 3.00x |"
    assert lines[3] == "| gdn | 704x1280 | *released* | 12 | 0.5 | 2 (memory) | 17 % | - | - |"
    assert lines[4] == "| chunk | 384x640 | eager | 4 | 0.5 | 2 (memory) | 50 % | 6,000 | 3.00x |"
    assert {line.count("|") for line in lines} == {10}


@pytest.fixture
def page_script():
    spec = importlib.util.spec_from_file_location("bench_page", ROOT / "benchmarks" / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page(file, page_script, tmp_path):
    other = tmp_path / "results" / "some-gpu" / "bench.json"
    other.parent.mkdir()
    values = {**json.loads(file.read_text()), "device": "Some GPU"}
    stages = {
        "stage_seconds_per_chunk": {"text": 0.0, "encode": 0.25},
        "first_chunk_seconds": 1.5,
        "peak_memory": {"resident": 3e9, "gpu": 2e9},
    }
    values["rows"]["chunk@384x640"]["timings"]["eager"]["details"] = stages
    other.write_text(json.dumps(values))
    page = tmp_path / "page.md"
    end = "<!-- speed: end -->"
    page.write_text(f"# Title\n\n{end}\n\nthe rest\n")
    page_script.update_page(page, tmp_path / "results")
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith(f"{end}\n\nthe rest\n")
    own, gpu = (text.index(f"<!-- speed: {slug} -->") for slug in ("cpu", "some-gpu"))
    assert own < gpu < text.index(end)
    assert "Some GPU" not in text[:gpu] and "Some GPU" in text[gpu:]
    assert table(values) in text[gpu:]
    assert "no compiler (gdn@704x1280, chunk@384x640)" in text
    line = "- chunk@384x640, eager, per chunk: encode 250 ms; first chunk after 1.50 s; peak GPU memory 2 GB"
    assert line not in text[:gpu] and line in text[gpu:]
    for slug in ("cpu", "some-gpu"):
        assert f"(images/roofline_{slug}.png)" in text
        assert (tmp_path / "images" / f"roofline_{slug}.png").read_bytes().startswith(b"\x89PNG")
    page_script.update_page(page, tmp_path / "results")
    assert page.read_text() == text


def test_the_page_of_the_repository_is_up_to_date(page_script):
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "<!-- speed: end -->" in text
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/bench.json")):
        slug = path.parent.name
        body = page_script.section(read_results(path), f"images/roofline_{slug}.png")
        assert with_section(text, "speed", slug, body) == text
        assert (ROOT / "docs" / "images" / f"roofline_{slug}.png").is_file()


def test_command(tmp_path, capsys):
    target = tmp_path / "out.json"
    assert main(["bench", "--device", "cpu", "--only", "norm_modulate", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    values = read_results(target)
    assert list(values["rows"]) == ["norm_modulate@256x448"]
    assert values["rows"]["norm_modulate@256x448"]["timings"].keys() == {"eager"}
    assert "compiled" in values["rows"]["norm_modulate@256x448"]["skipped"]
    assert table(values) in printed


def test_a_run_that_was_cut_short_goes_on(tmp_path, capsys, monkeypatch):
    """Rows that the file has are left alone; --again measures them in place, --replace begins with an empty file."""
    measured = []

    def run_rows(bench, pairs, results, log):
        for row, size in pairs:
            measured.append(f"{row.name}@{size.name}")
            results.add({**record(row.name, size.name), "what": f"run {len(measured)}"})

    monkeypatch.setattr(bench_command, "run_rows", run_rows)
    target = tmp_path / "bench.json"
    first = ["bench", "--device", "cpu", "--json", str(target), "--only"]
    names = ["gdn@704x1280", "pass@160x256"]

    def run(*arguments):
        measured.clear()
        assert main([*first, *arguments]) == 0
        return list(measured), {key: row["what"] for key, row in read_results(target)["rows"].items()}

    assert run("gdn") == (names[:1], {names[0]: "run 1"})
    capsys.readouterr()
    assert run("gdn", "pass") == (names[1:], {names[0]: "run 1", names[1]: "run 1"})
    assert "1 of 2 rows are in" in capsys.readouterr().out
    assert run("gdn", "pass") == ([], {names[0]: "run 1", names[1]: "run 1"})
    assert run("gdn", "pass", "--again") == (names, {names[0]: "run 1", names[1]: "run 2"})
    assert run("pass", "--replace") == (names[1:], {names[1]: "run 1"})


def test_command_lists_rows(capsys):
    assert main(["bench", "--list", "--device", "cpu"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"gdn", "pass", "end_to_end"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "gdm"], "--only gdm"),
        (["--device", "moon"], "--device moon"),
        (["--json", "/nowhere/there/x.json"], "there is no folder"),
    ],
)
def test_command_refuses(capsys, arguments, said):
    assert main(["bench", "--device", "cpu", *arguments]) == 2
    assert said in capsys.readouterr().err
