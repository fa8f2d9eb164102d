"""DPM-Solver++ for flow matching: the time grid and the steps of the bidirectional sampler.

Second order, multistep, data prediction (Lu et al. 2022, arXiv 2211.01095, algorithm 2) on the path x_t = (1 - t) data +
t noise: alpha = 1 - t, sigma = t. Knows tensors and times, no network. Source of the settings: ``docs/model.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import InputError

MIN_STEPS = 2
# The end of the unshifted grid: the cleanest time that the network was trained at.
LAST_UNIFORM_TIME = 0.001


def dpm_times(steps: int, shift: float = 8.0) -> tuple[float, ...]:
    """``steps + 1`` falling times from just below 1 to 0, exact float32 values; the network sees 1000 t.

    Evenly spaced from 0.999 to 0, then shifted by s t / (1 + (s - 1) t). Raises InputError for fewer than two steps.
    """
    if steps < MIN_STEPS:
        raise InputError(
            f"steps {steps} is too few; the second-order solver needs {MIN_STEPS} or more, 50 is the default"
        )
    uniform = 1 - torch.linspace(1, LAST_UNIFORM_TIME, steps + 1)
    times = shift * uniform / (1 + (shift - 1) * uniform)
    return tuple(times.flip(0).tolist())


def log_snr(time: float) -> float:
    """lambda = ln(alpha / sigma); infinite at time 0."""
    return math.log((1 - time) / time) if time else math.inf


def predict_data(x: torch.Tensor, velocity: torch.Tensor, time: float) -> torch.Tensor:
    """The clean latents that ``x`` at ``time`` and the velocity (noise minus data) amount to, float32.

    Formed directly: by way of predicted noise, (x - t n) / (1 - t), three digits are lost where 1 - t is 1e-4.
    """
    return x - time * velocity.float()


def dpm_step(
    x: torch.Tensor, data: torch.Tensor, previous: torch.Tensor | None, times: Sequence[float], step: int
) -> torch.Tensor:
    """``x`` at ``times[step + 1]``, from ``x`` and the data predicted at ``times[step]``.

    ``previous`` is the data predicted one step earlier. The first step has none and the last does not use it: both are of
    first order, and the last, to time 0, gives ``data`` itself.
    """
    time, next_time = times[step], times[step + 1]
    h = log_snr(next_time) - log_snr(time)
    if previous is not None and next_time > 0:
        ratio = (log_snr(time) - log_snr(times[step - 1])) / h
        data = data + (data - previous) / (2 * ratio)
    return next_time / time * x - (1 - next_time) * math.expm1(-h) * data
