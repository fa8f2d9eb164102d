"""Every row of the benchmark on one device, into its results and into docs/performance.md.

    python benchmarks/speed.py [--device cuda] [--only NAME ...]

The same as `python -m sana_streaming bench --json benchmarks/results/<device>/bench.json`, then `python benchmarks/page.py`.
Without --only the file is started anew.
"""

from __future__ import annotations

import argparse

from common import RESULTS
from page import ROOT, update_page
from sana_streaming.sana_core.benchmark.results import device_slug
from sana_streaming.sana_core.cli import main as command_line
from sana_streaming.sana_core.commands.edit_networks import pick_device


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args()
    target = RESULTS / device_slug(pick_device(options.device)) / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    only = ["--only", *options.only] if options.only else ["--replace"]
    code = command_line(["bench", "--device", options.device, "--json", str(target), *only])
    if code == 0:
        update_page(ROOT / "docs" / "performance.md", RESULTS)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
