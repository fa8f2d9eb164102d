"""``train-vae``: a small causal VAE, on clips."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..training.config import read_vae_training
from .train import say, train_in_folder


def run(options: argparse.Namespace) -> int:
    config = read_vae_training(options.config, options.steps)

    def train(folder: Path, device: torch.device) -> Path:
        from ..training.vae_training import train_vae

        return train_vae(config, folder, device, log=say)

    return train_in_folder(options, train)
