"""Puts what the three runs of ``make nano`` made into the package: ``python -m ...training.nano out/nano VERSION``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ..weights.nano import FOLDER, write_manifest
from ..weights.nano_text import make_nano_text_encoder
from .edit_training import MODEL_FOLDER
from .vae_training import VAE_FOLDER


def install(runs: Path, version: str, folder: Path = FOLDER) -> None:
    """Copies the results of the runs ``vae`` and ``crr`` in ``runs``; makes the text encoder and the manifest."""
    for result, name in ((runs / "crr" / MODEL_FOLDER, "dit"), (runs / "vae" / VAE_FOLDER, "vae")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in result.iterdir():
            # The contents alone: run folders are private to whoever trained.
            shutil.copyfile(file, folder / name / file.name)
    make_nano_text_encoder(folder / "text_encoder")
    write_manifest(folder, version)


if __name__ == "__main__":
    install(Path(sys.argv[1]), sys.argv[2])
