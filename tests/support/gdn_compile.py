"""Compiles the fused kernels of the gated delta rule for GPUs that need not be there. One JSON object per kernel and GPU."""

import json
import subprocess
import tempfile
from pathlib import Path

from sana_streaming.kernels.gdn import triton_gdn, triton_kernels

HALF_POINTERS = (
    *("q_ptr", "k_ptr", "v_ptr", "gate_ptr", "out_ptr", "weight_ptr", "read_kv_ptr"),
    *("beta_ptr", "rate_ptr", "A_log_ptr", "dt_bias_ptr"),
)
FLOATS = ("eps", "scale")
ALIGNED = ("q_stride", "k_stride", "v_stride", "gate_stride", "out_stride", "width")
DIM = PADDED = 128


def kind(name: str) -> str:
    """Triton's name for the type of an argument."""
    if name.endswith("_ptr"):
        return "*bf16" if name in HALF_POINTERS else "*fp32"
    return "fp32" if name in FLOATS else "i32"


def launches(tiles: triton_gdn.Tiles):
    """(kernel, constants, warps, stages) as the host side launches them."""
    head = {"D": DIM, "BD": PADDED}
    (summary, *summary_launch), (scan, *scan_launch), (read, *read_launch) = tiles.summary, tiles.scan, tiles.read
    yield "norms", {"BR": tiles.norm_rows, "BC": 512}, 4, 1
    yield "summaries", {"BS": summary, "PRECISION": "ieee", **head}, *summary_launch
    yield "scan", {"HAS_MEMORY": True, "BS": scan, "BV": tiles.scan_rows, "PRECISION": "tf32", **head}, *scan_launch
    yield "read", {"BS": read, "BK": tiles.read_channels, "PRECISION": "ieee", **head}, *read_launch


def stack_bytes(cubin: bytes) -> int:
    """Local memory per thread, where spilled registers go."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    triton_kernels.jit.load()
    for capability, tiles in triton_gdn.HALF_TILES.items():
        target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        for name, constants, warps, stages in launches(tiles):
            kernel = getattr(triton_kernels, f"gdn_fwd_kernel_{name}")
            names = kernel.arg_names
            source = ASTSource(
                kernel,
                {arg: "constexpr" if arg in constants else kind(arg) for arg in names},
                {(names.index(arg),): value for arg, value in constants.items()},
                {(i,): [["tt.divisibility", 16]] for i, a in enumerate(names) if a.endswith("_ptr") or a in ALIGNED},
            )
            options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
            made = triton.compile(source, target=target, options=options)
            row = {"capability": capability, "shared": made.metadata.shared, "stack": stack_bytes(made.asm["cubin"])}
            print(json.dumps({"name": name, **row}), flush=True)


if __name__ == "__main__":
    main()
