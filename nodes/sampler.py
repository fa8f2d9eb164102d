"""Denoising: SanaStreamingSampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.streaming.edit_stream import embedded_context
from ..sana_core.streaming.memory import dit_memory
from ..sana_core.streaming.noise import ChunkNoise
from ..sana_core.streaming.options import MAX_SEED, StreamOptions
from ..sana_core.streaming.prompt_schedule import check_frame_prompts, chunk_start, place_at
from ..sana_core.streaming.sampler import check_latent_channels, check_streaming, sample_chunks
from ..sana_core.streaming.state import DiTState, StreamSettings, StreamState
from . import comfy_host
from .frames import DEFAULT_RATE
from .graphs import graph_input, passes_of
from .latents import LOOK, SAMPLES, Stretch, from_latent, is_ltx2
from .prompt import Prompts, connected_prompts
from .sockets import LoadedModel, Model, State
from .steering import steering_inputs

MEMORY_KNOBS = "make width and height smaller, or num_cached_blocks 1"


def sampling_inputs() -> list[Any]:
    """Widgets that every sampling node has, in their order.

    Not to be added to: saved workflows know widgets by their place. A new one goes to the end of each node.
    """
    return [
        comfy_host.widget(
            io.Int,
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Of the noise. The same seed gives the same video.",
        ),
        comfy_host.widget(
            io.Int,
            "steps",
            default=4,
            min=1,
            max=100,
            tooltip="Denoising passes per chunk. The model was distilled for 4, and for 2 at some loss.",
        ),
        comfy_host.widget(
            io.Int,
            "num_cached_blocks",
            default=2,
            min=0,
            max=64,
            advanced=True,
            tooltip="Chunks that softmax blocks read back, the sink included; the model was trained with 2. "
            "0 keeps the whole history, whose memory grows with the clip.",
        ),
        comfy_host.widget(
            io.Boolean,
            "sink_token",
            default=True,
            advanced=True,
            tooltip="Keep the first chunk in view for ever, which holds the look of a long video together.",
        ),
        comfy_host.widget(
            io.Float,
            "cfg_scale",
            default=1.0,
            min=0.0,
            max=20.0,
            step=0.1,
            advanced=True,
            tooltip="Guidance. The model is distilled for 1 (none); above 1 the work doubles and negative is needed.",
        ),
        comfy_host.widget(
            io.Combo,
            "noise",
            options=["clip", "chunk"],
            default="clip",
            advanced=True,
            tooltip="clip draws noise for the whole clip at once, as the release does; chunk draws it chunk by chunk, so "
            "that it does not depend on the clip's length. Very long and endless streams always use chunk.",
        ),
    ]


class SanaStreamingSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingSampler",
            display_name="SANA-Streaming Sampler",
            category=comfy_host.CATEGORY,
            description="Edits source latents chunk by chunk. With a state it goes on where an earlier run stopped.",
            search_aliases=["sana", "ksampler", "streaming sampler", "video edit", "v2v"],
            inputs=[
                Model.Input("model", tooltip="From Load SANA-Streaming Model."),
                io.Conditioning.Input(
                    "positive", tooltip="From SANA-Streaming Prompt, or a schedule from SANA-Streaming Prompt Schedule."
                ),
                io.Latent.Input("source", tooltip="Latents of the video to edit, from SANA-Streaming Encode Video."),
                *sampling_inputs(),
                io.Conditioning.Input("negative", optional=True, tooltip="Needed where cfg_scale is above 1."),
                State.Input(
                    "state", optional=True, tooltip="From an earlier part of the same stream, to go on from there."
                ),
                *steering_inputs(),
                graph_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent"), State.Output(display_name="state")],
        )

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        positive: list[Any],
        source: dict[str, Any],
        seed: int,
        steps: int,
        num_cached_blocks: int,
        sink_token: bool,
        cfg_scale: float,
        noise: Any,
        negative: list[Any] | None = None,
        state: StreamState | None = None,
        anchor_every: int = 0,
        start_step: int = 0,
        max_sink_distance: int = 0,
        cuda_graph: bool = False,
    ) -> io.NodeOutput:
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
        check_streaming(model.network)
        samples, stretch = from_latent(source)
        check_latent_channels(model.network, samples.shape[1], "these are")
        prompts = connected_prompts(positive, negative, options.guided)
        state = _continued(state, samples, stretch, model, options)
        state.schedule = prompts.schedule(stretch.frame_rate or DEFAULT_RATE)
        check_frame_prompts(state.schedule, stretch.plan)
        try:
            # A recorded pass needs weights that stay where they are.
            preview = comfy_host.LatentPreview(
                source.get(LOOK), model.device, is_ltx2=is_ltx2(source), may_load=not cuda_graph
            )
            edited = _sample(model, samples, stretch, state, options, prompts, preview, cuda_graph)
        except BaseException:
            state.release()
            raise
        if stretch.is_last:
            # Nothing follows, so nothing needs to be kept.
            state.dit = None
        return io.NodeOutput({**source, SAMPLES: edited}, state.to(comfy_host.result_device()))


def _continued(
    state: StreamState | None, samples: torch.Tensor, stretch: Stretch, model: LoadedModel, options: StreamOptions
) -> StreamState:
    """A state of its own for this run: the given one, or a fresh one, with the model and the options decided."""
    total = stretch.plan.total_frames
    if state is None:
        state = StreamState(StreamSettings(stretch.height, stretch.width, total))
    state = state.clone()
    wanted = replace(state.settings, total_frames=total).with_model(model.network, options)
    wanted = replace(wanted, model=model.fingerprint)
    if stretch.height:
        wanted = replace(wanted, height=stretch.height, width=stretch.width)
    state.adopt(wanted)
    if state.dit is None:
        state.dit = DiTState.for_plan(stretch.plan, options)
    else:
        state.dit.check(model.network, (samples.shape[3], samples.shape[4]), rows=2 if options.guided else 1)
    if state.dit.num_chunks != stretch.first_chunk:
        raise InputError(
            f"the source latents begin with chunk {stretch.first_chunk}, the state goes on with chunk "
            f"{state.dit.num_chunks}; connect the state that came with the part before these latents"
        )
    return state


def _names(prompts: Prompts, state: StreamState, stretch: Stretch) -> list[str]:
    """The name of the prompt in force for each chunk of the stretch."""
    if not state.schedule:
        return [prompts.text] * len(stretch.sizes)
    starts = (chunk_start(stretch.first_chunk + i, stretch.plan) for i in range(len(stretch.sizes)))
    return [state.schedule[place_at(state.schedule, start) - 1][1] for start in starts]


def _sample(
    model: LoadedModel,
    samples: torch.Tensor,
    stretch: Stretch,
    state: StreamState,
    options: StreamOptions,
    prompts: Prompts,
    preview: comfy_host.LatentPreview,
    cuda_graph: bool,
) -> torch.Tensor:
    """Edited latents of the size of the source, on the device for results; ``state`` moves on.

    Shows each finished chunk roughly.
    """
    memory, plan, network = state.dit, stretch.plan, model.network
    assert memory is not None
    grid = (samples.shape[3], samples.shape[4])
    count, last, names = len(stretch.sizes), stretch.is_last, _names(prompts, state, stretch)
    carries = (options.carries(stretch.first_chunk + i, last and i + 1 == count) for i in range(count))
    report = comfy_host.ProgressReport(sum(options.passes(carry) for carry in carries))
    out = torch.empty_like(samples, dtype=torch.float32, device=comfy_host.result_device())
    with comfy_host.explained_memory(MEMORY_KNOBS), torch.no_grad():
        carried, work = dit_memory(network.config, plan, grid, options, network.dtype)
        comfy_host.load([model.patcher], carried + work)
        memory.to(model.device)
        contexts = {
            name: embedded_context(network, options, prompts.embeddings[name], prompts.negative, model.device)
            for name in dict.fromkeys(names)
        }
        noise = ChunkNoise(options, plan.total_latents, (network.config.in_channels, *grid))
        start = 0
        with passes_of(model, cuda_graph) as passes:
            for edited in sample_chunks(
                network,
                memory,
                [contexts[name] for name in names],
                noise.draw,
                samples.to(model.device),
                options,
                stretch.sizes,
                last=last,
                on_pass=lambda *_: report.step(),
                passes=passes,
            ):
                out[:, :, start : start + edited.shape[2]] = edited
                start += edited.shape[2]
                # Even a picture that comes to nothing may have sent the model away.
                loads = preview.loads
                if (picture := preview.picture(edited)) is not None:
                    report.show(picture)
                if loads and start < samples.shape[2]:
                    # What is carried is there already.
                    comfy_host.load([model.patcher], work)
    state.prompt, state.negative_prompt = names[-1], prompts.negative_text
    state.schedule_place = place_at(state.schedule, chunk_start(stretch.first_chunk + count - 1, plan))
    return out
