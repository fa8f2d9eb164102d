"""``edit``: a video file edited by text, as a stream or as one short clip.

The stream: checks and plan (``edit_plan``), networks (``edit_networks``), file to file (``..edit_file``) with progress
(``edit_progress``), report (``edit_report``). The short clip: ``short``.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ..edit_file import FileEdit
from ..models.causal_vae import CausalVAE
from ..models.dit import SanaStreamingDiT
from ..streaming.edit_stream import EditStream
from ..streaming.passes import Passes, default_passes
from .edit_networks import load_networks, print_nano, random_preset, uses_nano
from .edit_options import BIDIRECTIONAL_SHORT, check_mode, notices, with_local_input
from .edit_plan import Plan, make_plan
from .edit_progress import ChunkBar, GracefulStop
from .edit_report import print_summary, summarize
from .exchange import save_exchange

if TYPE_CHECKING:
    from ..streaming.prompt_encoders import PromptEncoder


def run(options: argparse.Namespace) -> int:
    check_mode(options)
    options = with_local_input(options)
    if options.mode == BIDIRECTIONAL_SHORT:
        from . import short

        return short.run(options)
    return run_stream(options)


def run_stream(options: argparse.Namespace) -> int:
    from ..cli import EXIT_OK, EXIT_STOPPED

    plan = make_plan(options)
    if options.random_weights:
        print(f"model: {random_preset(options)} of random weights, {plan.size[1]}x{plan.size[0]}", flush=True)
    model, vae, prompts, weights = load_networks(options, plan)
    if uses_nano(options):
        print_nano()
    for notice in notices(options, plan.options.guided, uses_nano(options)):
        print(f"note: {notice}", file=sys.stderr)
    with GracefulStop() as stop, ChunkBar(stop) as bar:
        if plan.compiled:
            model.compile_blocks()
        if plan.graphs and plan.vae_device.type == "cuda":
            vae.use_graphs()
        stream = open_stream(plan, model, vae, prompts, bar)
        edit = FileEdit(stream, plan.job, bar.on_chunk)
        try:
            report = edit.run()
        finally:
            if options.save_state:
                stream.state.save(options.save_state)
            save_exchange(options, plan.exchange)
    summary = {"input": str(options.input), "weights": weights, **summarize(stream, plan.job, report)}
    if options.report:
        options.report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    edit.draw_sheet()
    print_summary(summary, plan.job, options)
    return EXIT_STOPPED if report.stopped else EXIT_OK


def open_stream(
    plan: Plan, model: SanaStreamingDiT, vae: CausalVAE, prompts: PromptEncoder, bar: ChunkBar
) -> EditStream:
    """A new stream, or the saved one."""
    state = plan.state
    passes = default_passes(model, plan.device) if plan.graphs else Passes(model)
    if state is None:
        stream = EditStream(
            model,
            vae,
            prompts,
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            schedule=plan.schedule,
            height=plan.size[0],
            width=plan.size[1],
            antialias=plan.antialias,
            total_frames=plan.total_frames,
            options=plan.options,
            on_progress=bar.on_progress,
            overlap=plan.overlap,
            passes=passes,
            given=plan.exchange.given,
            recorder=plan.exchange.recorder,
        )
        stream.state.source = plan.source
        return stream
    state.prompt_changes += plan.prompt != state.prompt
    state.prompt, state.negative_prompt = plan.prompt, plan.negative_prompt
    return EditStream.resume(
        model, vae, prompts, state, on_progress=bar.on_progress, overlap=plan.overlap, passes=passes
    )
