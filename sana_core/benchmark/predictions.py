"""What fused operators will save, foretold from bytes before anyone measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..streaming.options import StreamOptions
from .accounting import REALISTIC, Card, chunk_stages
from .counts import total
from .registry import Row, all_rows
from .sizes import SIZES, Size
from .traffic import eager_traffic

EAGER, FUSED = "eager", "triton"
CONVOLUTION = "aten.convolution"


@dataclass(frozen=True)
class Prediction:
    """Bytes of all calls in a chunk, in plain PyTorch and fused, of what a row of the benchmark measures one call of."""

    row: str
    what: str
    calls: int
    eager_bytes: int
    fused_bytes: int

    def saved_seconds(self, card: Card) -> float:
        """Per chunk, at the assumed share of the memory's peak. Launches and waiting for each other come on top."""
        return (self.eager_bytes - self.fused_bytes) / (card.memory * REALISTIC.bytes)

    def measured_ms(self, results: Mapping[str, Any], size: Size) -> float | None:
        """What a chunk was seen to save in the results of a device; None where the row lacks either form."""
        timings = results["rows"].get(f"{self.row}@{size.name}", {}).get("timings", {})
        if not {EAGER, FUSED} <= timings.keys():
            return None
        saved: float = timings[EAGER]["median_ms"] - timings[FUSED]["median_ms"]
        return self.calls * saved


def predictions(size: Size = SIZES["704x1280"]) -> tuple[Prediction, ...]:
    """For a chunk in mid-stream. Of the VAE everything that is no convolution counts."""
    depth, softmax, passes = size.dit.depth, len(size.dit.softmax_layers), StreamOptions().passes(carry=True)
    per_pass = {
        "gdn_fused": depth - softmax,
        "qk_norm_rope": softmax,
        "mix_ffn_middle": depth,
        "norm_modulate": 2 * depth + 1,
        "gated_residual": 2 * depth,
    }
    operators = (_operator(name, number * passes, size) for name, number in per_pass.items())
    return (*operators, *(_vae(f"vae_{name}", name, size) for name in ("encode", "decode")))


def _operator(name: str, calls: int, size: Size) -> Prediction:
    row = _row(name)
    eager, work = eager_traffic(row, size)
    fused = sum(step.calls * step.bytes for step in work)
    return Prediction(name, row.what, calls, calls * eager.bytes, calls * fused)


def _vae(name: str, stage: str, size: Size) -> Prediction:
    eager, _ = eager_traffic(_row(name), size)
    parts = next(each.parts for each in chunk_stages(size) if each.name == stage)
    fused = total(part for part in parts if part.kind == "elementwise").bytes
    return Prediction(name, f"VAE {stage}: all but convolutions", 1, eager.bytes - eager.by_name[CONVOLUTION], fused)


def _row(name: str) -> Row:
    return next(row for row in all_rows() if row.name == name)
