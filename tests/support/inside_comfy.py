"""Scripts that run in ComfyUI's own Python, beside its modules, without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_BEGIN = """
import importlib.util, json, sys
from pathlib import Path

comfy_dir, root, folder = sys.argv[1:]
sys.path.insert(0, comfy_dir)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.ops, comfy.utils, torch
spec = importlib.util.spec_from_file_location("pack", Path(root) / "__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
"""


def results_of(script: str, folder: Path) -> Any:
    """The JSON that ``script`` prints behind ``RESULTS``. It finds this checkout as ``pack``, and ``folder``."""
    command = [os.environ.get("COMFY_PYTHON", sys.executable), "-c", _BEGIN + script]
    command += [os.environ["COMFY_DIR"], str(ROOT), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULTS ")[1])
