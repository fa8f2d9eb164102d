"""How long the units take: a table by shape and format, measured on this device or projected from a data sheet.

Input quantization counts: with a unit that reads its input alone it is part of the product's time, and units that share an
input and a format pay it once. Which of the two ways a table was made in is written in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..benchmark.accounting import BF16_BYTES, CARDS, REALISTIC
from ..benchmark.results import header
from ..benchmark.timing import Clock, Run, Timing, time_in_turns
from ..config import DiTConfig
from ..errors import InputError
from ..models.attention import AttentionLayout
from ..streaming.chunks import CHUNK_LATENTS
from .apply import linear_of, quantized
from .formats import FORMATS, kitchen_backends, kitchen_version
from .layer import QuantLinear
from .plan import UNQUANTIZED, Plan
from .probe import on_device
from .units import FUSED_KINDS, KINDS, Unit, block_units

# Passes that one prompt serves: five for each of the 40 chunks of a one-minute clip.
PASSES_PER_PROMPT = 200
# Largest value of the random inputs; the time does not depend on it.
_AMAX = 6.0
# Latent pixels of a frame as the released networks are trained, and as smaller ones here are.
_RELEASED_PIXELS, _SMALL_PIXELS = 22 * 40, 20 * 32


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one matrix in one format: ``linear`` from a plain input, or ``product`` after ``quantize``.

    road: ``fast`` in the format, or ``dequantized``. spread: interquartile range of ``linear``, 0 for a projection.
    Formats that quantize inside their product share nothing: ``quantize`` is 0.
    """

    linear: float
    product: float
    quantize: float = 0.0
    road: str = "fast"
    spread: float = 0.0


@dataclass(frozen=True)
class LatencyTable:
    """Latencies by :func:`key`, and where they are from.

    source: ``kind`` is ``measured`` or ``projected``; ``sizes``, of a profile's, is ``2b`` where the matrices are the 2B
        network's in place of the profiled one's own; the rest says on what, or from which numbers.
    tokens: M of the units of every pass. text_tokens: M of those of every prompt.
    """

    tokens: int
    text_tokens: int
    entries: Mapping[str, Latency]
    source: Mapping[str, Any] = field(default_factory=dict)

    def of(self, rows: int, columns: int, kind: str, *, per_prompt: bool = False) -> Latency:
        """Of a weight [rows, columns]; KeyError where the table has none."""
        return self.entries[key(self.text_tokens if per_prompt else self.tokens, rows, columns, kind)]

    def unit(self, unit: Unit, kind: str) -> float:
        """Milliseconds per pass of a unit that reads its input alone."""
        per_prompt = KINDS[unit.kind].per_prompt
        found = self.of(unit.rows, unit.columns, kind, per_prompt=per_prompt).linear
        return found / PASSES_PER_PROMPT if per_prompt else found

    def formats(self) -> tuple[str, ...]:
        """All that the table knows, in the order of `FORMATS`."""
        known = {entry.rpartition("/")[2] for entry in self.entries}
        return tuple(name for name in FORMATS if name in known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        entries = {name: Latency(**entry) for name, entry in values["entries"].items()}
        return cls(values["tokens"], values["text_tokens"], entries, values["source"])


def key(tokens: int, rows: int, columns: int, kind: str) -> str:
    """Of an input [M, K] times a weight [N, K]: ``MxNxK/format``."""
    return f"{tokens}x{rows}x{columns}/{kind}"


def _parsed(name: str) -> tuple[int, int, int, str]:
    """The inverse of :func:`key`."""
    size, _, kind = name.partition("/")
    tokens, rows, columns = (int(part) for part in size.split("x"))
    return tokens, rows, columns, kind


def plan_latency(plan: Plan, config: DiTConfig, table: LatencyTable) -> float:
    """Milliseconds per pass of all units of a network of ``config`` under ``plan``, in the layout that it takes."""
    layout = plan.layout(config)
    return sum(_block_latency(plan, config, block, layout, table) for block in range(config.depth))


def _block_latency(plan: Plan, config: DiTConfig, block: int, layout: AttentionLayout, table: LatencyTable) -> float:
    inside = block_units(config, block)
    alone = sum(table.unit(unit, plan.format_of(unit)) for unit in inside if unit.kind not in FUSED_KINDS)
    shared = [unit for unit in inside if unit.kind in FUSED_KINDS]
    kinds = [plan.format_of(unit) for unit in shared]
    first = shared[0]
    if layout == "fused":
        return alone + table.of(fused_rows(shared), first.columns, kinds[0]).linear
    products = sum(table.of(unit.rows, unit.columns, kind).product for unit, kind in zip(shared, kinds, strict=True))
    inputs = sum(table.of(first.rows, first.columns, kind).quantize for kind in dict.fromkeys(kinds))
    return alone + products + inputs


def fused_rows(shared: Iterable[Unit]) -> int:
    return sum(unit.rows for unit in shared)


def trained_tokens(config: DiTConfig) -> int:
    """M of a chunk at the size that a network of ``config`` is for: 704x1280 as released, nano's 160x256 for smaller ones."""
    return CHUNK_LATENTS * (_RELEASED_PIXELS if config.hidden_size >= DiTConfig().hidden_size else _SMALL_PIXELS)


def shapes(config: DiTConfig, tokens: int) -> list[tuple[int, int, int]]:
    """The distinct (M, N, K) of a network's units, with q, k, v and gate as one and as four."""
    inside = block_units(config, 0)
    shared = [unit for unit in inside if unit.kind in FUSED_KINDS]
    found = [(tokens, fused_rows(shared), shared[0].columns)]
    for unit in inside:
        rows = config.max_text_tokens if KINDS[unit.kind].per_prompt else tokens
        found.append((rows, unit.rows, unit.columns))
    return list(dict.fromkeys(found))


def needed(config: DiTConfig, tokens: int, kinds: Iterable[str]) -> list[str]:
    """Keys of the entries that a table of these formats has."""
    names = list(dict.fromkeys((UNQUANTIZED, *kinds)))
    return [key(*shape, kind) for shape in shapes(config, tokens) for kind in names]


# Measured.


def measure_entry(name: str, device: torch.device, dtype: torch.dtype, budget: float = 0.2) -> Latency:
    """The latency of a :func:`key` on ``device``, each call inside a CUDA graph there; the median of many, caches flushed.

    ``budget``: seconds for each of its parts. Inputs have a stored scale, as under a calibrated plan.
    """
    tokens, rows, columns, kind = _parsed(name)
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (
        torch.randn(n, columns, generator=generator, device=device).to(dtype).clamp_(-_AMAX, _AMAX)
        for n in (tokens, rows)
    )
    layer = linear_of(weight, None) if kind == UNQUANTIZED else quantized(weight, None, kind, _AMAX)
    runs: dict[str, Run] = {"linear": lambda: layer(x)}
    road = "fast"
    if isinstance(layer, QuantLinear):
        road = layer.road(x)
        if road == "fast" and not layer.kind.quantizes_inside:
            with on_device(device):
                runs |= _parts(layer, x)
    timings = timed(runs, device, budget)
    linear = timings["linear"]
    product, quantize = (1000 * timings[part].median if part in timings else None for part in ("product", "quantize"))
    total = 1000 * linear.median
    return Latency(total, total if product is None else product, quantize or 0.0, road, 1000 * linear.spread)


def _parts(layer: QuantLinear, x: torch.Tensor) -> dict[str, Run]:
    """Quantizing the input, and the product with what it gives."""
    weight, scale = layer.quantized_weight, layer.input_scale
    assert scale is None or isinstance(scale, torch.Tensor)
    value = layer.kind.quantize_input(x, scale)
    return {
        "quantize": lambda: layer.kind.quantize_input(x, scale),
        "product": lambda: layer.kind.product(value, weight, None),
    }


@torch.no_grad()
def timed(runs: Mapping[str, Run], device: torch.device, budget: float) -> dict[str, Timing]:
    """Timings of runs in turns, with flushed caches, on a GPU each as one CUDA graph. ``budget``: seconds for each."""
    with on_device(device):
        ready = {name: graphed(run) if device.type == "cuda" else run for name, run in runs.items()}
        for run in ready.values():
            run()
        return time_in_turns(ready, Clock(device, flush=True), budget)


def graphed(run: Run) -> Run:
    """``run`` as one CUDA graph on the current device, after calls that let kernels compile and be chosen."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run()

    def replay(held: object = held) -> None:
        # What the graph writes to is held for as long as it can be replayed.
        graph.replay()

    return replay


def measured_source(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a measured table says of itself."""
    how = "CUDA graph, caches flushed, median" if device.type == "cuda" else "caches flushed, median"
    made_with = {
        "dtype": str(dtype).removeprefix("torch."),
        "comfy_kitchen": f"{kitchen_version()} {kitchen_backends()}",
    }
    return {"kind": "measured", "how": how, **made_with, **header(device)}


# Projected.


@dataclass(frozen=True)
class Target:
    """A card by its data sheet: operations per second by format, bytes per second of memory.

    A format that is not in ``rates`` has no product there and is dequantized.
    """

    name: str
    rates: Mapping[str, float]
    memory: float


def _target(name: str, **rates: float) -> Target:
    card = next(card for card in CARDS if card.name == name)
    by_format = {kind.name: rates[base] for kind in FORMATS.values() if (base := kind.name.partition("-")[0]) in rates}
    return Target(name, {UNQUANTIZED: card.bf16, **by_format}, card.memory)


# Dense, float32 sums (docs/precision.md); a rotated format has the products of the plain one.
TARGETS = {
    "rtx4090": _target("RTX 4090", fp8=330e12, int8=661e12),
    "rtx5090": _target("RTX 5090", fp8=419e12, int8=838e12, mxfp8=838e12, nvfp4=1676e12),
    "h100": _target("H100 SXM", fp8=1979e12, int8=1979e12),
}


def projected(config: DiTConfig, tokens: int, kinds: Iterable[str], target: str) -> LatencyTable:
    """A table from the data sheet of ``target``, at the shares of its peaks that `REALISTIC` assumes. Nothing is measured.

    Inputs are quantized by a kernel of their own that reads and writes each value once, and are rotated by another one before.
    InputError for another target.
    """
    if target not in TARGETS:
        raise InputError(f"no latencies can be projected for {target}; targets are {', '.join(TARGETS)}")
    card = TARGETS[target]
    entries = {}
    for name in needed(config, tokens, kinds):
        entries[name] = _projected(*_parsed(name), card)
    source = {
        "kind": "projected",
        "target": card.name,
        "operations_per_second": dict(card.rates),
        "bytes_per_second": card.memory,
        "assumed_share_of_operations": REALISTIC.of("matmul"),
        "assumed_share_of_bytes": REALISTIC.bytes,
        "network": config.to_dict() | {"softmax_layers": list(config.softmax_layers)},
    }
    return LatencyTable(tokens, config.max_text_tokens, entries, source)


def _projected(tokens: int, rows: int, columns: int, kind: str, card: Target) -> Latency:
    flops, item = 2 * tokens * rows * columns, BF16_BYTES
    plain, written = tokens * columns * item, tokens * rows * item
    weight = FORMATS[kind].num_bytes(rows, columns)

    def milliseconds(moved: float, done: float = 0.0, rate: float = 1.0) -> float:
        return 1000 * max(moved / (card.memory * REALISTIC.bytes), done / (rate * REALISTIC.of("matmul")))

    full = milliseconds(plain + rows * columns * item + written, flops, card.rates[UNQUANTIZED])
    if kind == UNQUANTIZED:
        return Latency(full, full)
    if kind not in card.rates:
        slow = full + milliseconds(weight + rows * columns * item)
        return Latency(slow, slow, road="dequantized")
    small = FORMATS[kind].num_bytes(tokens, columns)
    quantize = milliseconds(plain + small)
    if group := FORMATS[kind].rotation(columns):
        quantize += milliseconds(2 * plain, 2 * tokens * columns * group, card.rates[UNQUANTIZED])
    product = milliseconds(small + weight + written, flops, card.rates[kind])
    if FORMATS[kind].quantizes_inside:
        return Latency(quantize + product, quantize + product)
    return Latency(quantize + product, product, quantize)
