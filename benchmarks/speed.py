"""Every row of the benchmark on one device, into its results and into docs/performance.md.

    python benchmarks/speed.py [--device cuda] [--only NAME ...] [--again | --replace]

The same as `python -m sana_streaming bench --json benchmarks/results/<device>/bench.json`, then `page.py` and `accounting.py`.
A run that was cut short goes on where it was; --again measures rows anew that are there, --replace starts the file anew.
"""

from __future__ import annotations

import argparse

import accounting
import page
from common import RESULTS
from sana_streaming.sana_core.benchmark.results import device_slug
from sana_streaming.sana_core.cli import main as command_line
from sana_streaming.sana_core.commands.edit_networks import pick_device


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    existing = parser.add_mutually_exclusive_group()
    for name in ("--again", "--replace"):
        existing.add_argument(name, dest="existing", action="append_const", const=name, default=[])
    options = parser.parse_args()
    target = RESULTS / device_slug(pick_device(options.device)) / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    only = ["--only", *options.only] if options.only else []
    code = command_line(["bench", "--device", options.device, "--json", str(target), *only, *options.existing])
    if code == 0:
        for script in (page, accounting):
            script.update_page(page.ROOT / "docs" / "performance.md", RESULTS)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
