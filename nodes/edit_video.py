"""The whole stream in one node, and something to try it on: SanaStreamingEditVideo, SanaStreamingDemoClip."""

from __future__ import annotations

import uuid
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, io

from ..sana_core.edit_file import FileEdit, FileJob, FileReport
from ..sana_core.streaming.edit_stream import EditedChunk
from ..sana_core.streaming.options import StreamOptions
from ..sana_core.streaming.prompt_schedule import check_frame_prompts
from ..sana_core.video.colour import ColourMatch
from ..sana_core.video.demo_clip import demo_frames
from ..sana_core.video.reader import closest_rate
from ..sana_core.video.writer import VideoWriter
from . import comfy_host
from .decode import decoder_text, released_if_stopped
from .editor import Editor
from .frames import open_clip
from .graphs import graph_input, passes_of
from .live import BESIDE, EDIT, SmallSource, progress_text, report_text
from .live_recording import LiveJob, record
from .live_source import check_one_source, check_unused, live_address, live_inputs
from .prompt import connected_prompts
from .sampler import sampling_inputs
from .sockets import VAE, LoadedModel, LoadedVAE, Model
from .steering import footage_inputs, steering_inputs
from .video import MEMORY_KNOBS, crf_input, fps_input, range_inputs, size_inputs, video_input

DEMO_RATE = Fraction(24)
NO_COMPARISON = "off"


class SanaStreamingEditVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingEditVideo",
            display_name="SANA-Streaming Edit Video",
            category=comfy_host.CATEGORY,
            description="The whole stream in one node: reads, edits and writes a video of any length, or what a camera or "
            "network stream sends, with flat memory, and shows each chunk as it is finished. Stop keeps what was written.",
            search_aliases=[
                "sana",
                "video to video",
                "v2v",
                "edit video",
                "restyle",
                "stylize",
                "live",
                "camera",
                "webcam",
            ],
            inputs=[
                Model.Input("model", tooltip="From Load SANA-Streaming Model."),
                VAE.Input("vae", tooltip="From Load SANA-Streaming VAE."),
                io.Conditioning.Input(
                    "positive", tooltip="From SANA-Streaming Prompt, or a schedule from SANA-Streaming Prompt Schedule."
                ),
                video_input(
                    tooltip="A video, read as it is needed, or pictures. Leave it unconnected where live_source is set.",
                    optional=True,
                ),
                *size_inputs(),
                *sampling_inputs(),
                *range_inputs(),
                fps_input(),
                crf_input(),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where cfg_scale is above 1."),
                *steering_inputs(),
                *footage_inputs(),
                comfy_host.widget(
                    io.Combo,
                    "compare",
                    options=[NO_COMPARISON, "side-by-side", "wipe"],
                    default=NO_COMPARISON,
                    optional=True,
                    advanced=True,
                    tooltip="Writes the source into the same picture: beside the edit, which makes it twice as wide, or left "
                    "of a line that moves.",
                ),
                comfy_host.widget(
                    io.Float,
                    "colour_match",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Brings the colours of the edit back to the source's, chunk by chunk without flicker: 0 leaves "
                    "them, 1 gives it the source's lightness, contrast and tint. For edits not of colour. Done on the CPU.",
                ),
                comfy_host.widget(
                    io.Combo,
                    "preview",
                    options=[EDIT, BESIDE],
                    default=EDIT,
                    optional=True,
                    advanced=True,
                    tooltip="What the node shows of each finished chunk: the edit, or the source beside it.",
                ),
                graph_input(),
                *live_inputs(),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[io.Video.Output(display_name="video"), io.String.Output(display_name="report")],
        )

    @classmethod
    def validate_inputs(cls, live_source: str | None = "") -> bool | str:
        # An address that comes over a link is not known before the run.
        return not live_source or comfy_host.answer(lambda: live_address(live_source))

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """A live source never shows the same again; None is one whose address comes over a link."""
        live = inputs.get("live_source", "")
        return "" if live is not None and not live.strip() else uuid.uuid4().hex

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        vae: LoadedVAE,
        positive: list[Any],
        video: Any = None,
        *,
        width: int,
        height: int,
        seed: int,
        steps: int,
        num_cached_blocks: int,
        sink_token: bool,
        cfg_scale: float,
        noise: Any,
        start_frame: int,
        max_frames: int,
        fps: float,
        crf: int,
        negative: list[Any] | None = None,
        anchor_every: int = 0,
        start_step: int = 0,
        max_sink_distance: int = 0,
        antialias: bool = False,
        hdr: Any = "refuse",
        compare: Any = NO_COMPARISON,
        colour_match: float = 0.0,
        preview: Any = EDIT,
        cuda_graph: bool = False,
        live_source: str = "",
        live_seconds: float = 0.0,
    ) -> io.NodeOutput:
        address = check_one_source(video, live_source)
        options = StreamOptions(
            steps=steps,
            cfg_scale=cfg_scale,
            seed=seed,
            noise=noise,
            num_cached_blocks=num_cached_blocks,
            sink_token=sink_token,
            anchor_every=anchor_every,
            start_step=start_step,
            max_sink_distance=max_sink_distance,
        )
        prompts = connected_prompts(positive, negative, options.guided)
        editor = Editor(model, vae, prompts, options, (height, width), antialias)
        if address is not None:
            check_unused(hdr, start_frame=start_frame, max_frames=max_frames, fps=fps, colour_match=colour_match)
            with comfy_host.explained_memory(MEMORY_KNOBS):
                live = LiveJob(address, live_seconds, crf, compare, preview == BESIDE, cuda_graph)
                return _outputs(cls, *record(cls, editor, live), vae)
        path = comfy_host.temporary_video("sana_streaming")
        with open_clip(video, start_frame, max_frames, hdr) as clip, comfy_host.explained_memory(MEMORY_KNOBS):
            job = FileJob(
                frames=clip.frames,
                target=path,
                start=clip.start,
                frame_rate=closest_rate(Fraction(fps).limit_denominator(1001), clip.frames.frame_rate) if fps else None,
                crf=crf,
                audio_from=clip.audio_from,
                compare=None if compare == NO_COMPARISON else compare,
                colours=ColourMatch(height, width, strength=colour_match, antialias=antialias)
                if colour_match
                else None,
            )
            if preview == BESIDE and job.compare is None:
                job = replace(job, frames=SmallSource(clip.frames, height, width))
            report = _edit(cls, editor, job, cuda_graph)
        return _outputs(cls, path, report_text(report), vae)


def _outputs(node: type[io.ComfyNode], path: Path, report: str, vae: LoadedVAE) -> io.NodeOutput:
    text = f"{report}\n{decoder_text(vae)}"
    comfy_host.show_text(node, text)
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), text)


def _edit(node: type[io.ComfyNode], editor: Editor, job: FileJob, cuda_graph: bool) -> FileReport:
    """Runs the stream over the clip with ComfyUI's progress, preview and Stop."""
    total = job.frames.num_frames
    plan = editor.plan(total)
    schedule = editor.prompts.schedule(job.frame_rate or job.frames.frame_rate)
    check_frame_prompts(schedule, plan)
    editor.load(plan)
    chunks, options = plan.total_chunks or 1, editor.options
    units = (options.passes(options.carries(chunk, plan.is_last(chunk))) + 2 for chunk in range(chunks))
    report = comfy_host.ProgressReport(sum(units))

    def on_chunk(chunk: EditedChunk, so_far: FileReport) -> None:
        assert edit.last_frame is not None
        small = job.frames if isinstance(job.frames, SmallSource) else None
        report.preview(small.beside(edit.last_frame, len(chunk.pixels)) if small else edit.last_frame)
        comfy_host.show_text(node, progress_text(so_far, plan, total), log=False)

    with passes_of(editor.model, cuda_graph) as passes:
        text = editor.prompts.encoder()
        stream = editor.stream(text, total, passes, lambda _: report.step(), schedule=schedule)
        with released_if_stopped(stream.state, job.target):
            edit = FileEdit(stream, job, on_chunk)
            return edit.run()


class SanaStreamingDemoClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingDemoClip",
            display_name="SANA-Streaming Demo Clip",
            category=comfy_host.CATEGORY,
            description="Makes a short scene to edit, where there is no video at hand: a ball and a box before hills.",
            search_aliases=["sana", "test video", "example video"],
            inputs=[
                *size_inputs(),
                comfy_host.widget(
                    io.Int,
                    "frames",
                    default=97,
                    min=1,
                    max=100_000,
                    tooltip="Length in frames, at 24 per second. 33 + 24k fill every chunk.",
                ),
                comfy_host.widget(
                    io.Int, "seed", default=0, min=0, max=2**63 - 1, tooltip="The same seed gives the same scene."
                ),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(cls, width: int, height: int, frames: int, seed: int) -> io.NodeOutput:
        path = comfy_host.temporary_video("sana_streaming_demo")
        with VideoWriter(path, width=width, height=height, frame_rate=DEMO_RATE, crf=18) as writer:
            for frame in demo_frames(frames, height, width, seed):
                comfy_host.check_interrupt()
                writer.write(frame[None])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))
