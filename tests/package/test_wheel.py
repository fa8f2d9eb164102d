"""The wheel, built and installed into an empty environment, works from another folder."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import clips
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "sana_streaming/sana_core/cli.py" in names
    assert "sana_streaming/kernels/gdn/README.md" in names
    assert "sana_streaming/nodes/__init__.py" in names
    page = {f"sana_streaming/sana_core/live/page/{name}" for name in ("index.html", "live.js", "live.css")}
    assert page <= set(names)
    for folder in ("workflows", "web", "locales"):
        files = {f"sana_streaming/{file.relative_to(ROOT)}" for file in (ROOT / folder).rglob("*") if file.is_file()}
        assert files, folder
        assert files <= set(names)
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "sana_core/nano").rglob("*") if path.is_file()]
    assert {f"sana_streaming/{file}" for file in files} <= set(names)
    assert "sana_core/nano/text_encoder/tokenizer.json" in files
    assert not [name for name in names if "tests" in name or "golden" in name]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sana_streaming"}
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert not [line for line in required if "extra ==" not in line]
    assert not [line for line in required if line.startswith("Requires-Dist: torch")]


@pytest.mark.nano
@pytest.mark.slow
def test_installed_wheel_runs(wheel, tmp_path):
    """The environment holds the wheel alone; third-party packages are lent to it by path, the source tree is not."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True, symlinks=os.name != "nt")
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    # A .pth line would also run the editable install's own finder, so the folders are named instead.
    lent = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    variables = {**os.environ, "PYTHONPATH": lent, "SANA_STREAMING_CACHE": str(tmp_path / "cache")}

    def run(*arguments):
        command = [python, "-m", "sana_streaming", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=variables, cwd=tmp_path)

    where = "import sana_streaming; print(sana_streaming.__file__)"
    located = subprocess.run(
        [python, "-c", where], check=True, capture_output=True, text=True, env=variables, cwd=tmp_path
    )
    assert Path(located.stdout.strip()).is_relative_to(environment)
    assert len(json.loads(run("inspect", "streaming-2b", "--json").stdout)["keys"]) == 588
    clip = clips.clip("carphone_pristine.mp4")
    options = ["--height", 64, "--width", 64, "--max-frames", 9, "--steps", 1]
    run("toy", "toy")
    run("edit", clip, "toy.mp4", "--model", "toy", "--prompt", "make it snow", *options)
    run("edit", clip, "nano.mp4", "--prompt", "make it night", *options)
    for name in ("toy.mp4", "nano.mp4"):
        assert (tmp_path / name).stat().st_size > 500
