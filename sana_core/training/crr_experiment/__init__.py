"""Does Cycle-Reverse Regularization help? A small experiment on synthetic latents (``docs/training.md``)."""
