"""Small clips of every kind, made with PyAV alone, and plain looks into files."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


def level_frames(num_frames: int, height: int, width: int) -> torch.Tensor:
    """uint8 [F, H, W, 3]: frame i is grey of level (16 + 4 * i) % 224, brighter by 24 in its top left quarter."""
    levels = (16 + 4 * torch.arange(num_frames)) % 224
    frames = levels.view(-1, 1, 1, 1).expand(-1, height, width, 3).to(torch.uint8).clone()
    frames[:, : height // 2, : width // 2] += 24
    return frames


def write_clip(
    path: Path,
    frames: torch.Tensor,
    *,
    rate: Fraction = Fraction(25),
    times: list[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    movflags: str = "",
    sound: tuple[str, str, float] | None = None,
    pixel: Fraction = Fraction(1),
) -> Path:
    """``frames`` at ``rate``, or at ``times`` counted in 1 / ``rate``, of pixels whose width over height is ``pixel``.

    ``sound`` is (codec, layout, seconds of `wave`).
    """
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as output:
        video = output.add_stream(codec, rate=rate)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        video.codec_context.time_base, video.codec_context.sample_aspect_ratio = 1 / rate, pixel
        if codec == "libx264":
            video.options = {"crf": "1", "g": "10"}
        audio = output.add_stream(sound[0], rate=SAMPLE_RATE, layout=sound[1]) if sound else None
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(format=pix_fmt)
            picture.pts, picture.time_base = times[number] if times else number, 1 / rate
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        if sound and audio is not None:
            for block in sound_blocks(sound[1], sound[2]):
                output.mux(audio.encode(block))
            output.mux(audio.encode(None))
    return path


SAMPLE_RATE = 48_000


def wave(seconds: float) -> np.ndarray:
    """float32 [n]: soft noise, nowhere like itself, so that a stretch of it tells its time. A longer one begins alike."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE), dtype=np.float32)
    return (0.05 * np.convolve(noise, np.ones(12, np.float32), mode="same")).astype(np.float32)


def sound_blocks(layout: str, seconds: float) -> list[av.AudioFrame]:
    """`wave` in every channel, in blocks of 1024 samples."""
    blocks, samples = [], wave(seconds)
    for start in range(0, len(samples), 1024):
        piece = np.tile(samples[start : start + 1024], (av.AudioLayout(layout).nb_channels, 1))
        block = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        blocks.append(block)
    return blocks


def write_sound(path: Path, codec: str, seconds: float) -> Path:
    """A file with nothing but sound in it."""
    with av.open(str(path), "w") as output:
        audio = output.add_stream(codec, rate=SAMPLE_RATE, layout="stereo")
        for block in sound_blocks("stereo", seconds):
            output.mux(audio.encode(block))
        output.mux(audio.encode(None))
    return path


def turn(path: Path, clockwise: int) -> Path:
    """Tell an MP4's players to show it turned by ``clockwise`` degrees: rewrites the matrix in its track header."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    # version and flags (4 bytes), then 36 bytes to the matrix in version 0, the one that short clips have.
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path


def read_frames(path: Path) -> torch.Tensor:
    """All frames of a file as uint8 [F, H, W, 3], by PyAV alone, as stored."""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def boxes(path: Path) -> list[str]:
    """The names of an MP4's outermost boxes, in order."""
    data, names, at = path.read_bytes(), [], 0
    while at + 8 <= len(data):
        names.append(data[at + 4 : at + 8].decode("latin1"))
        at += int.from_bytes(data[at : at + 4], "big") or len(data)
    return names
