"""Prompts: SanaStreamingPrompt, SanaStreamingPromptSchedule, and CONDITIONING to embeddings and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.errors import InputError
from ..sana_core.models.prompt import DEFAULT_NEGATIVE_PROMPT, PromptEmbedding
from ..sana_core.models.text_encoder import GemmaTextEncoder
from ..sana_core.streaming.prompt_encoders import FixedPrompts, PreparedPrompts, PromptEncoder
from ..sana_core.streaming.prompt_schedule import FramePrompts, PromptSchedule, format_time, parse_time
from . import comfy_host
from .clip import ClipTextEncoder
from .sockets import TextEncoder

# Keys of a conditioning's dictionary: of tokens, of the words, and of the time in seconds at which a prompt begins.
MASK, TEXT, START = "attention_mask", "sana_prompt", "sana_start"
# What a conditioning without words, made by another pack, is called.
NAMELESS = "a connected conditioning"


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
                comfy_host.widget(
                    io.MultiType,
                    "text_encoder",
                    types=[TextEncoder, io.Clip],
                    tooltip="From Load SANA-Streaming Text Encoder; or Gemma-2-2b-it from ComfyUI's Load CLIP, type pixeldit.",
                ),
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
                comfy_host.widget(
                    io.Boolean,
                    "default_negative",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Takes the release's negative prompt for short clips where negative_prompt is empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        return prompt is None or comfy_host.answer(lambda: _require_words(prompt))

    @classmethod
    def execute(
        cls,
        text_encoder: Any,
        prompt: str,
        negative_prompt: str,
        motion_score: int,
        default_negative: bool = False,
    ) -> io.NodeOutput:
        _require_words(prompt)
        if default_negative and not negative_prompt.strip():
            negative_prompt = DEFAULT_NEGATIVE_PROMPT
        with _ready(text_encoder) as encoder:
            positive = encoder.encode(prompt, motion_score=motion_score)
            negative = encoder.encode_negative(negative_prompt)
        return io.NodeOutput(to_conditioning(positive, prompt), to_conditioning(negative, negative_prompt))


def _require_words(prompt: str) -> None:
    if not prompt.strip():
        raise InputError('the prompt is empty; say what should change, for example "turn it into a watercolour"')


@contextmanager
def _ready(text_encoder: Any) -> Iterator[GemmaTextEncoder | ClipTextEncoder]:
    """Our text encoder, unloaded at the end, or a CLIP, which ComfyUI loads and unloads."""
    if not isinstance(text_encoder, GemmaTextEncoder):
        yield ClipTextEncoder(text_encoder)
        return
    if text_encoder.device.type != "cpu":
        size, device = text_encoder.weight_bytes, text_encoder.device
        text_encoder.before_load = lambda: comfy_host.make_room(size, device)
    with text_encoder:
        yield text_encoder


class SanaStreamingPromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingPromptSchedule",
            display_name="SANA-Streaming Prompt Schedule",
            category=comfy_host.CATEGORY,
            description="Changes the prompt of a stream at a given time, without a cut. Chain several for several changes.",
            search_aliases=["sana", "prompt travel", "prompt scheduling", "keyframe prompt", "timeline"],
            inputs=[
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt from the first frame on, from SANA-Streaming Prompt, or the schedule so far.",
                ),
                io.Conditioning.Input("later", tooltip="The prompt that takes over, from SANA-Streaming Prompt."),
                comfy_host.widget(
                    io.String,
                    "at",
                    default="00:05",
                    tooltip="When, counted from the first frame that is edited: seconds (75.5), mm:ss (01:15.5) or "
                    "hh:mm:ss. It applies from the first chunk that begins at this time or later.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive")],
        )

    @classmethod
    def validate_inputs(cls, at: str | None = None) -> bool | str:
        # A time that comes over a link is not known before the run.
        return at is None or comfy_host.answer(lambda: parse_time(at))

    @classmethod
    def execute(cls, positive: list[Any], later: list[Any], at: str) -> io.NodeOutput:
        if len(later) != 1 or START in later[0][1]:
            raise InputError(
                "later is a schedule already; connect one SANA-Streaming Prompt there, and the schedule to positive"
            )
        embeds, extra = later[0]
        joined = [*positive, [embeds, {**extra, START: parse_time(at)}]]
        # Complains of two prompts for one time.
        connected_prompts(joined, None, guided=False)
        return io.NodeOutput(joined)


def to_conditioning(embedding: PromptEmbedding, text: str) -> list[Any]:
    """ComfyUI's form: [[embeddings [1, L, C], {"attention_mask": [1, L], ...}]]."""
    return [[embedding.embeds, {MASK: embedding.mask, TEXT: text}]]


def from_conditioning(conditioning: list[Any], what: str) -> tuple[PromptEmbedding, str]:
    """(embedding, text) of a conditioning; InputError for one that holds several, or none."""
    if len(conditioning) != 1:
        raise InputError(
            f"{what} holds {len(conditioning)} conditionings; connect exactly one SANA-Streaming Prompt, or several by way of "
            "SANA-Streaming Prompt Schedule"
        )
    embeds, extra = conditioning[0]
    mask = extra.get(MASK)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    return PromptEmbedding(embeds, mask, int(mask.sum())), extra.get(TEXT, "")


@dataclass(frozen=True)
class Prompts:
    """What is connected: the prompt that a stream begins with, what it is changed to, and the negative one.

    ``positive`` and ``text`` are of the first prompt. ``later`` are those that follow, by the name that ``changes`` gives each
    beside its time. ``negative`` is None without guidance.
    """

    positive: PromptEmbedding
    text: str
    negative: PromptEmbedding | None
    negative_text: str
    later: dict[str, PromptEmbedding]
    changes: PromptSchedule

    def schedule(self, frame_rate: Fraction) -> FramePrompts:
        """(first frame, name) of every prompt, the first included; empty where there is but one."""
        changes = self.changes.in_frames(frame_rate)
        if not changes or changes[0][0] == 0:
            return changes
        return ((0, self.text), *changes)

    @property
    def embeddings(self) -> dict[str, PromptEmbedding]:
        """Every positive embedding by its name."""
        return {self.text: self.positive, **self.later}

    def encoder(self) -> PromptEncoder:
        """What a stream asks for them."""
        if not self.later:
            return FixedPrompts(self.positive, self.negative)
        return PreparedPrompts(self.embeddings, self.negative)


def connected_prompts(positive: list[Any], negative: list[Any] | None, guided: bool) -> Prompts:
    """The connected conditionings; InputError when guidance lacks a negative one, or a schedule makes no sense."""
    first = [entry for entry in positive if START not in entry[1]]
    scheduled = [entry for entry in positive if START in entry[1]]
    embedding, text = from_conditioning(first, "positive")
    text = text or (NAMELESS if scheduled else "")
    names: list[str] = []
    for _, extra in scheduled:
        words = extra.get(TEXT) or NAMELESS
        # One text may stand for several embeddings, of different motion scores for example.
        names.append(f"{words} (from {format_time(extra[START])})" if words in (text, *names) else words)
    changes = PromptSchedule(tuple((entry[1][START], name) for entry, name in zip(scheduled, names, strict=True)))
    later = {name: from_conditioning([entry], "later")[0] for entry, name in zip(scheduled, names, strict=True)}
    if not guided:
        return Prompts(embedding, text, None, "", later, changes)
    if negative is None:
        raise InputError("cfg_scale above 1 needs a negative prompt; connect one, or set cfg_scale to 1")
    return Prompts(embedding, text, *from_conditioning(negative, "negative"), later, changes)


def single_prompt(positive: list[Any], negative: list[Any] | None, guided: bool) -> Prompts:
    """As :func:`connected_prompts`; InputError for a schedule."""
    prompts = connected_prompts(positive, negative, guided)
    if prompts.later:
        raise InputError(
            f"positive holds a schedule of {1 + len(prompts.later)} prompts, and a clip that is edited whole has one; connect "
            "one SANA-Streaming Prompt, or edit with SANA-Streaming Edit Video"
        )
    return prompts
