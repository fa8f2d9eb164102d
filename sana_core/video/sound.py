"""Sound in memory to a file that the video writer can take it from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch

# Samples per packet; keeps memory flat for long sound.
BLOCK = 65_536


def write_sound(path: Path, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes ``waveform`` [channels, samples] in -1 to 1 as 16-bit PCM in a .wav file; more than 2 channels become 2."""
    import av

    samples = waveform.cpu().float()[:2].clamp(-1, 1).mul(32767).round().to(torch.int16)
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=sample_rate, layout=layout)
        for start in range(0, samples.shape[1], BLOCK):
            block = samples[:, start : start + BLOCK].T.contiguous().reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block.numpy(), format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
