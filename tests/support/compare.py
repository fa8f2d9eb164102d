"""Comparisons that say where two tensors differ."""

import torch


def relative_rms(got: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    return ((got.double() - expected.double()).pow(2).mean().sqrt() / expected.double().pow(2).mean().sqrt()).item()


def assert_near(got: torch.Tensor, expected: torch.Tensor, atol: float, what: str = "") -> None:
    """Largest absolute difference at most ``atol``; NaN never passes."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    difference = (got.double() - expected.double()).abs()
    worst = difference.max().item()
    if not worst <= atol:
        index = torch.unravel_index(difference.nan_to_num(nan=float("inf")).argmax(), difference.shape)
        place = tuple(int(i) for i in index)
        raise AssertionError(
            f"{what}: differs by {worst:.3g} (atol {atol}) at {place}: {got[place]} != {expected[place]}"
        )
