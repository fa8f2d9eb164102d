"""Sound in memory to a file that the video writer can take it from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch

from ..errors import InputError

# Samples per packet; keeps memory flat for long sound.
BLOCK = 65_536


def write_sound(path: Path, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes ``waveform`` [channels, samples] in -1 to 1 as 16-bit PCM in a .wav file, at ``sample_rate`` per second.

    Louder samples are clipped; of more than 2 channels the first 2, front left and right, are kept. Raises InputError
    for another shape or a rate that is not positive.
    """
    import av

    if waveform.ndim != 2 or len(waveform) == 0 or sample_rate < 1:
        raise InputError(
            f"cannot write sound of shape {tuple(waveform.shape)} at {sample_rate} samples per second: expected "
            "[channels, samples], at least 1 channel, and a rate of at least 1"
        )
    samples = waveform[:2]
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=sample_rate, layout=layout)
        # Sound without a sample is a file too.
        output.start_encoding()
        for start in range(0, samples.shape[1], BLOCK):
            block = samples[:, start : start + BLOCK].cpu().float().clamp(-1, 1).mul(32767).round().to(torch.int16)
            frame = av.AudioFrame.from_ndarray(block.T.reshape(1, -1).numpy(), format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
