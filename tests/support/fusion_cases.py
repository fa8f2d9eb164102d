"""Inputs and truths of the fused norms and of the middle of the MixFFN, shared by their tests; as a script, those under
triton's interpreter.

The script prints one JSON object per case. It is a process of its own because triton reads TRITON_INTERPRET once.
"""

import contextlib
import json
from typing import NamedTuple

import compare
import gdn_cases
import torch
import torch.nn.functional as F
from sana_streaming.kernels import norms
from sana_streaming.kernels.mix_ffn import glu_depthwise, glu_depthwise_operator, triton_mix_ffn
from sana_streaming.kernels.norms import triton_norms
from sana_streaming.sana_core.models.mix_ffn import MixFFN
from sana_streaming.sana_core.weights.random_init import toy_configs

DTYPES = gdn_cases.DTYPES
# Largest RMS of the difference over RMS of the truth, which is formed from the inputs as rounded: one rounding of the output.
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}
# Large enough to be seen in float32.
EPS = 1e-2
HEAD_DIM = 112
# Free tokens before and behind the span that keys are written to.
SPARE = 3


class Rows(NamedTuple):
    """A call of every norm: B samples of T frames of S tokens of h heads. ``gpu_tiles``: in the tiles of a GPU."""

    heads: int
    tokens: int
    frames: int
    batch: int
    dtype: str
    gpu_tiles: bool = False

    @property
    def name(self) -> str:
        return f"h{self.heads}-S{self.tokens}-T{self.frames}-B{self.batch}-{self.dtype}" + "-gpu" * self.gpu_tiles


class Middle(NamedTuple):
    """A call of the middle of the MixFFN: B samples of T frames of rows x columns tokens, I channels after the gate."""

    rows: int
    columns: int
    inner: int
    frames: int
    batch: int
    dtype: str
    gpu_tiles: bool = False

    @property
    def name(self) -> str:
        sizes = f"{self.rows}x{self.columns}-I{self.inner}-T{self.frames}-B{self.batch}"
        return f"{sizes}-{self.dtype}" + "-gpu" * self.gpu_tiles


ROWS = [
    Rows(1, 1, 1, 2, "float32"),
    Rows(1, 63, 3, 1, "float16"),
    Rows(3, 20, 2, 2, "float16"),
    Rows(20, 20, 3, 2, "float32"),
    Rows(20, 880, 1, 1, "float32"),
    Rows(20, 63, 1, 2, "float16"),
    Rows(1, 20, 1, 2, "float32", gpu_tiles=True),
    Rows(20, 3, 2, 2, "float16", gpu_tiles=True),
]
MIDDLES = [
    Middle(1, 1, 112, 1, 2, "float32"),
    Middle(3, 7, 112, 2, 1, "float16"),
    Middle(3, 7, 336, 1, 2, "float32"),
    Middle(22, 40, 112, 1, 1, "float16"),
    Middle(5, 2, 16, 3, 2, "float32"),
    Middle(5, 23, 200, 1, 1, "float32", gpu_tiles=True),
]


@contextlib.contextmanager
def tiles_of(case: Rows | Middle):
    """The interpreter's tiles, or those of a GPU in their place."""
    modules = (triton_norms, triton_mix_ffn)
    kept = [module.INTERPRETER_TILES for module in modules]
    try:
        if case.gpu_tiles:
            for module in modules:
                module.INTERPRETER_TILES = module.GPU_TILES
        yield
    finally:
        for module, tiles in zip(modules, kept, strict=True):
            module.INTERPRETER_TILES = tiles


def row_inputs(case: Rows, device: str = "cpu") -> dict[str, torch.Tensor]:
    """x and y [B, T, S, C] are slices of wide tensors; shift, scale and gate are rows of one [B, 6, C]."""
    generator, width = torch.Generator().manual_seed(0), case.heads * HEAD_DIM

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(device, DTYPES[case.dtype])

    # With a mean and rows of other sizes: what a norm takes off.
    sizes = 1 + case.batch * normal(case.tokens, 1).abs()
    shape = (case.batch, case.frames, case.tokens)
    x, y = (rounded((normal(*shape, parts * width) + 2) * sizes)[..., -width:] for parts in (3, 2))
    shift, scale, gate = (row[:, None, None] for row in rounded(normal(case.batch, 6, width)).unbind(1)[1:4])
    angles = 3 * normal(case.frames * case.tokens, HEAD_DIM // 2)
    weight = rounded(1 + 0.2 * normal(width))
    factors = {"cos": angles.cos().to(device), "sin": angles.sin().to(device)}
    return {"x": x, "y": y, "shift": shift, "scale": scale, "gate": gate, "weight": weight, **factors}


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The formula as it reads."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + scale.double()) + shift.double()


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The formula as it reads."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels 2i and 2i + 1 of every head [B, N, C] as a complex number, times one on the unit circle: [B, N, h, D]."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, HEAD_DIM // 2, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos.double(), sin.double())[:, None]).flatten(-2)


def row_errors(case: Rows, device: str = "cpu", implementation: str = "triton") -> dict[str, float]:
    """Relative RMS errors of all norms; NaN anywhere gives NaN."""
    given = row_inputs(case, device)
    x, y, shift, scale, gate, weight, cos, sin = given.values()
    tokens = x.flatten(1, 2)
    kernels = {"eps": EPS, "implementation": implementation}
    buffer = torch.full((case.batch, case.heads, tokens.shape[1] + 2 * SPARE, HEAD_DIM), torch.nan, device=device)
    buffer = buffer.to(x.dtype)
    keys = buffer[:, :, SPARE:-SPARE].transpose(1, 2)
    with torch.no_grad(), gdn_cases.poisoned(), tiles_of(case):
        total, after = norms.add_norm_modulate(x, y, shift, scale, **kernels)
        got = {
            "norm_modulate": norms.norm_modulate(x, shift, scale, **kernels),
            "add_norm_modulate": after,
            "gated_residual": norms.gated_residual(x, gate, y, implementation=implementation),
            "rms_norm": norms.rms_norm(x, weight, **kernels),
            "rms_norm_rotary": norms.rms_norm_rotary(tokens, weight, cos, sin, case.heads, **kernels),
            "rms_norm_rotary to a span": norms.rms_norm_rotary(
                tokens, weight, cos, sin, case.heads, **kernels, out=keys
            ),
        }
    assert got["rms_norm_rotary to a span"] is keys
    assert total.equal(x + y), "the sum is not that of torch"
    assert all(value.dtype == x.dtype for value in got.values())
    assert buffer[:, :, :SPARE].isnan().all() and buffer[:, :, -SPARE:].isnan().all(), "written beside the span"
    rotary = turned(normed(tokens, weight), cos, sin)
    expected = {
        "norm_modulate": modulated(x, shift, scale),
        "add_norm_modulate": modulated(x + y, shift, scale),
        "gated_residual": x.double() + gate.double() * y.double(),
        "rms_norm": normed(x, weight),
        "rms_norm_rotary": rotary,
        "rms_norm_rotary to a span": rotary,
    }
    return {name: compare.relative_rms(value, expected[name]) for name, value in got.items()}


def middle_inputs(
    case: Middle, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]]:
    """hidden [B, T, S, 2I] is a slice of a wide tensor."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, DTYPES[case.dtype])

    grid = (case.rows, case.columns)
    wide = 3 * normal(case.batch, case.frames, case.rows * case.columns, 2 * case.inner + 16)
    return wide[..., 16:], normal(2 * case.inner, 1, 3, 3) / 3, normal(2 * case.inner), grid


def middle_truth(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Nine shifted frames, each times its weight, in float64."""
    x = hidden.double()
    x = x / (1 + torch.exp(-x))
    rows, columns = grid
    padded = F.pad(x.unflatten(2, grid), (0, 0, 1, 1, 1, 1))
    total = bias.double().expand(*hidden.shape[:2], *grid, -1)
    for i in range(3):
        for j in range(3):
            total = total + padded[:, :, i : i + rows, j : j + columns] * weight[:, 0, i, j].double()
    value, gate = total.flatten(2, 3).chunk(2, -1)
    return value * gate / (1 + torch.exp(-gate))


def middle_errors(case: Middle, device: str = "cpu", implementation: str = "triton") -> dict[str, float]:
    arguments = middle_inputs(case, device)
    with torch.no_grad(), gdn_cases.poisoned(), tiles_of(case):
        out = glu_depthwise(*arguments, implementation=implementation)
    assert out.dtype == arguments[0].dtype
    return {"glu_depthwise": compare.relative_rms(out, middle_truth(*arguments))}


def graph_troubles() -> list[str]:
    """What is wrong with a MixFFN as a graph of torch.compile; a break in the graph raises."""
    config = toy_configs(8)["dit"]
    mlp, operators = MixFFN(config, torch.nn), []
    mlp.kernels = "triton"
    x, previous = torch.randn(2, 3, 6, config.hidden_size), torch.randn(2, 1, 6, config.hidden_size)

    def run_as_it_is(graph, _inputs):
        operators.append(sum(node.target is glu_depthwise_operator._opoverload for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(mlp, backend=run_as_it_is, fullgraph=True, dynamic=False)
    with torch.no_grad():
        # The graph first: its making must not rest on an earlier call.
        same = map(torch.equal, compiled(x, (2, 3), previous), mlp(x, (2, 3), previous))
        troubles = [] if all(same) else ["other bits"]
    hidden, weight, bias, grid = middle_inputs(Middle(2, 3, 16, 2, 2, "float16"))
    arguments = (hidden, weight, bias, *grid, "triton")
    torch.library.opcheck(glu_depthwise_operator, arguments, test_utils=("test_schema", "test_faketensor"))
    return troubles if operators == [1] else [*troubles, f"operators in the graphs: {operators}"]


def main() -> None:
    torch.set_num_threads(1)
    if trouble := gdn_cases.interpreter_trouble():
        print(json.dumps({"name": "trouble", "reason": trouble}))
        return
    for row in ROWS:
        print(json.dumps({"name": row.name, "errors": row_errors(row)}), flush=True)
    print(json.dumps({"name": "graph", "troubles": graph_troubles()}), flush=True)
    for middle in MIDDLES:
        print(json.dumps({"name": middle.name, "errors": middle_errors(middle)}), flush=True)


if __name__ == "__main__":
    main()
