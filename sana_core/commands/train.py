"""``train``: a transformer or a LoRA for it, on pairs of clips."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import InputError
from ..training.config import read_edit_training
from .edit_networks import pick_device

RUNS = Path("runs")


def run(options: argparse.Namespace) -> int:
    config = read_edit_training(options.config, options.steps)

    def train(folder: Path, device: torch.device) -> Path:
        from ..training.edit_training import EditTraining

        return EditTraining(config, folder, device, log=say).run()

    return train_in_folder(options, train)


def train_in_folder(options: argparse.Namespace, train: Callable[[Path, torch.device], Path]) -> int:
    """Makes the run's folder, calls ``train`` with it and the device, and says what was made; the exit code."""
    from ..cli import EXIT_OK, EXIT_STOPPED

    device = pick_device(options.device)
    folder = run_folder(options)
    try:
        made = train(folder, device)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with the run in {folder}", file=sys.stderr)
        return EXIT_STOPPED
    print(f"wrote {made}")
    return EXIT_OK


def say(line: str) -> None:
    """Prints a line of progress at once, also into a pipe."""
    print(line, flush=True)


def run_folder(options: argparse.Namespace) -> Path:
    """The folder of checkpoints and results, made if absent."""
    folder: Path = options.folder or RUNS / options.config.stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror}); give --folder another one") from error
    return folder
