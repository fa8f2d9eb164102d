"""Puts what the runs of ``make nano`` made into the package: ``python -m ...training.nano RUNS VERSION``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ..weights.nano import FOLDER, check_manifest, check_size, write_manifest
from ..weights.nano_text import make_nano_text_encoder
from .edit_training import MODEL_FOLDER
from .vae_training import VAE_FOLDER


def install(runs: Path, version: str, folder: Path = FOLDER) -> None:
    """Copies the results of the runs ``decoder`` and ``late`` in ``runs``; makes the text encoder and the manifest.

    Raises CheckpointError where all of it is larger than the package may be.
    """
    for result, name in ((runs / "late" / MODEL_FOLDER, "dit"), (runs / "decoder" / VAE_FOLDER, "vae")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in result.iterdir():
            # The contents alone: run folders are private to whoever trained.
            shutil.copyfile(file, folder / name / file.name)
    make_nano_text_encoder(folder / "text_encoder")
    write_manifest(folder, version)
    check_manifest(folder)
    check_size(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put a trained nano into the package.")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("version", help="of the trained files")
    options = parser.parse_args()
    install(options.runs, options.version)
