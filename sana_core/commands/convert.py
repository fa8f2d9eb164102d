"""``convert``: weights of any layout into one safetensors file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..paths import check_target
from ..weights import nano
from ..weights.convert import Conversion, convert
from ..weights.hub import in_units, resolve_uri

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NETWORKS = {
    "streaming": "transformer of long_streaming",
    "bidirectional": "transformer of bidirectional_short",
    "vae": "VAE",
}


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..cli import EXIT_OK

    target: Path = options.target
    check_target(target)
    if target.exists() and not options.force:
        raise InputError(f"{target} is there already; add --force to replace it, or choose another name")
    source = nano.nano_folder() / "dit" if str(options.source) == nano.NAME else resolve_uri(options.source)
    # None: no bar where there is no terminal.
    with tqdm(unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:

        def show(file: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description_str(file, refresh=False)
            bar.update(done - bar.n)

        done = convert(
            source,
            target,
            DTYPES.get(options.dtype),
            decoder=options.decoder,
            precision=options.precision,
            on_progress=show,
        )
    print(in_words(done))
    return EXIT_OK


def in_words(done: Conversion) -> str:
    network = _NETWORKS[done.variant]
    if done.variant == "vae":
        network += f" with {'causal' if done.config['decoder_causal'] else 'chunk_tile'} decoder"
    text = (
        f"{done.source}: {network}, {done.num_tensors} tensors, {_named(done.source_dtypes)}, "
        f"{in_units(done.source_bytes)}, sha256 {done.sha256}\n"
        f"{done.target}: {_named(done.dtypes)}, {in_units(done.num_bytes)}"
    )
    if done.precision is not None:
        text = "\n".join([text, *done.precision.lines()])
    if done.calibration:
        text += f"\ninput scales: {done.calibration}"
    return text


def _named(dtypes: Any) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
