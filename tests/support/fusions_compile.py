"""Compiles the fused norms and the middle of the MixFFN for GPUs that need not be there. One JSON object per kernel and GPU."""

import json

from gdn_compile import stack_bytes
from sana_streaming.kernels import launch
from sana_streaming.kernels.mix_ffn import triton_kernels as mix_ffn
from sana_streaming.kernels.mix_ffn import triton_mix_ffn
from sana_streaming.kernels.norms import triton_kernels as norms
from sana_streaming.kernels.norms import triton_norms

CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
FLOAT_POINTERS = ("cos_ptr", "sin_ptr")
# Of the release: 2240 channels in heads of 112.
WIDTH, HEAD_DIM = 2240, 112


def kind(name: str) -> str:
    """Triton's name for the type of an argument."""
    if name.endswith("_ptr"):
        return "*fp32" if name in FLOAT_POINTERS else "*bf16"
    return "fp32" if name == "eps" else "i32"


def launches():
    """(kernel, its module, constants, warps) as the host sides launch them."""
    sums, rows = triton_norms.GPU_TILES, {"BR": triton_norms.GPU_TILES.norm_rows, **triton_norms._parts(WIDTH)}
    warps = triton_norms.NUM_WARPS
    for branch in (False, True):
        yield "norm_modulate_kernel", norms, {"HAS_BRANCH": branch, **rows}, warps
    for rotated, dim in ((False, WIDTH), (True, HEAD_DIM)):
        yield "rms_norm_kernel", norms, {"ROTATED": rotated, "D": dim, **rows}, warps
    yield "gated_residual_kernel", norms, {"BR": sums.sum_rows, "BC": sums.sum_channels}, warps
    tiles = triton_mix_ffn.GPU_TILES
    constants = {"R": tiles.rows, "W": tiles.columns, "BC": tiles.channels}
    yield "glu_depthwise_kernel", mix_ffn, constants, tiles.warps


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for module in (norms, mix_ffn):
        module.jit.load()
    for name, module, constants, warps in launches():
        kernel = getattr(module, name)
        names = kernel.arg_names
        aligned = [
            i
            for i, arg in enumerate(names)
            if kind(arg) != "fp32" and arg not in (*constants, *("rows", "columns", "num_rows"))
        ]
        source = ASTSource(
            kernel,
            {arg: "constexpr" if arg in constants else kind(arg) for arg in names},
            {(names.index(arg),): value for arg, value in constants.items()},
            {(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        for capability in CAPABILITIES:
            target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
            made = triton.compile(source, target=target, options=launch.options(warps))
            row = {"capability": capability, "shared": made.metadata.shared, "stack": stack_bytes(made.asm["cubin"])}
            print(json.dumps({"name": name, **row}), flush=True)


if __name__ == "__main__":
    main()
