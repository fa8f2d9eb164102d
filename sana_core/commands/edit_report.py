"""What ``edit`` says at its end: a report for programs, a summary for people."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import Any

import torch

from ..edit_file import FileJob, FileReport
from ..sampling.flow_match import DISTILLED_TIMESTEPS
from ..streaming.edit_stream import EditStream
from ..streaming.prompt_schedule import format_time
from .edit_options import LONG_STREAMING
from .edit_progress import in_gib


def summarize(stream: EditStream, job: FileJob, report: FileReport) -> dict[str, Any]:
    """Everything a user or a benchmark wants to know of a run."""
    gpu, state = stream.device.type == "cuda", stream.state
    return {
        "mode": LONG_STREAMING,
        "output": str(job.target),
        **report.to_dict(),
        "frames_waiting": state.num_waiting,
        "frames_held": stream.frames_held,
        "start_frame": job.start,
        "frame_rate": str(job.frame_rate or job.frames.frame_rate),
        "crf": job.crf,
        "audio": job.audio is not None,
        "compare": job.compare,
        "overlap": stream.overlap,
        "cuda_graph": stream.uses_graphs,
        "vae_device": str(stream.vae_device),
        "noise_mode": stream.noise_mode,
        "decoder": stream.decoder_name,
        "prompt": state.prompt,
        "negative_prompt": state.negative_prompt,
        "prompt_changes": state.prompt_changes,
        "schedule": [{"frame": frame, "prompt": prompt} for frame, prompt in state.schedule],
        "source": state.source,
        "settings": state.settings.to_dict(),
        "device": torch.cuda.get_device_name(stream.device) if gpu else "cpu",
        "torch": torch.__version__,
    }


def print_summary(summary: dict[str, Any], job: FileJob, options: argparse.Namespace) -> None:
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())
    stopped = "stopped; " if summary["stopped"] else ""
    print(
        f"{stopped}{summary['frames_written']} frames in {summary['chunks']} chunks, {summary['wall_seconds']:.1f} s "
        f"({summary['frames_per_second']:.2f} frames/s)\n"
        f"  seconds    {stages}\n"
        f"  memory     peak {in_gib(summary['peak_memory'])}; stream state {summary['state_bytes'] / 2**20:.1f} MiB\n"
        f"  in force   {_in_force(summary)}"
    )
    rate = Fraction(summary["frame_rate"])
    for entry in summary["schedule"]:
        print(f"  prompt     {format_time(entry['frame'] / rate)} {entry['prompt']}")
    kept = "in the saved state and come out when it goes on" if options.save_state else "not in the file"
    if summary["frames_waiting"]:
        what = f"are {kept}" if options.save_state else "were not edited"
        print(f"  waiting    {summary['frames_waiting']} frames {what}")
    if summary["frames_held"]:
        print(f"  held back  {summary['frames_held']} edited frames, which {_holder(summary)}, are {kept}")
    if job.audio_from and not job.audio:
        print("  audio      left out, because --fps differs from the source's rate")
    made = (("state", options.save_state), ("report", options.report), ("sheet", options.sheet), ("video", job.target))
    latents = ("latents", options.save_latent)
    for what, path in (latents, *made):
        if path and path.exists() and (what != "video" or summary["frames_written"]):
            print(f"  {what:10} {path}")


def _holder(summary: dict[str, Any]) -> str:
    return "chunk_tile completes later" if summary["decoder"] == "chunk_tile" else "were not decoded yet"


def _in_force(summary: dict[str, Any]) -> str:
    settings, kept = summary["settings"], summary["settings"]["options"]
    parts = [
        f"{settings['width']}x{settings['height']}",
        f"{kept['steps']} steps" + (f" from step {kept['start_step']} on" if kept["start_step"] else ""),
        f"cfg {kept['cfg_scale']:g}",
        f"seed {kept['seed']}",
        "noise from the file" if summary["noise_mode"] == "file" else f"noise per {summary['noise_mode']}",
        f"window {kept['num_cached_blocks']}{' with sink' if kept['sink_token'] else ''}",
        f"sink within {kept['max_sink_distance']}" if kept["max_sink_distance"] else "",
        f"anchor every {kept['anchor_every']} chunks" if kept["anchor_every"] else "",
        f"flow shift {kept['flow_shift']:g}" if kept["steps"] not in DISTILLED_TIMESTEPS else "",
        "antialiased" if settings["antialias"] else "",
        f"{summary['decoder']} decoder",
        f"{settings['model_dtype']} on {summary['device']}",
        "overlapped" if summary["overlap"] else "",
        "CUDA graphs" if summary["cuda_graph"] else "",
    ]
    return ", ".join(filter(None, parts))
