"""The options of ``live`` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..live.compare import COMPARES
from ..weights.hub_address import path_or_address
from .edit_parser import DOWNLOAD_HELP, LORA_HELP


def add_live_options(parser: argparse.ArgumentParser) -> None:
    """All options; those that ``edit`` has too mean the same."""
    _add_places(parser.add_argument_group("source and output"))
    _add_edit(parser.add_argument_group("edit"))
    _add_weights(parser.add_argument_group("weights and machine"))
    _add_control(parser.add_argument_group("control while it runs"))
    _add_results(parser.add_argument_group("reports"))


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        required=True,
        metavar="DEVICE|URL|FILE|-",
        help="what FFmpeg opens: /dev/video0, udp://, srt://, rtmp://, https://..., a file or a named pipe at its own rate; "
        "- is raw RGB video on standard input",
    )
    group.add_argument(
        "--input-format", metavar="NAME", help="FFmpeg's name of the input's format, such as v4l2 or dshow"
    )
    group.add_argument("--input-size", metavar="WxH", help="of raw video, or asked of a camera")
    group.add_argument("--input-fps", metavar="RATE", help="of raw video, or asked of a camera")
    group.add_argument(
        "--input-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for FFmpeg; may be given several times",
    )
    group.add_argument(
        "--pace-input",
        action=argparse.BooleanOptionalAction,
        help="read the input no faster than its own times say (default: files and pipes yes, devices and addresses no); "
        "--no-pace-input goes with --late wait, else what cannot be edited in time is dropped",
    )
    group.add_argument(
        "--reconnect",
        type=float,
        metavar="SECONDS",
        help="how long to try again when a device, an address or a named pipe ends or fails, counted from its last frame "
        "(default: 300; 0: never)",
    )
    group.add_argument(
        "--output",
        metavar="URL|FILE|-|virtual-camera[:DEVICE]",
        help="where the edit goes as H.264 with the sound; - is raw RGB video on standard output; without it the page alone "
        "shows it",
    )
    group.add_argument("--output-format", metavar="NAME", help="FFmpeg's name of the output's format, such as mpegts")
    group.add_argument(
        "--output-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for FFmpeg; may be given several times",
    )
    group.add_argument(
        "--late",
        choices=("drop", "wait", "repeat"),
        default="drop",
        help="where the edit is slower than the source: drop frames before they are edited, evenly; let the source wait and "
        "lose nothing; or drop, and repeat frames so that the output has an even rate (default: drop)",
    )
    group.add_argument("--crf", type=int, default=25, help="H.264 quality, 0 (lossless) to 51 (default: 25)")


def _add_edit(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", required=True, help="what to do to the video")
    group.add_argument("--negative-prompt", help="what to avoid; used only with --cfg-scale above 1 (default: empty)")
    group.add_argument("--height", type=int, help="of the edit in pixels, a multiple of 32 (default: 704, nano: 160)")
    group.add_argument("--width", type=int, help="of the edit in pixels, a multiple of 32 (default: 1280, nano: 256)")
    group.add_argument("--size", metavar="WxH|auto", help="width and height in one, or auto: see edit")
    group.add_argument(
        "--antialias", action=argparse.BooleanOptionalAction, help="average where frames are made smaller (default: no)"
    )
    group.add_argument("--steps", type=int, help="denoising passes per chunk (default: 4, also made for 2)")
    group.add_argument("--seed", type=int, help="of the noise (default: 0)")
    group.add_argument("--cfg-scale", type=float, help="guidance; 1 is none (default: 1)")
    group.add_argument(
        "--num-cached-blocks", type=int, metavar="N", help="chunks that softmax blocks read back (default: 2)"
    )
    group.add_argument(
        "--sink-token", action=argparse.BooleanOptionalAction, help="keep the first chunk in view (default: yes)"
    )
    group.add_argument(
        "--anchor-every", type=int, metavar="N", help="every N chunks the model begins anew (default: 0, never)"
    )
    group.add_argument(
        "--start-step", type=int, metavar="K", help="begin at step K from the noised source (default: 0, from noise)"
    )
    group.add_argument(
        "--max-sink-distance",
        type=int,
        metavar="N",
        help="latent frames within which the first chunk seems to stay (default: 0)",
    )
    group.add_argument(
        "--compare",
        choices=COMPARES,
        default="off",
        help="source and edit in one picture: side by side, or divided by a line that moves (default: off)",
    )


def _add_weights(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="nano|FILE|FOLDER|NAME", help="as for edit (default: nano)")
    group.add_argument("--vae", type=path_or_address, metavar="PATH", help="as for edit")
    group.add_argument("--text-encoder", type=path_or_address, metavar="PATH", help="as for edit")
    group.add_argument("--decoder", choices=("auto", "causal", "chunk_tile"), default="auto", help="as for edit")
    group.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help=LORA_HELP)
    group.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
    group.add_argument("--random-weights", action="store_true", help="as for edit")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument("--vae-device", metavar="DEVICE", help="another device for the whole VAE (default: the same)")
    group.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="of transformer and VAE (default: bfloat16 on a GPU, float32 on the CPU)",
    )


def _add_control(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stdin-control",
        action="store_true",
        help="take commands as JSON lines from standard input and write states as JSON lines to standard output",
    )
    group.add_argument(
        "--control-port",
        type=int,
        metavar="PORT",
        help="serve a page and an API there; 0 takes any that is free (default: none)",
    )
    group.add_argument(
        "--control-host", default="127.0.0.1", metavar="HOST", help="the address to serve at (default: 127.0.0.1)"
    )
    group.add_argument(
        "--control-token",
        metavar="TOKEN",
        help="what page and API ask for, 8 to 200 of A-Z, a-z, 0-9, _ and - "
        "(default: SANA_STREAMING_CONTROL_TOKEN, else a new one)",
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw latency, rates, queues and memory (.png, .svg, .pdf)"
    )
