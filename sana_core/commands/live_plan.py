"""Everything about a live stream that is decided before weights are read, and its networks."""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from ..config import DIT_PRESETS, VAEConfig
from ..errors import InputError
from ..live.address import SourceAddress, TargetAddress, parse_options
from ..live.prompts import LivePrompts
from ..live.report import check_plot
from ..live.session import LiveSettings, MakeStream
from ..live.sink import check_target_address
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..paths import check_distinct, check_target
from ..streaming.edit_stream import EditStream, Progress, check_networks, check_size
from ..streaming.noise import ChunkNoise
from ..streaming.options import StreamOptions
from ..streaming.passes import default_passes
from ..streaming.pool import StatePool
from ..streaming.prompt_encoders import PromptEncoder
from ..video.geometry import bucket_size, similar_size
from ..weights import nano
from ..weights.dit import load_dit
from ..weights.locate import locate
from ..weights.lora import apply_loras, parse_loras
from ..weights.random_init import RandomPrompts, random_dit, random_vae
from ..weights.vae import DecoderChoice, load_vae
from .edit_footage import DEFAULT_HEIGHT, DEFAULT_WIDTH, SIZE_MULTIPLE, parse_rate, parse_size
from .edit_networks import check_text, pick_device, pick_dtype, random_preset, uses_nano

if TYPE_CHECKING:
    from ..live.server import Access

TOKEN_VARIABLE = "SANA_STREAMING_CONTROL_TOKEN"
RECONNECT = 300.0
_OPTIONS = (
    "steps",
    "cfg_scale",
    "seed",
    "num_cached_blocks",
    "sink_token",
    "anchor_every",
    "start_step",
    "max_sink_distance",
)


@dataclass(frozen=True)
class LivePlan:
    """What to read, to edit and to write. access: who may control it, None for no port."""

    source: SourceAddress
    target: TargetAddress | None
    settings: LiveSettings
    negative_prompt: str
    antialias: bool
    decoder: DecoderChoice
    access: Access | None
    reconnect: float
    device: torch.device
    vae_device: torch.device
    dtype: torch.dtype


def make_plan(options: argparse.Namespace) -> LivePlan:
    """Checks all that can be checked without weights; InputError for the first thing that is wrong."""
    source = _source(options)
    access = _access(options)
    target = _target(options)
    if target is None and access is None:
        raise InputError("nobody would see the edit; give --output, or --control-port for a page that shows it")
    if options.stdin_control and source.kind == "standard":
        raise InputError("--stdin-control and --input - both read standard input; use --control-port, or another input")
    if not 0 <= options.crf <= 51:
        raise InputError(f"--crf {options.crf} is out of range; use 0 (lossless) to 51, 25 is the default")
    if target is not None:
        check_target_address(target, source.text)
    _check_reports(options)
    parse_loras(options.lora)
    device = pick_device(options.device)
    plan = LivePlan(
        source=source,
        target=target,
        settings=_settings(options),
        negative_prompt=options.negative_prompt or "",
        antialias=bool(options.antialias),
        decoder=cast(DecoderChoice, options.decoder),
        access=access,
        reconnect=_reconnect(options.reconnect),
        device=device,
        vae_device=device if options.vae_device is None else pick_device(options.vae_device, "--vae-device"),
        dtype=pick_dtype(options.dtype, device),
    )
    if options.random_weights:
        random_preset(options)
    return plan


def _source(options: argparse.Namespace) -> SourceAddress:
    size = None
    if options.input_size is not None:
        try:
            size = parse_size(options.input_size)
        except InputError:
            raise InputError(
                f"--input-size {options.input_size} is not a size; write width x height in pixels, such as 640x360"
            ) from None
        if min(size) < 1:
            raise InputError(f"--input-size {options.input_size} has no pixels; write such as 640x360")
    return SourceAddress(
        options.input,
        container=options.input_format,
        options=parse_options(options.input_option, "--input-option"),
        size=size,
        rate=parse_rate(options.input_fps, "--input-fps"),
        paced=options.pace_input,
    )


def _target(options: argparse.Namespace) -> TargetAddress | None:
    if options.output is None:
        return None
    more = parse_options(options.output_option, "--output-option")
    return TargetAddress(options.output, container=options.output_format, options=more)


def _settings(options: argparse.Namespace) -> LiveSettings:
    if not options.prompt.strip():
        raise InputError('--prompt is empty; say what to do, for example --prompt "turn it into a watercolour"')
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    stream = StreamOptions(**given, noise="chunk")
    ChunkNoise(stream, None, (1, 1, 1))
    return LiveSettings(
        prompt=options.prompt.strip(),
        options=stream,
        late=options.late,
        compare=options.compare,
        size=_size(options),
        keep_lost=options.late == "wait",
    )


def _size(options: argparse.Namespace) -> Callable[[int, int], tuple[int, int]]:
    """(height, width) of the edit for a source of (height, width)."""
    built_in = uses_nano(options)
    if options.size == "auto" and (options.height, options.width) == (None, None):
        if built_in:
            return lambda height, width: similar_size(height, width, nano.HEIGHT * nano.WIDTH, SIZE_MULTIPLE)
        return bucket_size
    if options.size is not None and (options.height, options.width) != (None, None):
        raise InputError(f"--size {options.size} and --height or --width both say how large; leave one of them out")
    height, width = (nano.HEIGHT, nano.WIDTH) if built_in else (DEFAULT_HEIGHT, DEFAULT_WIDTH)
    if options.size is not None:
        height, width = parse_size(options.size)
    height = options.height if options.height is not None else height
    width = options.width if options.width is not None else width
    check_size(height, width)
    return lambda *source: (height, width)


def _access(options: argparse.Namespace) -> Access | None:
    if options.control_port is None:
        return None
    from ..live.server import Access, check_library

    check_library()
    token = options.control_token or os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    return Access(options.control_host, options.control_port, token)


def _reconnect(seconds: float | None) -> float:
    if seconds is None:
        return RECONNECT
    if not 0 <= seconds < float("inf"):
        raise InputError(f"--reconnect {seconds:g} is not a time; use a number of seconds, 0 for never")
    return seconds


def _check_reports(options: argparse.Namespace) -> None:
    for path in filter(None, (options.report, options.plot)):
        check_target(path)
    check_distinct({"--report": options.report, "--plot": options.plot})
    if options.plot:
        check_plot(options.plot)


def load_networks(
    options: argparse.Namespace, plan: LivePlan
) -> tuple[SanaStreamingDiT, CausalVAE, LivePrompts, dict[str, str]]:
    """Transformer, VAE, prompts that may come at any time, and where they came from."""
    model: SanaStreamingDiT
    text: PromptEncoder
    if options.random_weights:
        config = DIT_PRESETS[random_preset(options)]
        text = RandomPrompts(config.caption_channels, config.max_text_tokens)
        model = random_dit(config, device=plan.device, dtype=plan.dtype)
        vae_config = VAEConfig(decoder_causal=plan.decoder != "chunk_tile")
        vae = random_vae(vae_config, device=plan.vae_device, dtype=plan.dtype)
        sources = dict.fromkeys(("model", "vae", "text_encoder"), "random weights")
    else:
        files = locate(options.model or nano.NAME, options.vae, options.text_encoder, download=options.download)
        text = GemmaTextEncoder(files.text_encoder, device=plan.device, cache_dir=default_cache_dir())
        vae = load_vae(files.vae, device=plan.vae_device, dtype=plan.dtype, decoder=plan.decoder)
        model = load_dit(files.model, device=plan.device, dtype=plan.dtype)
        sources = {name: str(path) for name, path in dataclasses.asdict(files).items()}
    prompts = LivePrompts(text)
    if not options.random_weights:
        check_text(files, prompts.encode(plan.settings.prompt).embeds.shape[-1], model)
    apply_loras(model, parse_loras(options.lora))
    check_networks(model, vae)
    vae.use_graphs(plan.vae_device.type == "cuda")
    return model, vae, prompts, sources


def stream_maker(plan: LivePlan, model: SanaStreamingDiT, vae: CausalVAE) -> MakeStream:
    """Makes streams of these networks, one after another: memory and recorded passes of one serve the next."""
    pool, passes = StatePool(), default_passes(model, plan.device)

    def make(
        height: int,
        width: int,
        options: StreamOptions,
        prompt: str,
        prompts: LivePrompts,
        on_progress: Callable[[Progress], None],
    ) -> EditStream:
        return EditStream(
            model,
            vae,
            prompts,
            prompt=prompt,
            negative_prompt=plan.negative_prompt,
            height=height,
            width=width,
            antialias=plan.antialias,
            options=options,
            on_progress=on_progress,
            passes=passes,
            pool=pool,
        )

    return make
