"""The matrices of the transformer that a precision plan can give a format, by name.

A unit is one matrix of one block, such as ``blocks.3.ffn.in``. Everything else always keeps the network's dtype: patch,
time and caption embedding, output layer, the gates alpha and beta of the delta rule, norms and the depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..config import DiTConfig
from ..models.attention import AttentionLayout

# What FUSED_MODULE holds, in the order of its rows.
FUSED_KINDS = ("self.q", "self.k", "self.v", "self.gate")
FUSED_MODULE = "attn.qkvg"


class UnitKind(NamedTuple):
    """A matrix that every block has.

    module: path in a block, which is also the release's name of the weight in the split layout.
    size: (rows N, columns K) of a config. bias: whether it has one. per_prompt: it runs once per prompt over L text tokens;
        the others run in every pass over the N tokens of a chunk.
    """

    module: str
    size: Callable[[DiTConfig], tuple[int, int]]
    bias: bool
    per_prompt: bool = False


def _square(config: DiTConfig) -> tuple[int, int]:
    return config.hidden_size, config.hidden_size


KINDS: dict[str, UnitKind] = {
    "self.q": UnitKind("attn.q", _square, bias=False),
    "self.k": UnitKind("attn.k", _square, bias=False),
    "self.v": UnitKind("attn.v", _square, bias=False),
    "self.gate": UnitKind("attn.output_gate", _square, bias=True),
    "self.o": UnitKind("attn.proj", _square, bias=True),
    "cross.q": UnitKind("cross_attn.q_linear", _square, bias=True),
    "cross.kv": UnitKind("cross_attn.kv_linear", lambda c: (2 * c.hidden_size, c.hidden_size), True, per_prompt=True),
    "cross.o": UnitKind("cross_attn.proj", _square, bias=True),
    "ffn.in": UnitKind("mlp.inverted_conv.conv", lambda c: (2 * c.mlp_width, c.hidden_size), bias=True),
    "ffn.out": UnitKind("mlp.point_conv.conv", lambda c: (c.hidden_size, c.mlp_width), bias=False),
    "ffn.temporal": UnitKind("mlp.t_conv", lambda c: (c.hidden_size, 3 * c.hidden_size), bias=False),
}


@dataclass(frozen=True)
class Unit:
    """One matrix [rows, columns] of one block: ``name`` in plans, ``module`` in the split layout."""

    block: int
    kind: str
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return f"blocks.{self.block}.{self.kind}"

    @property
    def module(self) -> str:
        return f"blocks.{self.block}.{KINDS[self.kind].module}"

    @property
    def parameters(self) -> int:
        return self.rows * self.columns

    def module_in(self, layout: AttentionLayout) -> str:
        """The module that holds the unit: in the fused layout q, k, v and gate are rows of one."""
        fused = layout == "fused" and self.kind in FUSED_KINDS
        return f"blocks.{self.block}.{FUSED_MODULE}" if fused else self.module


def block_units(config: DiTConfig, block: int) -> tuple[Unit, ...]:
    """The units of one block, in the order of `KINDS`."""
    return tuple(Unit(block, kind, *spec.size(config)) for kind, spec in KINDS.items())


def units(config: DiTConfig) -> tuple[Unit, ...]:
    """All units of a network, block after block."""
    return tuple(unit for block in range(config.depth) for unit in block_units(config, block))
