"""The source kept outside a mask: SanaStreamingKeepMask."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import InputImpl, io

from ..sana_core.errors import InputError
from ..sana_core.video.mask import MaskBlend
from ..sana_core.video.writer import VideoWriter
from . import comfy_host
from .decode import named_if_stopped
from .frames import Clip, frame_size, open_clip
from .steering import footage_inputs
from .video import READ_BLOCK, crf_input, video_input

# Ratios of width to height that differ by less than this are one, rounded.
_OTHER_SHAPE = 0.02


class SanaStreamingKeepMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingKeepMask",
            display_name="SANA-Streaming Keep Mask",
            category=comfy_host.CATEGORY,
            description="Takes the edit where a mask is white and keeps the source where it is black, with a soft border. "
            "Reads and writes as it goes: memory does not grow with the length.",
            search_aliases=["sana", "mask video", "composite", "keep background", "inpaint", "matte"],
            inputs=[
                video_input("edited", "The edited video. Its size, rate and sound are those of the result."),
                video_input("source", "The video that was edited. It is scaled and cropped as the edit was."),
                io.Mask.Input(
                    "mask",
                    tooltip="White is the edit, black the source. One for all frames, or one for each; where there are fewer, "
                    "the last goes on. Of any size: it is scaled and cropped as the source is.",
                ),
                comfy_host.widget(
                    io.Int,
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Width of the soft border in pixels, to either side of the mask's edge; 0 is a hard one.",
                ),
                comfy_host.widget(
                    io.Int,
                    "start_frame",
                    default=0,
                    min=0,
                    max=10**9,
                    tooltip="Frame of the source at which the edit begins: start_frame of the node that read it.",
                ),
                crf_input(),
                *footage_inputs(),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls,
        edited: Any,
        source: Any,
        mask: torch.Tensor,
        feather: int,
        start_frame: int,
        crf: int,
        antialias: bool = False,
        hdr: Any = "refuse",
    ) -> io.NodeOutput:
        path = comfy_host.temporary_video("sana_streaming_masked")
        with open_clip(edited, 0, 0) as edit, open_clip(source, start_frame, edit.frames.num_frames, hdr) as original:
            count, available = edit.frames.num_frames, original.frames.num_frames
            if available < count:
                raise InputError(
                    f"the source has {available} frames from start_frame {start_frame} on, the edit has {count}; connect the "
                    "source that was edited, with the start_frame that it was edited with"
                )
            height, width = frame_size(edit)
            blend = MaskBlend(mask, height, width, feather=feather, antialias=antialias)
            writer = VideoWriter(
                path,
                width=width,
                height=height,
                frame_rate=edit.frames.frame_rate,
                crf=crf,
                audio_from=edit.audio_from,
                audio_start=float(edit.start / edit.frames.frame_rate),
            )
            with named_if_stopped(path), writer:
                written = _write(edit, original, blend, writer)
            source_size = frame_size(original)
        comfy_host.show_text(cls, _report(written, mask, source_size))
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def _report(written: int, mask: torch.Tensor, source: tuple[int, int]) -> str:
    """What was done, and where the masks are not what one would expect."""
    count, (height, width) = len(mask) if mask.ndim > 2 else 1, mask.shape[-2:]
    lines = [f"{written} frames, {count} {'mask' if count == 1 else 'masks'}"]
    if 1 < count < written:
        lines.append(f"from frame {count} on the last mask is used")
    if abs(width * source[0] - height * source[1]) > max(width * source[0], height * source[1]) * _OTHER_SHAPE:
        lines.append(
            f"the mask is {width}x{height} and the source {source[1]}x{source[0]}, which is another shape: the mask is scaled "
            "and cropped by itself and may lie elsewhere; make it of the source's size"
        )
    return "\n".join(lines)


def _write(edit: Clip, original: Clip, blend: MaskBlend, writer: VideoWriter) -> int:
    """Mixes the two into the writer, a few frames at a time; the number of frames. The shorter file of two ends it."""
    report = comfy_host.ProgressReport(-(-edit.frames.num_frames // READ_BLOCK))
    written = 0
    for after, before in zip(edit.frames.blocks(READ_BLOCK), original.frames.blocks(READ_BLOCK), strict=False):
        report.step()
        count = min(len(after), len(before))
        frames = blend.blend(before[:count].cpu(), after[:count].cpu())
        writer.write(frames)
        report.preview(frames[-1])
        written += count
    return written
