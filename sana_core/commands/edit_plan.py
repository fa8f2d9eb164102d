"""Everything about a stream over a file that is decided before weights are read."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, cast

import torch

from ..edit_file import FileJob
from ..errors import InputError
from ..precision.plan import check_choice
from ..sampling.flow_match import DISTILLED_TIMESTEPS
from ..streaming.chunks import ChunkPlan
from ..streaming.noise import ChunkNoise
from ..streaming.options import StreamOptions
from ..streaming.prompt_schedule import FramePrompts, check_frame_prompts
from ..streaming.state import StreamState
from ..video.reader import FrameSource, PictureFrames, VideoReader
from ..weights.lora import parse_loras
from ..weights.vae import DecoderChoice
from .edit_footage import check_numbers, check_targets, open_footage, output_rate, wanted_size
from .edit_networks import pick_device, pick_dtype, random_preset
from .edit_options import given_prompts
from .exchange import Exchange, check_exchange, read_exchange

# Command-line names of the options that a saved stream brings along.
STREAM_OPTIONS = (
    "steps",
    "cfg_scale",
    "seed",
    "noise",
    "noise_device",
    "num_cached_blocks",
    "sink_token",
    "flow_shift",
    "anchor_every",
    "start_step",
    "max_sink_distance",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to read, to edit and to write. ``source`` is what a saved stream remembers of its clip."""

    job: FileJob
    state: StreamState | None
    total_frames: int
    source: dict[str, Any]
    options: StreamOptions
    size: tuple[int, int]
    antialias: bool
    decoder: DecoderChoice
    prompt: str
    negative_prompt: str
    schedule: FramePrompts
    exchange: Exchange
    device: torch.device
    vae_device: torch.device
    dtype: torch.dtype
    overlap: bool
    graphs: bool
    compiled: bool

    @property
    def prompts(self) -> list[str]:
        """All prompts that come in the course of this run, each once."""
        later = self.schedule if self.state is None else self.state.schedule[self.state.schedule_place :]
        return list(dict.fromkeys([self.prompt, *(prompt for _, prompt in later)]))


def make_plan(options: argparse.Namespace) -> Plan:
    """Checks everything that can be checked without weights; InputError for the first thing that is wrong."""
    check_targets(options)
    check_exchange(options)
    check_numbers(options)
    if options.precision is not None:
        check_choice(options.precision)
    parse_loras(options.lora)
    state = load_state(options) if options.resume else None
    reader, reading = open_footage(options, state.source if state else None)
    source = describe_source(reader, reading, options.start_frame or 0)
    start = check_resumed(options, state, source) if state else source["start_frame"]
    whole = reader.num_frames
    if not 0 <= start < whole and not (state and start == whole):
        raise InputError(f"frame {start} is not in {options.input}, which has frames 0 to {whole - 1}")
    left = whole - start
    taken = left if options.max_frames is None else min(left, options.max_frames)
    # With --save-state the stream is that of the rest of the clip, so that a later run can go on as if it were this one.
    partial = options.save_state is not None and taken < left
    total = left if partial else taken
    prompt, schedule = stream_prompts(options, reader, state, total)
    device = pick_device(options.device)
    plan = Plan(
        job=make_job(options, reader, start, taken, state, finish=not partial),
        state=state,
        total_frames=total,
        source=state.source if state else source,
        options=stream_options(options, state),
        size=wanted_size(options, reader, (state.settings.height, state.settings.width) if state else None),
        antialias=wanted_antialias(options, state),
        decoder=wanted_decoder(options, state),
        prompt=prompt,
        negative_prompt=options.negative_prompt or (state.negative_prompt if state else ""),
        schedule=schedule,
        exchange=read_exchange(options, total),
        device=device,
        vae_device=device if options.vae_device is None else pick_device(options.vae_device, "--vae-device"),
        dtype=pick_dtype(options.dtype, device),
        overlap=device.type == "cuda" if options.overlap in (None, "auto") else options.overlap == "on",
        graphs=wanted_graphs(options, device),
        compiled=bool(options.compile),
    )
    if state is not None:
        check_kept(plan, state)
    if options.random_weights:
        random_preset(options)
    ChunkNoise(plan.options, None, (1, 1, 1))
    return plan


def wanted_graphs(options: argparse.Namespace, device: torch.device) -> bool:
    """Whether passes are recorded. InputError where they are to be and there is no GPU."""
    if options.cuda_graph == "on" and device.type != "cuda":
        raise InputError(
            f"--cuda-graph on records the work of a GPU, and the transformer runs on {device}; use auto or off"
        )
    return device.type == "cuda" and options.cuda_graph != "off"


def load_state(options: argparse.Namespace) -> StreamState:
    """The stream of ``--resume``. InputError where it is none that ``edit`` can go on with."""
    state = StreamState.load(options.resume)
    if state.finished:
        raise InputError(f"{options.resume} is a stream that has reached its end; start a new one without --resume")
    if options.start_frame is not None:
        raise InputError(f"--start-frame {options.start_frame} goes with a new stream; leave it out with --resume")
    if not state.source:
        raise InputError(f"{options.resume} was not saved by edit --save-state; go on with it where it was made")
    return state


def describe_source(reader: VideoReader, reading: dict[str, Any], start: int) -> dict[str, Any]:
    """What a saved stream remembers of its clip, as it is read."""
    height, width = reader.size
    return {
        "frames": reader.num_frames,
        "width": width,
        "height": height,
        "frame_rate": str(reader.frame_rate),
        "start_frame": start,
        **reading,
    }


def check_resumed(options: argparse.Namespace, state: StreamState, source: dict[str, Any]) -> int:
    """The source frame that a saved stream goes on with; InputError for another clip than its own."""
    for name in ("frames", "width", "height", "frame_rate"):
        if state.source[name] != source[name]:
            raise InputError(
                f"{options.resume} is a stream over a clip with {name.replace('_', ' ')} {state.source[name]}, "
                f"{options.input} has {source[name]}; give the clip that the stream was started with"
            )
    return int(state.source["start_frame"]) + state.frames_in


def stream_options(options: argparse.Namespace, state: StreamState | None) -> StreamOptions:
    """The options given, the rest from the saved stream or the defaults."""
    given = {name: value for name in STREAM_OPTIONS if (value := getattr(options, name)) is not None}
    saved = state.settings.options if state else None
    wanted = dataclasses.replace(saved or StreamOptions(), **given)
    if wanted.flow_shift != StreamOptions.flow_shift and wanted.steps in DISTILLED_TIMESTEPS:
        distilled = " and ".join(map(str, DISTILLED_TIMESTEPS))
        raise InputError(
            f"--flow-shift {wanted.flow_shift:g} has no say over {wanted.steps} steps: the times of {distilled} are fixed; "
            "leave it out, or use another number of --steps"
        )
    return wanted


def stream_prompts(
    options: argparse.Namespace, reader: VideoReader, state: StreamState | None, total_frames: int
) -> tuple[str, FramePrompts]:
    """The prompt in force at once, and those to come. InputError for a prompt that would get no chunk."""
    prompt, schedule = given_prompts(options, output_rate(options, reader))
    if state is not None:
        if prompt is None and options.motion_score is not None:
            raise InputError(
                f"--motion-score {options.motion_score} is written behind a new prompt; give --prompt as well, or leave it out"
            )
        return state.prompt if prompt is None else prompt, ()
    if prompt is None and not options.input_text_embed:
        raise InputError('no --prompt is given; say what to do, for example --prompt "turn it into a watercolour"')
    check_frame_prompts(schedule if not schedule else ((0, prompt or ""), *schedule), ChunkPlan(total_frames))
    return prompt or "", schedule


def wanted_antialias(options: argparse.Namespace, state: StreamState | None) -> bool:
    if options.antialias is None:
        return state is not None and state.settings.antialias
    return bool(options.antialias)


def wanted_decoder(options: argparse.Namespace, state: StreamState | None) -> DecoderChoice:
    """``auto`` leaves it to the saved stream, else to the VAE's config."""
    if options.decoder == "auto" and state is not None and state.settings.decoder:
        return cast(DecoderChoice, state.settings.decoder)
    return cast(DecoderChoice, options.decoder)


def check_kept(plan: Plan, state: StreamState) -> None:
    """InputError where the plan contradicts the saved stream."""
    height, width = plan.size
    decoder = state.settings.decoder if plan.decoder == "auto" else plan.decoder
    state.adopt(
        dataclasses.replace(
            state.settings,
            height=height,
            width=width,
            options=plan.options,
            antialias=plan.antialias,
            decoder=decoder,
        )
    )


def make_job(
    options: argparse.Namespace,
    reader: VideoReader,
    start: int,
    taken: int,
    state: StreamState | None,
    finish: bool,
) -> FileJob:
    frames: FrameSource
    if taken:
        frames = reader.part(start, taken)
    else:
        # All frames were read before the stream was stopped; what waits in its state is still to come out.
        frames = PictureFrames(torch.zeros(0, *reader.size, 3, dtype=torch.uint8), reader.frame_rate)
    due = state.frames_in - state.frames_out if state else 0
    rate = output_rate(options, reader)
    return FileJob(
        frames=frames,
        target=options.output,
        start=start,
        frame_rate=rate if rate != reader.frame_rate else None,
        crf=options.crf,
        audio_from=options.input if reader.info.has_audio else None,
        finish=finish,
        sheet=options.sheet,
        compare=options.compare,
        due=reader.part(start - due, due) if options.compare and due else None,
    )
