"""A short clip edited whole: SanaStreamingShortSampler."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.short_clip import (
    TRAINED_FRAMES,
    ShortClipOptions,
    check_bidirectional,
    check_length,
    sample_short,
)
from ..sana_core.streaming.edit_stream import embedded_context
from ..sana_core.streaming.memory import short_memory
from ..sana_core.streaming.noise import ChunkNoise
from ..sana_core.streaming.options import MAX_SEED
from ..sana_core.streaming.sampler import check_latent_channels
from . import comfy_host
from .latents import SAMPLES, check_whole, from_latent
from .prompt import Prompts, single_prompt
from .sockets import LoadedModel, Model

MEMORY_KNOBS = "make width and height smaller, or the clip shorter"


class SanaStreamingShortSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = ShortClipOptions()
        return comfy_host.schema(
            node_id="SanaStreamingShortSampler",
            display_name="SANA-Streaming Short Sampler",
            category=comfy_host.CATEGORY,
            description="Edits source latents of a short clip all at once, with the bidirectional model.",
            search_aliases=["sana", "ksampler", "bidirectional", "short clip", "dpm++", "v2v"],
            inputs=[
                Model.Input("model", tooltip="A bidirectional one, such as sana_bidirectional_short.pth."),
                io.Conditioning.Input(
                    "positive", tooltip="From SANA-Streaming Prompt, with motion_score 10 as the model was trained."
                ),
                io.Latent.Input(
                    "source",
                    tooltip="Latents of the whole clip, from SANA-Streaming Encode Video; with tiles on as the release has it.",
                ),
                comfy_host.widget(
                    io.Int,
                    "seed",
                    default=defaults.seed,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Of the noise. The same seed gives the same clip.",
                ),
                comfy_host.widget(
                    io.Int,
                    "steps",
                    default=defaults.steps,
                    min=2,
                    max=1000,
                    tooltip="Denoising passes; fewer are faster and rougher.",
                ),
                comfy_host.widget(
                    io.Float,
                    "cfg_scale",
                    default=defaults.cfg_scale,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance: how strictly the prompt is followed. 1 is none and halves the work.",
                ),
                comfy_host.widget(
                    io.Float,
                    "flow_shift",
                    default=defaults.flow_shift,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How many of the steps go to the noisy end. The model was made with 8.",
                ),
                comfy_host.widget(
                    io.Int,
                    "max_frames",
                    default=defaults.max_frames,
                    min=1,
                    max=100_000,
                    advanced=True,
                    tooltip="Longest clip that is accepted. Memory and time grow with the clip, and the model was trained on "
                    f"{TRAINED_FRAMES} frames.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Needed where cfg_scale is above 1. The release's is that of SANA-Streaming Prompt with "
                    "default_negative on.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        positive: list[Any],
        source: dict[str, Any],
        seed: int,
        steps: int,
        cfg_scale: float,
        flow_shift: float,
        max_frames: int,
        negative: list[Any] | None = None,
    ) -> io.NodeOutput:
        options = ShortClipOptions(
            steps=steps, cfg_scale=cfg_scale, seed=seed, flow_shift=flow_shift, max_frames=max_frames
        )
        check_bidirectional(model.network)
        samples, stretch = from_latent(source)
        check_latent_channels(model.network, samples.shape[1], "these are")
        check_whole(stretch, "edited")
        check_length(stretch.num_frames, options)
        prompts = single_prompt(positive, negative, options.guided)
        with comfy_host.explained_memory(MEMORY_KNOBS), torch.no_grad():
            edited = _sample(model, samples, options, prompts)
        return io.NodeOutput({**source, SAMPLES: edited.to(comfy_host.result_device())})


def _sample(model: LoadedModel, samples: torch.Tensor, options: ShortClipOptions, prompts: Prompts) -> torch.Tensor:
    network, stream = model.network, options.as_stream()
    channels, count, *grid = samples.shape[1:]
    needed = short_memory(network.config, count, (grid[0], grid[1]), options.guided, network.dtype)
    comfy_host.load([model.patcher], needed)
    context = embedded_context(network, stream, prompts.positive, prompts.negative, model.device)
    noise = ChunkNoise(stream, count, (channels, grid[0], grid[1])).draw(0, 0, count)
    report = comfy_host.ProgressReport(options.steps)
    return sample_short(network, context, noise, samples.to(model.device), options, on_pass=lambda *_: report.step())
