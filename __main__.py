"""``python -m sana_streaming``."""

import sys

from .sana_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
