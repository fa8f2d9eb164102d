"""Inputs and comparisons of the fused gated delta rule, shared by its tests; as a script, those under triton's interpreter.

The script prints one JSON object per case. It is a process of its own because triton reads TRITON_INTERPRET once.
"""

import contextlib
import json
from typing import NamedTuple

import compare
import numpy as np
import torch
from sana_streaming.kernels.gdn import gdn_fused, gdn_operator
from sana_streaming.kernels.gdn.triton_gdn import gdn_triton
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs

HEADS = 2
# Large enough to be seen in float32.
OPTIONS = {"norm_eps": 1e-2, "eps": 1e-3}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest RMS of the difference over RMS of the truth.
TOLERANCES = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.006}
DIMS, TOKENS, FRAMES, BATCHES = (16, 32, 64, 112, 128), (1, 20, 63, 880), (1, 2, 3, 5), (1, 2)


class Case(NamedTuple):
    dim: int
    tokens: int
    frames: int
    batch: int
    dtype: str
    carried: bool
    shares: int = 1

    @property
    def name(self) -> str:
        carried = "carried" if self.carried else "fresh"
        return f"D{self.dim}-S{self.tokens}-T{self.frames}-B{self.batch}-{self.dtype}-{carried}-{self.shares}"


def covering_cases() -> list[Case]:
    """Every pair of values of two sides (D, S, T, batch, dtype, start), in 20 cases; and eight frames once."""
    cases = []
    for d, dim in enumerate(DIMS):
        for s, tokens in enumerate(TOKENS):
            turn = d + s
            dtype = ("float32", "float16")[(s // 2 + d) % 2]
            carried = (d + 2 * s) % 3 != 0
            shares = 3 if turn % 2 else 1
            cases.append(Case(dim, tokens, FRAMES[turn % 4], BATCHES[(s + d // 2) % 2], dtype, carried, shares))
    return [*cases, Case(112, 20, 8, 1, "float32", True)]


def inputs(case: Case, seed: int = 0, device: str = "cpu", heads: int = HEADS) -> dict[str, torch.Tensor]:
    """Arguments of the operator with the statistics of the network; what is projected are slices of wider tensors."""
    generator = torch.Generator().manual_seed(seed)
    shape, width = (case.batch, case.frames, case.tokens), heads * case.dim

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    dtype = DTYPES[case.dtype]
    qkvg = normal(*shape, 4 * width).to(device, dtype)
    angles = 3 * normal(case.frames * case.tokens, case.dim // 2)
    rates = normal(case.batch, case.frames, heads)
    # A frame that keeps all and, where there are four, one that forgets all: softplus is its input from 20 on.
    rates[:, 0, 0], rates[:, 3:, -1] = -30.0, 24.0
    small = {
        "q_weight": 1 + 0.2 * normal(width),
        "k_weight": 1 + 0.2 * normal(width),
        "beta_logits": normal(*shape, 2 * heads),
        "rate_logits": rates,
        "A_log": 0.2 + 0.4 * normal(heads),
        "dt_bias": 0.35 * normal(heads) - 1.2,
    }
    if case.tokens > 1:
        # A query with no feature: nothing over eps, which is zero.
        qkvg[:, 0, 0, :width] = -1
    arguments = dict(zip(("q", "k", "v", "gate"), qkvg.chunk(4, -1), strict=True))
    arguments |= {name: tensor.to(device, dtype) for name, tensor in small.items()}
    arguments["beta_logits"] = arguments["beta_logits"][..., :heads]
    return arguments | {"cos": angles.cos().to(device), "sin": angles.sin().to(device)}


def truth(arguments: dict[str, torch.Tensor], memory=None):
    """The literal recurrence in float32 on the same (already rounded) inputs."""
    wide = {name: tensor.float() for name, tensor in arguments.items()}
    return gdn_fused(**wide, memory=memory, **OPTIONS, implementation="naive")


def earlier_memory(case: Case, device: str = "cpu", heads: int = HEADS):
    """The memory that an earlier chunk of two frames leaves."""
    earlier = case._replace(frames=2)
    return truth(inputs(earlier, seed=1, device=device, heads=heads))[1]


@contextlib.contextmanager
def poisoned():
    """Memory that torch.empty hands out is full of NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def fused(arguments: dict[str, torch.Tensor], memory=None, shares: int | None = 1):
    with poisoned():
        return gdn_triton(**arguments, memory=memory, **OPTIONS, splits=shares)


def errors(case: Case, device: str = "cpu", heads: int = HEADS) -> dict[str, float]:
    """Relative RMS errors of output and memory against the truth; NaN anywhere gives NaN."""
    arguments = inputs(case, device=device, heads=heads)
    memory = earlier_memory(case, device, heads) if case.carried else None
    out, after = fused(arguments, memory, case.shares)
    assert out.dtype == DTYPES[case.dtype] and {part.dtype for part in after} == {torch.float32}
    expected, expected_after = truth(arguments, memory)
    pairs = {"out": (out, expected), "kv": (after[0], expected_after[0]), "z": (after[1], expected_after[1])}
    return {name: compare.relative_rms(*pair) for name, pair in pairs.items()}


def split_errors(dtype: str, device: str = "cpu") -> dict[str, float]:
    """Five frames at once and as two and three: the memory after, and what the last three give."""
    case = Case(32, 63, 5, 2, dtype, True)
    arguments, memory = inputs(case, device=device), earlier_memory(case, device)
    expected, whole = fused(arguments, memory)
    for frames in (slice(0, 2), slice(2, 5)):
        part = {name: x[:, frames] for name, x in arguments.items() if x.ndim > 2}
        rows = slice(frames.start * case.tokens, frames.stop * case.tokens)
        part |= {name: arguments[name][rows] for name in ("cos", "sin")}
        part |= {name: x for name, x in arguments.items() if x.ndim == 1}
        out, memory = fused(part, memory)
    pairs = {"out": (out, expected[:, frames]), "kv": (memory[0], whole[0]), "z": (memory[1], whole[1])}
    return {name: compare.relative_rms(*pair) for name, pair in pairs.items()}


def unequal_calls(dtype: str, device: str = "cpu") -> list[str]:
    """Which of these give other bits than the call itself: again, contiguous inputs, a memory of zeros."""
    case = Case(16, 63, 3, 2, dtype, False)
    arguments = inputs(case, device=device)
    zero = tuple(torch.zeros_like(part) for part in fused(arguments)[1])
    calls = {
        "repeated": fused(arguments),
        "contiguous": fused({name: x.contiguous() for name, x in arguments.items()}),
        "zero memory": fused(arguments, zero),
    }
    out, after = fused(arguments)
    same = {name: got.equal(out) and all(map(torch.equal, state, after)) for name, (got, state) in calls.items()}
    return [name for name, equal in same.items() if not equal]


def graph_troubles(ahead_of_time: bool) -> list[str]:
    """What is wrong with a block of the network as a graph of torch.compile; a break in the graph raises."""
    config = toy_configs(8)["dit"]
    model = random_dit(config)
    block = model.blocks[0]
    block.attn.kernels = "triton"
    generator = torch.Generator().manual_seed(0)
    x, modulation, embeds = (
        torch.randn(2, *shape, generator=generator)
        for shape in ((3, 15, config.hidden_size), (6, config.hidden_size), (4, 8))
    )
    fixed = (
        modulation,
        model.prompt_context(embeds).keys_values[0],
        None,
        model.positions(3, 3, 3, 5, x.device),
        (3, 5),
    )
    troubles, state, operators = [], None, []

    def run_as_it_is(graph, _inputs):
        operators.append(sum(node.target is gdn_operator._opoverload for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(
        block, backend="aot_eager" if ahead_of_time else run_as_it_is, fullgraph=True, dynamic=False
    )
    for name in ("fresh", "carried"):
        # The graph first: its making must not rest on an earlier call.
        (got, got_state), (expected, after) = compiled(x, *fixed, state), block(x, *fixed, state)
        if not (got.equal(expected) and all(map(torch.equal, got_state.memory, after.memory))):
            troubles.append(f"other bits, {name}")
        state = after
    if not ahead_of_time and operators != [1, 1]:
        troubles.append(f"operators in the graphs: {operators}")
    return troubles


def check_operator() -> None:
    """Torch's own checks of the registered operator: the shapes it announces, and that it changes no argument."""
    case = Case(16, 20, 2, 2, "float16", True)
    for kv, z in ((None, None), earlier_memory(case)):
        arguments = inputs(case) | {"kv": kv, "z": z, **OPTIONS, "implementation": "triton"}
        torch.library.opcheck(gdn_operator, kwargs=arguments, args=(), test_utils=("test_schema", "test_faketensor"))


def interpreter_trouble() -> str | None:
    """Why this triton's interpreter cannot run any loop over a run-time number, as version 3.6 beside numpy 2.4."""
    import triton
    import triton.language as tl

    @triton.jit
    def count(ptr, n):
        for _ in range(n):
            tl.store(ptr, tl.load(ptr) + 1)

    counter = torch.zeros(1)
    try:
        count[(1,)](counter, 3)
    except Exception as error:
        return f"triton {triton.__version__} beside numpy {np.__version__}: {error}"
    return None if counter.item() == 3 else "loops miscount"


def main() -> None:
    torch.set_num_threads(1)
    if trouble := interpreter_trouble():
        print(json.dumps({"name": "trouble", "reason": trouble}))
        return
    for ahead in (False, True):
        print(json.dumps({"name": f"graph-{ahead}", "troubles": graph_troubles(ahead)}), flush=True)
    check_operator()
    for case in covering_cases():
        print(json.dumps({"name": case.name, "errors": errors(case)}), flush=True)
    for dtype in ("float32", "float16"):
        print(json.dumps({"name": f"split-{dtype}", "errors": split_errors(dtype)}), flush=True)
        print(json.dumps({"name": f"equal-{dtype}", "unequal": unequal_calls(dtype)}), flush=True)


if __name__ == "__main__":
    main()
