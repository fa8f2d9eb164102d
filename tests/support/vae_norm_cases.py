"""Inputs and comparisons of the fused norm, SiLU and padding, shared by its tests; as a script, those under the interpreter.

The script prints one JSON object per case. It is a process of its own because triton reads TRITON_INTERPRET once.
"""

import itertools
import json
from typing import NamedTuple

import compare
import torch
from gdn_cases import DTYPES, interpreter_trouble
from sana_streaming.kernels.vae_norm import norm_silu_pad_naive, norm_silu_pad_triton
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.weights.random_init import random_vae

# Largest RMS of the difference over RMS of the truth: results are rounded once more than the truth.
TOLERANCES = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 4e-3}
CHANNELS, FRAMES, SIDES, LAYOUTS = (3, 48, 129, 256), (1, 2, 5), ((2, 3), (5, 2), (7, 9)), ("first", "last")
STARTS, BRANCHES = ("carried", "fresh", "noncausal"), ("branch+bias", "branch", "bias", "")

# 4 pixels and 4 frames per latent; every kind of sampler; a border of zeros in the encoder, a reflected one in the decoder.
SMALL_VAE = VAEConfig(
    latent_channels=6,
    block_out_channels=(12, 24, 48),
    layers_per_block=(2, 0, 1, 1),
    downsample_type=("spatial", "temporal", "temporal"),
    decoder_block_out_channels=(8, 8, 16),
    decoder_layers_per_block=(1, 2, 0, 1),
    decoder_upsample_type=("spatial", "temporal", "temporal"),
    upsample_residual=(True, False, True),
    upsample_factor=(2, 1, 2),
    patch_size=2,
    decoder_causal=True,
)


class Case(NamedTuple):
    channels: int
    frames: int
    sides: tuple[int, int]
    layout: str
    start: str
    branch: str
    reflect: bool
    norm: bool
    dtype: str
    batch: int = 2
    # Channels in one step, None for all.
    step: int | None = None

    @property
    def name(self) -> str:
        height, width = self.sides
        kind = f"{self.layout}-{self.start}-{self.branch}-{'reflect' if self.reflect else 'zeros'}"
        end = f"{'norm' if self.norm else 'plain'}-{self.dtype}-{self.step}"
        return f"C{self.channels}-T{self.frames}-{height}x{width}-{kind}-{end}"


PROPERTIES = (CHANNELS, FRAMES, SIDES, LAYOUTS, STARTS, BRANCHES, (True, False), (True, False))


def covering_cases(dtypes=("float32", "float16")) -> list[Case]:
    """Every pair of values of two properties, greedily; and steps over the channels, and 2048 of them."""
    everything = list(itertools.product(*PROPERTIES, dtypes))
    open_pairs = {pair for values in everything for pair in _pairs(values)}
    cases = []
    while open_pairs:
        best = max(everything, key=lambda values: len(open_pairs & _pairs(values)))
        open_pairs -= _pairs(best)
        cases.append(Case(*best))
    wide = Case(2048, 2, (2, 2), "last", "carried", "branch+bias", True, True, dtypes[0], batch=1)
    stepped = Case(129, 2, (3, 2), "first", "carried", "branch+bias", True, True, dtypes[0], step=64)
    return [*cases, wide, stepped, stepped._replace(norm=False, branch="", layout="last")]


def _pairs(values) -> set:
    return set(itertools.combinations(enumerate(values), 2))


def inputs(case: Case, device: str = "cpu") -> tuple[tuple, dict]:
    """Positional and named arguments; positions of any size, one of them zero."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    height, width = case.sides
    shape = (case.batch, case.channels, case.frames, height, width)
    scales = 10.0 ** torch.randint(-3, 3, (case.batch, 1, case.frames, height, width), generator=generator)
    x = normal(*shape) * scales
    x[:, :, 0, 0, 0] = 0
    branch = normal(*shape) if "branch" in case.branch else None
    bias = normal(case.channels) if "bias" in case.branch else None
    history = normal(case.batch, case.channels, 2, height, width) if case.start == "carried" else None

    def place(tensor):
        if tensor is None:
            return None
        tensor = tensor.to(device, DTYPES[case.dtype])
        last = case.layout == "last" and tensor.ndim == 5
        return tensor.contiguous(memory_format=torch.channels_last_3d) if last else tensor

    options = {"reflect": case.reflect, "norm": case.norm, "causal": case.start != "noncausal"}
    return (place(x), place(history)), options | {"branch": place(branch), "bias": place(bias)}


def errors(case: Case, device: str = "cpu") -> dict[str, float]:
    """Relative RMS errors of padded input and sum against the truth; NaN anywhere gives NaN."""
    arguments, options = inputs(case, device)
    kept = [None if tensor is None else tensor.clone() for tensor in arguments]
    steps = {} if case.step is None else {"step": case.step}
    padded, total = norm_silu_pad_triton(*arguments, **options, tile=512, **steps)
    # What is normalised is the sum as it is stored, so the truth starts from that.
    expected_total = norm_silu_pad_naive(*arguments, **options)[1]
    expected, _ = norm_silu_pad_naive(total, arguments[1], **options | {"branch": None, "bias": None})
    assert padded.is_contiguous(memory_format=torch.channels_last_3d) and padded.dtype == DTYPES[case.dtype]
    bare, same = norm_silu_pad_triton(*arguments, **options, keep_sum=False, tile=512, **steps)
    assert bare.equal(padded) and same is arguments[0], "the padded input depends on whether the sum is kept"
    assert all(a is b or a.equal(b) for a, b in zip(arguments, kept, strict=True)), "inputs were changed"
    return {"padded": compare.relative_rms(padded, expected), "sum": compare.relative_rms(total, expected_total)}


def vae_errors(device: str = "cpu", dtype: str = "float32") -> dict[str, float]:
    """A whole VAE with the kernel against the same in plain PyTorch, stream and state, with both kinds of border."""
    vae = random_vae(SMALL_VAE, device=device, dtype=DTYPES[dtype])
    generator = torch.Generator().manual_seed(1)
    video = (torch.rand(2, 3, 13, 16, 24, generator=generator) * 2 - 1).to(device)
    latents = torch.randn(2, 6, 4, 4, 6, generator=generator).to(device)
    results: dict[str, dict[str, torch.Tensor]] = {}
    for kernels in ("eager", "triton"):
        vae.use_kernels(kernels)
        found = results[kernels] = {"noncausal": vae.decode_noncausal(latents)}
        for name, call, parts in (
            ("encode", vae.encode, video.split([1, 2, 6, 4], 2)),
            ("decode", vae.decode, latents.split([1, 3], 2)),
        ):
            state = {}
            for number, part in enumerate(parts):
                found[f"{name} {number}"], state = call(part, state)
            found |= {f"{name} state {key}": value for key, value in state.items()}
    plain, fused = results["eager"], results["triton"]
    assert plain.keys() == fused.keys() and all(plain[key].shape == fused[key].shape for key in plain)
    # The kernel makes channels adjacent, and all that follows keeps them so.
    assert all(fused[key].stride(1) == 1 for key in fused if "state" in key and fused[key].numel())
    return {key: compare.relative_rms(fused[key], plain[key]) for key in plain if plain[key].numel()}


def main() -> None:
    torch.set_num_threads(1)
    if trouble := interpreter_trouble():
        print(json.dumps({"name": "trouble", "reason": trouble}))
        return
    for case in covering_cases():
        print(json.dumps({"name": case.name, "errors": errors(case)}), flush=True)
    print(json.dumps({"name": "vae", "errors": vae_errors()}), flush=True)


if __name__ == "__main__":
    main()
