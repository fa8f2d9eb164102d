"""The whole stream in one node, and something to try it on: SanaStreamingEditVideo, SanaStreamingDemoClip."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from comfy_api.latest import InputImpl, io

from ..sana_core.edit_file import FileEdit, FileJob
from ..sana_core.streaming.chunks import ChunkPlan
from ..sana_core.streaming.edit_stream import EditStream, FixedPrompts, check_size
from ..sana_core.streaming.memory import stream_memory
from ..sana_core.streaming.options import StreamOptions
from ..sana_core.video.demo_clip import demo_frames
from ..sana_core.video.geometry import pixels_to_uint8
from ..sana_core.video.reader import closest_rate
from ..sana_core.video.writer import VideoWriter
from . import comfy_host
from .frames import open_clip
from .prompt import connected_prompts
from .sampler import sampling_inputs
from .sockets import VAE, LoadedModel, LoadedVAE, Model
from .video import MEMORY_KNOBS, crf_input, fps_input, range_inputs, released_if_stopped, size_inputs, video_input

DEMO_RATE = Fraction(24)


class SanaStreamingEditVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingEditVideo",
            display_name="SANA-Streaming Edit Video",
            category=comfy_host.CATEGORY,
            description="The whole stream in one node: reads, edits and writes a video of any length with flat memory, and "
            "shows each chunk as it is finished. Stop keeps what was written.",
            search_aliases=["sana", "video to video", "v2v", "edit video", "restyle", "stylize"],
            inputs=[
                Model.Input("model", tooltip="From Load SANA-Streaming Model."),
                VAE.Input("vae", tooltip="From Load SANA-Streaming VAE."),
                io.Conditioning.Input("positive", tooltip="From SANA-Streaming Prompt."),
                video_input(),
                *size_inputs(),
                *sampling_inputs(),
                *range_inputs(),
                fps_input(),
                crf_input(),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where cfg_scale is above 1."),
            ],
            outputs=[io.Video.Output(display_name="video")],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        vae: LoadedVAE,
        positive: list[Any],
        video: Any,
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
    ) -> io.NodeOutput:
        options = StreamOptions(
            steps=steps,
            cfg_scale=cfg_scale,
            seed=seed,
            noise=noise,
            num_cached_blocks=num_cached_blocks,
            sink_token=sink_token,
        )
        check_size(height, width, vae.network.config.spatial_factor)
        path = comfy_host.temporary_video("sana_streaming")
        with open_clip(video, start_frame, max_frames) as clip, comfy_host.explained_memory(MEMORY_KNOBS):
            job = FileJob(
                frames=clip.frames,
                target=path,
                start=clip.start,
                frame_rate=closest_rate(Fraction(fps).limit_denominator(1001), clip.frames.frame_rate) if fps else None,
                crf=crf,
                audio_from=clip.audio_from,
            )
            _edit(model, vae, positive, negative, options, (height, width), job)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))


def _edit(
    model: LoadedModel,
    vae: LoadedVAE,
    positive: list[Any],
    negative: list[Any] | None,
    options: StreamOptions,
    size: tuple[int, int],
    job: FileJob,
) -> None:
    """Runs the stream over the clip with ComfyUI's progress, preview and Stop."""
    total = job.frames.num_frames
    plan = ChunkPlan(total, vae.network.config.temporal_factor)
    kinds = (model.network.dtype, vae.network.dtype)
    needed = stream_memory(model.network.config, vae.network.config, plan, size, options, *kinds)
    comfy_host.load([model.patcher, vae.patcher], needed.total)
    chunks = plan.total_chunks or 1
    report = comfy_host.ProgressReport(chunks * (options.passes(carry=True) + 2))
    prompts = connected_prompts(positive, negative, options.guided)
    stream = EditStream(
        model.network,
        vae.network,
        FixedPrompts(prompts.positive, prompts.negative),
        prompt=prompts.text,
        negative_prompt=prompts.negative_text,
        height=size[0],
        width=size[1],
        total_frames=total,
        options=options,
        device=model.device,
        vae_device=vae.device,
        on_progress=lambda _: report.step(),
    )
    with released_if_stopped(stream.state, job.target):
        FileEdit(stream, job, lambda chunk, _: report.preview(pixels_to_uint8(chunk.pixels[-1:])[0])).run()


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
