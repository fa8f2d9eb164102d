"""The networks of ``edit`` and the machine they run on."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..config import DIT_PRESETS, VAEConfig
from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..precision.apply import apply_plan
from ..precision.calibration import calibrated
from ..precision.plan import choose_plan
from ..streaming.edit_stream import check_networks, check_size
from ..streaming.prompt_encoders import PreparedPrompts, PromptEncoder
from ..weights import nano
from ..weights.dit import load_dit
from ..weights.locate import Components, locate
from ..weights.lora import apply_loras, parse_loras
from ..weights.random_init import RandomPrompts, random_dit, random_vae
from ..weights.vae import load_vae

if TYPE_CHECKING:
    from .edit_plan import Plan
    from .short import ShortPlan

RANDOM = "random weights"
Check = Callable[[SanaStreamingDiT, CausalVAE], None]


def pick_device(name: str, option: str = "--device") -> torch.device:
    """The device called ``name``, ``auto`` being the GPU where there is one.

    InputError, which names ``option``, for one that cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"{option} {name} cannot be used here; use auto, cpu, or cuda where torch sees a GPU"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``name``, ``auto`` being bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def uses_nano(options: argparse.Namespace) -> bool:
    """Whether the transformer is the built-in one."""
    return not options.random_weights and options.model in (None, nano.NAME)


def print_nano() -> None:
    hint = f"a small model that knows these edits: {nano.EDITS}; for others name weights by --model"
    print(f"model: nano (built in), {hint}", flush=True)


def random_preset(options: argparse.Namespace) -> str:
    """The preset that ``--random-weights`` builds. InputError for a ``--model`` that is none."""
    preset = options.model or next(iter(DIT_PRESETS))
    if preset not in DIT_PRESETS:
        raise InputError(f"--random-weights needs a preset as --model, not {preset}; use {', '.join(DIT_PRESETS)}")
    return preset


def load_networks(
    options: argparse.Namespace, plan: Plan | ShortPlan, check: Check = check_networks
) -> tuple[SanaStreamingDiT, CausalVAE, PromptEncoder, dict[str, str]]:
    """Transformer, VAE, embedded prompts and where they came from; the text encoder is gone before the others come.

    ``check`` raises InputError for a transformer and a VAE that cannot do the mode's work together.
    """
    if options.random_weights:
        return _random_networks(options, plan, check)
    # Embedded prompts stand in the text encoder's place.
    text = options.input_text_embed or options.text_encoder
    files = locate(options.model or nano.NAME, options.vae, text, download=options.download)
    prompts: PromptEncoder | None = plan.exchange.fixed_prompts(plan.options.guided)
    width = None
    if prompts is None:
        prompts = _embedded_prompts(files, plan)
        width = next(iter(prompts.positive.values())).embeds.shape[-1]
    vae = load_vae(files.vae, device=_vae_device(plan), dtype=plan.dtype, decoder=plan.decoder)
    check_size(*plan.size, vae.config.spatial_factor)
    loras = parse_loras(options.lora)
    model = load_dit(
        files.model,
        device=plan.device,
        dtype=plan.dtype,
        precision=options.precision,
        change=lambda model: apply_loras(model, loras),
    )
    if width is not None:
        check_text(files, width, model)
    check(model, vae)
    sources = {name: str(path) for name, path in dataclasses.asdict(files).items()}
    if options.precision is not None:
        sources["precision"] = options.precision
    if loras:
        sources["lora"] = ", ".join(map(str, loras))
    return model, vae, prompts, sources


def _vae_device(plan: Plan | ShortPlan) -> torch.device:
    """A short clip has one device for all."""
    device = getattr(plan, "vae_device", plan.device)
    assert isinstance(device, torch.device)
    return device


def _embedded_prompts(files: Components, plan: Plan | ShortPlan) -> PreparedPrompts:
    with GemmaTextEncoder(files.text_encoder, device=plan.device, cache_dir=default_cache_dir()) as text:
        return PreparedPrompts(
            {prompt: text.encode(prompt) for prompt in plan.prompts},
            text.encode_negative(plan.negative_prompt) if plan.options.guided else None,
        )


def check_text(files: Components, width: int, model: SanaStreamingDiT) -> None:
    """InputError unless embeddings of ``width`` channels are what the transformer takes."""
    if width != model.config.caption_channels:
        raise InputError(
            f"{files.text_encoder} gives {width} channels, {files.model} takes {model.config.caption_channels}; "
            "use the text encoder that belongs to the model"
        )


def _random_networks(
    options: argparse.Namespace, plan: Plan | ShortPlan, check: Check
) -> tuple[SanaStreamingDiT, CausalVAE, PromptEncoder, dict[str, str]]:
    preset = random_preset(options)
    config = DIT_PRESETS[preset]
    text = RandomPrompts(config.caption_channels, config.max_text_tokens)
    prompts: PromptEncoder = plan.exchange.fixed_prompts(plan.options.guided) or PreparedPrompts(
        {prompt: text.encode(prompt) for prompt in plan.prompts}, text.encode_negative(plan.negative_prompt)
    )
    model = random_dit(config, device=plan.device, dtype=plan.dtype)
    apply_loras(model, parse_loras(options.lora))
    if options.precision is not None:
        apply_plan(model, calibrated(model, choose_plan(options.precision, config)))
    vae = random_vae(VAEConfig(decoder_causal=plan.decoder != "chunk_tile"), device=_vae_device(plan), dtype=plan.dtype)
    check(model, vae)
    return model, vae, prompts, {"model": f"{preset}, {RANDOM}", "vae": RANDOM, "text_encoder": RANDOM}
