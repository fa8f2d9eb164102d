"""Compiles the kernel in front of the VAE's convolutions for GPUs that need not be there. One JSON object per case and GPU."""

import json

from gdn_compile import stack_bytes
from sana_streaming.kernels import launch
from sana_streaming.kernels.vae_norm import triton_kernels, triton_vae_norm

CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
SIZES = ("num_positions", "num_frames", "height", "width")
# Channels of the release's layers and the step over them; with and without what there may be.
CASES = {
    "first block": (128, {"HAS_BRANCH": False, "HAS_BIAS": False, "HAS_SUM": False}),
    "block": (128, {}),
    "decoder": (1024, {"BORDER": 1}),
    "widest": (2048, {}),
    "second of a block": (128, {"HAS_BRANCH": False, "HAS_SUM": False}),
    "log-variance": (129, {"HAS_BRANCH": False, "HAS_SUM": False}),
    "sampler": (512, {"HAS_BRANCH": False, "HAS_BIAS": False, "HAS_SUM": False, "NORM": False, "BORDER": 1}),
    "several steps": (8192, {}),
}
COMMON = {
    "HAS_BRANCH": True,
    "HAS_BIAS": True,
    "HAS_HISTORY": True,
    "HAS_SUM": True,
    "NORM": True,
    "BORDER": 0,
    "LEAD": 2,
}


def signature(names, channels, constants):
    """(types, constants, alignments) as the host side calls the kernel with tensors in channels_last_3d memory."""
    types, fixed, aligned = {}, dict(constants), {}
    for index, name in enumerate(names):
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_channel"):
            # Triton takes an integer argument of 1 for a constant.
            types[name], fixed[name] = "constexpr", 1
        elif name.endswith("_ptr"):
            types[name], aligned[(index,)] = "*bf16", [["tt.divisibility", 16]]
        else:
            types[name] = "fp32" if name == "eps" else "i32"
            if name not in (*SIZES, "eps") and channels % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
    return types, {(names.index(name),): value for name, value in fixed.items()}, aligned


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    triton_kernels.jit.load()
    kernel = triton_kernels.vae_norm_fwd_kernel
    for capability in CAPABILITIES:
        target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        for name, (channels, flags) in CASES.items():
            tile = triton_vae_norm.tile_of(channels, "cuda")
            constants = COMMON | flags | {"C": channels, "BP": tile[0], "BC": tile[1]}
            source = ASTSource(kernel, *signature(kernel.arg_names, channels, constants))
            made = triton.compile(source, target=target, options=launch.options(triton_vae_norm.WARPS))
            wide = made.asm["ptx"].count("ld.global.v4") + made.asm["ptx"].count("st.global.v4")
            row = {"capability": capability, "shared": made.metadata.shared, "stack": stack_bytes(made.asm["cubin"])}
            print(json.dumps({"name": name, "wide": wide, **row}), flush=True)


if __name__ == "__main__":
    main()
