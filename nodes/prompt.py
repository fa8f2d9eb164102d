"""Prompts: SanaStreamingPrompt, and CONDITIONING to embeddings and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.models.prompt import PromptEmbedding
from ..sana_core.models.text_encoder import GemmaTextEncoder
from . import comfy_host
from .sockets import TextEncoder

# Keys of a conditioning's dictionary.
MASK, TEXT = "attention_mask", "sana_prompt"


class SanaStreamingPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingPrompt",
            display_name="SANA-Streaming Prompt",
            category=comfy_host.CATEGORY,
            description="Encodes an edit instruction. Results are kept on disk: a known prompt loads no text encoder.",
            search_aliases=["sana", "edit prompt", "instruction", "clip text encode"],
            inputs=[
                TextEncoder.Input("text_encoder", tooltip="From Load SANA-Streaming Text Encoder."),
                comfy_host.widget(
                    io.String,
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    placeholder="turn it into a watercolour",
                    tooltip="What should change, as an instruction. About 200 words fit; more is cut with a warning.",
                ),
                comfy_host.widget(
                    io.String,
                    "negative_prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=True,
                    advanced=True,
                    tooltip="What to avoid. Used only where cfg_scale is above 1.",
                ),
                comfy_host.widget(
                    io.Int,
                    "motion_score",
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="0 writes nothing, as the streaming model was trained; the short-clip model was trained with 10.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls, text_encoder: GemmaTextEncoder, prompt: str, negative_prompt: str, motion_score: int
    ) -> io.NodeOutput:
        if not prompt.strip():
            raise InputError('the prompt is empty; say what should change, for example "turn it into a watercolour"')
        if text_encoder.device.type != "cpu":
            size, device = text_encoder.weight_bytes, text_encoder.device
            text_encoder.before_load = lambda: comfy_host.make_room(size, device)
        with text_encoder:
            positive = text_encoder.encode(prompt, motion_score=motion_score)
            negative = text_encoder.encode_negative(negative_prompt)
        return io.NodeOutput(to_conditioning(positive, prompt), to_conditioning(negative, negative_prompt))


def to_conditioning(embedding: PromptEmbedding, text: str) -> list[Any]:
    """ComfyUI's form: [[embeddings [1, L, C], {"attention_mask": [1, L], ...}]]."""
    return [[embedding.embeds, {MASK: embedding.mask, TEXT: text}]]


def from_conditioning(conditioning: list[Any], what: str) -> tuple[PromptEmbedding, str]:
    """(embedding, text) of a conditioning; InputError for one that holds several, or none."""
    if len(conditioning) != 1:
        raise InputError(f"{what} holds {len(conditioning)} conditionings; connect exactly one SANA-Streaming Prompt")
    embeds, extra = conditioning[0]
    mask = extra.get(MASK)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    return PromptEmbedding(embeds, mask, int(mask.sum())), extra.get(TEXT, "")


@dataclass(frozen=True)
class Prompts:
    """What is connected: embeddings and their texts. ``negative`` is None without guidance."""

    positive: PromptEmbedding
    text: str
    negative: PromptEmbedding | None
    negative_text: str


def connected_prompts(positive: list[Any], negative: list[Any] | None, guided: bool) -> Prompts:
    """The connected conditionings; InputError when guidance lacks a negative one."""
    embedding, text = from_conditioning(positive, "positive")
    if not guided:
        return Prompts(embedding, text, None, "")
    if negative is None:
        raise InputError("cfg_scale above 1 needs a negative prompt; connect one, or set cfg_scale to 1")
    return Prompts(embedding, text, *from_conditioning(negative, "negative"))
