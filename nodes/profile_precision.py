"""Which matrix stands which format, measured: SanaStreamingProfilePrecision."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..sana_core.precision.chart import latency_label
from ..sana_core.precision.journal import Journal
from ..sana_core.precision.latency import TARGETS
from ..sana_core.precision.plan import UNQUANTIZED, Plan
from ..sana_core.precision.profile import QUANTIZED, Point, Profile, Profiler, ProfileSettings, Progress, power
from ..sana_core.precision.reference import CalibrationClip
from ..sana_core.streaming.options import StreamOptions
from ..sana_core.streaming.sampler import check_latent_channels, check_streaming
from . import comfy_host, sockets
from .latents import from_latent
from .precision import CATEGORY, MEMORY_ONLY, SUFFIX, copied, require_whole
from .precision_chart import draw
from .prompt import single_prompt
from .sockets import LoadedModel, Model

MEMORY_KNOBS = "make width and height of the calibration clip smaller, or its frames fewer"
# Where journals are kept, in ComfyUI's output folder.
JOURNALS = "sana_streaming/profiles"
_TELL_SECONDS = 0.5


class SanaStreamingProfilePrecision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingProfilePrecision",
            display_name="SANA-Streaming Profile Precision",
            category=CATEGORY,
            description="Measures what each format does to each matrix on your clip, and picks the best plan within a budget. "
            "Takes minutes to hours; every number is kept at once, so a stopped run goes on, and another budget is answered "
            f"from what is known. {MEMORY_ONLY}",
            search_aliases=["sana", "quantize", "sensitivity", "mixed precision", "fp8", "nvfp4", "profile"],
            inputs=[
                Model.Input("model", tooltip="From Load SANA-Streaming Model, not quantized. It stays as it is."),
                io.Latent.Input(
                    "source",
                    tooltip="Calibration latents: a clip like yours, 65 frames or more, from SANA-Streaming Encode Video. "
                    "More and larger frames take longer.",
                ),
                io.Conditioning.Input("positive", tooltip="What to do to the clip, from SANA-Streaming Prompt."),
                comfy_host.widget(
                    io.Float,
                    "max_latency",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Budget: the least error within this share of the time that unquantized matrices take, 0.5 being "
                    "half. 0: no such budget.",
                ),
                comfy_host.widget(
                    io.Float,
                    "min_sqnr",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Budget: the fastest plan with this signal to noise in dB, by the sum of errors. 0: no such "
                    "budget. Without either budget: the fastest that errs no more than fp8 everywhere, or than the first of "
                    "formats if fp8 is none of them.",
                ),
                comfy_host.widget(
                    io.String,
                    "formats",
                    default=" ".join(QUANTIZED),
                    tooltip="To choose from, beside bf16, which is always there. Each one takes its time to measure. "
                    f"{MEMORY_ONLY}",
                ),
                comfy_host.widget(
                    io.Combo,
                    "latency",
                    options=["measured", "projected"],
                    default="measured",
                    advanced=True,
                    tooltip="measured: time on this device, what it emulates included. projected: from the data sheet of "
                    "target.",
                ),
                comfy_host.widget(
                    io.Combo,
                    "target",
                    options=list(TARGETS),
                    default="rtx5090",
                    advanced=True,
                    tooltip="GPU that latencies are projected for; h100 multiplies in neither nvfp4 nor mxfp8.",
                ),
                comfy_host.widget(
                    io.Combo,
                    "sizes",
                    options=["own", "2b"],
                    default="own",
                    advanced=True,
                    tooltip="Latencies at the model's own sizes, or as if each block were one of the released 2B model at "
                    "1280x704: nano's matrices are too small for any format to pay.",
                ),
                comfy_host.widget(
                    io.Int,
                    "steps",
                    default=4,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Denoising passes per chunk, as you will sample with.",
                ),
                comfy_host.widget(
                    io.String,
                    "filename_prefix",
                    default="sana_streaming/plan",
                    tooltip="Begin of the name of the plan's file in the output folder, which SANA-Streaming Precision offers "
                    "as a preset and --precision takes. Empty: no file.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[
                sockets.Plan.Output(display_name="plan"),
                io.Image.Output(display_name="chart"),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, formats: str | None = None) -> bool | str:
        return formats is None or comfy_host.answer(lambda: ProfileSettings(tuple(formats.split())))

    @classmethod
    def execute(
        cls,
        model: LoadedModel,
        source: dict[str, Any],
        positive: list[Any],
        max_latency: float,
        min_sqnr: float,
        formats: str,
        latency: Any,
        target: str,
        sizes: Any,
        steps: int,
        filename_prefix: str,
    ) -> io.NodeOutput:
        settings = ProfileSettings(tuple(formats.split()), latency, target, sizes)
        budgets = {"max_latency": max_latency or None, "max_error": power(min_sqnr) if min_sqnr else None}
        clip = _clip(model, source, positive)
        with comfy_host.explained_memory(MEMORY_KNOBS), torch.no_grad():
            profiler = _profiler(cls, model, clip, settings, StreamOptions(steps=steps))
            profile = profiler.run()
            chosen = profile.choose(**budgets)
            points = profiler.check(profile, [*profile.presets(), *profile.uniform(), chosen])
            floor = profiler.floor()
        plan, text = profile.plan(points[-1]), report_text(profile, points)
        if not any(budgets.values()):
            text += f"\n{points[-1].name}: the fastest plan that errs no more than {profile.bar} everywhere"
        chart = draw(profile, profile.front(), points, floor)
        ui = None
        if filename_prefix:
            path, listed = comfy_host.output_file(filename_prefix, SUFFIX)
            path.write_text(plan.to_json(), encoding="utf-8", newline="\n")
            text, ui = f"{text}\nwrote {path.name}", {"sana_plans": [listed]}
        comfy_host.show_text(cls, text)
        return io.NodeOutput(plan, chart[None].float() / 255, text, ui=ui)


def _clip(model: LoadedModel, source: dict[str, Any], positive: list[Any]) -> CalibrationClip:
    samples, _ = from_latent(source)
    check_streaming(model.network)
    check_latent_channels(model.network, samples.shape[1], "these are")
    return CalibrationClip("source", samples.float(), single_prompt(positive, None, False).positive)


def _profiler(
    node: type[io.ComfyNode],
    model: LoadedModel,
    clip: CalibrationClip,
    settings: ProfileSettings,
    options: StreamOptions,
) -> Profiler:
    """On a copy of the network in float32, which is there for this run alone."""
    require_whole(model.network)
    plain = copied(model)
    comfy_host.make_room(6 * sum(weight.numel() for weight in plain.parameters()), model.device)
    profiler = Profiler(plain.to(model.device), [clip], settings, options=options, on_progress=_Teller(node))
    profiler.journal = Journal.open(_journal_path(profiler.journal.identity), profiler.journal.identity)
    return profiler


def _journal_path(identity: Any) -> Path:
    """Of what has all in common that numbers depend on."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return comfy_host.output_folder(JOURNALS) / f"{digest}.json"


class _Teller:
    """Progress on the node, a bar for each stage; Stop is heard before every measurement."""

    def __init__(self, node: type[io.ComfyNode]) -> None:
        self._node, self._stage, self._told = node, "", 0.0
        self._bar = comfy_host.ProgressReport(1)

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage, self._told = progress.stage, 0.0
            self._bar = comfy_host.ProgressReport(progress.total)
        self._bar.reached(progress.done)
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            text = f"{progress.stage} {progress.done + 1} of {progress.total}: {progress.what}"
            comfy_host.show_text(self._node, text, log=False)


def report_text(profile: Profile, points: list[Point]) -> str:
    """A line of each plan, after one that says where the milliseconds are from; the chosen one is the last."""
    full = profile.point(Plan(UNQUANTIZED, {}))
    lines = [f"{latency_label(profile.table)}; unquantized {full.latency:.3g} ms, {full.num_bytes / 1e6:,.1f} MB"]
    *others, chosen = points
    for point in {point.name: point for point in (*(each for each in others if each.formats), chosen)}.values():
        share = point.latency / full.latency
        noise = f"signal to noise {point.sqnr:.1f} dB" if point.formats else "nothing quantized"
        lines.append(f"{point.name}: {point.num_bytes / 1e6:,.1f} MB, {share:.2f} of the time, {noise}")
    return "\n".join(lines)
