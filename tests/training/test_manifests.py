"""What both readers accept, and what they say to the rest."""

import json

import golden_files
import pytest
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training.manifests import MissingFileError, read_long_videos, read_pairs

LONG = {"prompt": "make it snow", "reverse_prompt": "remove the snow", "source_video": "videos/a.mp4"}
PAIR = {
    "id": "one",
    "shard": "shards/0.zip",
    "source_member": "a/source.mp4",
    "target_member": "a/target.npy",
    "prompt": "make it snow",
    "width": 640,
    "height": 352,
}
UNSAFE = [
    "/a.zip",
    "../a.zip",
    "x/../../a.zip",
    "x\\..\\a.zip",
    "C:\\a.zip",
    "C:a.zip",
    "\\a.zip",
    "//host/a.zip",
    "a\0b",
]


def make_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def folder(tmp_path):
    """The files that LONG and PAIR name, and one outside."""
    root = tmp_path / "data"
    for name in (LONG["source_video"], PAIR["shard"], "../outside.mp4"):
        make_file(root / name)
    return root


def write(folder, *rows, name="manifest.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.golden
def test_official_long_video_cases(tmp_path):
    for number, case in enumerate(golden_files.load_json("text/manifest_cases.json")["cases"]):
        root = tmp_path / str(number)
        root.mkdir()
        for name in case["existing_files"]:
            make_file(root / name)
        manifest = write(root, *case["lines"])
        if case["expect"] == "ok":
            got = [{key: getattr(record, key) for key in LONG} for record in read_long_videos(manifest)]
            assert got == case["records"]
            continue
        expected = {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError}[case["expect"]]
        with pytest.raises(expected) as caught:
            read_long_videos(manifest)
        assert isinstance(caught.value, FileNotFoundError) == (expected is FileNotFoundError)


def long_error(folder, row):
    with pytest.raises(InputError) as caught:
        read_long_videos(write(folder, "", LONG, row))
    return caught.value


def pair_error(folder, row, *before):
    write(folder, *before, row)
    with pytest.raises(InputError) as caught:
        read_pairs(folder)
    return caught.value


def test_long_video_record(folder, tmp_path):
    elsewhere = write(tmp_path, LONG, name="list.jsonl")
    (record,) = read_long_videos(elsewhere, data_root=folder)
    assert record.path == (folder / LONG["source_video"]).resolve()
    with pytest.raises(MissingFileError):
        read_long_videos(elsewhere)


def test_pair_record(folder):
    other = {**PAIR, "id": " two ", "extra": None}
    # A line separator of Unicode inside a string does not end the line.
    write(folder, json.dumps({**PAIR, "prompt": "snow\u2028please"}, ensure_ascii=False), "", other)
    first, second = read_pairs(folder)
    assert first.shard == (folder / PAIR["shard"]).resolve()
    assert (first.prompt, first.width, first.height) == ("snow\u2028please", 640, 352)
    assert (second.id, second.source_member, second.target_member) == ("two", "a/source.mp4", "a/target.npy")


@pytest.mark.parametrize("key", LONG)
@pytest.mark.parametrize("value", [None, "", " ", 3, ["a"]])
def test_long_video_fields(folder, key, value):
    row = {**LONG, key: value} if value is not None else {k: v for k, v in LONG.items() if k != key}
    error = str(long_error(folder, row))
    assert "line 3" in error
    assert key in error


@pytest.mark.parametrize("key", PAIR)
@pytest.mark.parametrize("value", [None, "", 2.5, True, 0])
def test_pair_fields(folder, key, value):
    row = {**PAIR, key: value} if value is not None else {k: v for k, v in PAIR.items() if k != key}
    error = str(pair_error(folder, row))
    assert "line 1" in error
    assert key in error
    assert "\n" not in error


@pytest.mark.parametrize("value", UNSAFE)
def test_paths_stay_inside(folder, value):
    errors = [long_error(folder, {**LONG, "source_video": value})]
    errors += [pair_error(folder, {**PAIR, key: value}) for key in ("shard", "source_member", "target_member")]
    for error in errors:
        assert not isinstance(error, FileNotFoundError)
        assert repr(value) in str(error)


def test_links_may_not_lead_outside(folder):
    (folder / "link.mp4").symlink_to(folder / "../outside.mp4")
    error = long_error(folder, {**LONG, "source_video": "link.mp4"})
    assert "leads outside" in str(error)
    assert not isinstance(error, FileNotFoundError)


def test_missing_files(folder, tmp_path):
    errors = [long_error(folder, {**LONG, "source_video": name}) for name in ("no.mp4", "videos")]
    errors.append(pair_error(folder, {**PAIR, "shard": "no.zip"}))
    for read in (lambda: read_pairs(tmp_path / "nowhere"), lambda: read_long_videos(tmp_path)):
        with pytest.raises(InputError) as caught:
            read()
        errors.append(caught.value)
    assert all(isinstance(error, FileNotFoundError) for error in errors)


def test_duplicate_ids(folder):
    error = str(pair_error(folder, {**PAIR, "id": "one "}, PAIR))
    assert "line 2" in error
    assert "'one'" in error


@pytest.mark.parametrize("text", [b"\xff\xfe{", b"\n \n", b"{", b"3", b'{"a": 1}x'])
def test_broken_manifests(folder, text):
    (folder / "manifest.jsonl").write_bytes(text)
    for read in (lambda: read_pairs(folder), lambda: read_long_videos(folder / "manifest.jsonl")):
        with pytest.raises(InputError, match="manifest.jsonl") as caught:
            read()
        assert "\n" not in str(caught.value)
