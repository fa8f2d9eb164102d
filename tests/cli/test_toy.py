import pytest
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.weights.dit import read_dit


def refused(capsys, *arguments):
    assert main(["toy", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


def test_a_bundle_is_written_and_named(capsys, tmp_path):
    assert main(["toy", str(tmp_path / "new" / "toy"), "--seed", str(2**64 - 1)]) == 0
    assert sorted(path.name for path in (tmp_path / "new" / "toy").iterdir()) == ["dit", "text_encoder", "vae"]
    assert f"--model {tmp_path / 'new' / 'toy'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "variant", "how"),
    [
        ("long_streaming", "streaming", "--model"),
        ("bidirectional_short", "bidirectional", "--mode bidirectional_short --model"),
    ],
)
def test_a_bundle_for_either_mode(capsys, tmp_path, mode, variant, how):
    assert main(["toy", str(tmp_path / "toy"), "--mode", mode]) == 0
    assert f"use it as {how} {tmp_path / 'toy'}" in capsys.readouterr().out
    assert read_dit(tmp_path / "toy")[1].variant == variant


def a_file(folder):
    (folder / "toy").write_text("in the way")


def a_file_above(folder):
    (folder / "toy").write_text("in the way")
    return folder / "toy" / "deeper"


def a_file_inside(folder):
    (folder / "toy").mkdir()
    (folder / "toy" / "vae").write_text("in the way")


def a_folder_in_place_of_weights(folder):
    (folder / "toy" / "dit" / "model.safetensors").mkdir(parents=True)


def a_name_that_no_disk_takes(folder):
    return folder / ("x" * 5000)


@pytest.mark.parametrize(
    "obstacle", [a_file, a_file_above, a_file_inside, a_folder_in_place_of_weights, a_name_that_no_disk_takes]
)
def test_a_place_that_cannot_be_written(capsys, tmp_path, obstacle):
    folder = obstacle(tmp_path) or tmp_path / "toy"
    message = refused(capsys, folder)
    assert str(folder) in message and "name another folder" in message


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range(capsys, tmp_path, seed):
    message = refused(capsys, tmp_path / "toy", "--seed", seed)
    assert f"--seed {seed}" in message and f"use 0 to {2**64 - 1}" in message
    assert not (tmp_path / "toy").exists()
