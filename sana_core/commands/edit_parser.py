"""The options of ``edit`` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import DIT_PRESETS
from ..weights.hub_address import path_or_address

LORA_HELP = "low-rank change of the transformer, at STRENGTH (default: 1); may be given several times, and they add up"
DOWNLOAD_HELP = "fetch published weights that are wanted and not there; without it only hf:// addresses are fetched"


def add_edit_options(parser: argparse.ArgumentParser) -> None:
    """IN, OUT and all options. None stands for what the mode, a saved stream or the source decides."""
    parser.add_argument("input", type=path_or_address, metavar="IN", help="video file to edit, or hf://owner/repo/path")
    parser.add_argument("output", type=Path, metavar="OUT", help="video file to write (.mp4, .mkv, .mov, .m4v)")
    parser.add_argument(
        "--mode",
        choices=("long_streaming", "bidirectional_short"),
        default="long_streaming",
        help="a stream of any length, or one short clip seen whole by the bidirectional model (default: long_streaming)",
    )
    _add_prompts(parser.add_argument_group("prompts"))
    _add_weights(parser.add_argument_group("weights"))
    _add_frames(parser.add_argument_group("frames"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_steering(parser.add_argument_group("long streams (long_streaming only)"))
    _add_machine(parser.add_argument_group("machine"))
    _add_results(parser.add_argument_group("state, reports and files of the official script"))


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", help="what to do to the video (with --resume: the prompt of the saved stream)")
    group.add_argument(
        "--negative-prompt",
        help="what to avoid; used only with --cfg-scale above 1 (default: empty; bidirectional_short: a sentence)",
    )
    group.add_argument(
        "--prompt-at",
        nargs=2,
        action="append",
        metavar=("TIME", "PROMPT"),
        help="another prompt from a time on (5, 00:05, 1:02.5), of the edited video, counted from the first frame that is "
        "written; in force from the first chunk that begins then or later; may be given several times",
    )
    group.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help='the same as JSON: [{"at": "00:05", "prompt": "..."}, ...]'
    )
    group.add_argument(
        "--motion-score",
        type=int,
        metavar="N",
        help="written behind each prompt given, more for more motion, 0 for none (default: 0; bidirectional_short: 10)",
    )
    group.add_argument(
        "--input-text-embed",
        type=Path,
        metavar="FILE",
        help="embedded prompts (.pt) in place of a text encoder; --prompt then only names the edit in report and sheet",
    )


def _add_weights(group: argparse._ArgumentGroup) -> None:
    presets = ", ".join(DIT_PRESETS)
    group.add_argument(
        "--model",
        metavar="nano|FILE|FOLDER|NAME",
        help="checkpoint of the transformer, a folder with dit, vae and text_encoder, an hf:// address, or the name of a "
        f"published model: {presets} (default: nano, the small model that is built in)",
    )
    group.add_argument("--vae", type=path_or_address, metavar="PATH", help="LTX-2 VAE (default: beside the model)")
    group.add_argument(
        "--text-encoder", type=path_or_address, metavar="PATH", help="Gemma-2 folder (default: beside the model)"
    )
    group.add_argument(
        "--decoder",
        choices=("auto", "causal", "chunk_tile"),
        default="auto",
        help="how latents become frames: causal needs a VAE made for it, chunk_tile takes any, slower and three latent "
        "frames late (default: auto, as the VAE's config says)",
    )
    group.add_argument(
        "--precision",
        metavar="PLAN",
        help="quantize the transformer: fp8, int8, paper-mpq, or the file of a plan (see precision --help)",
    )
    group.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help=LORA_HELP)
    group.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
    group.add_argument(
        "--random-weights",
        action="store_true",
        help="build the --model of this name without files, to measure speed and memory",
    )


def _add_frames(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--height", type=int, help="of the edited video in pixels, a multiple of 32 (default: 704, nano: 160)"
    )
    group.add_argument(
        "--width", type=int, help="of the edited video in pixels, a multiple of 32 (default: 1280, nano: 256)"
    )
    group.add_argument(
        "--size",
        metavar="WxH|auto",
        help="width and height in one, or auto: of the sizes trained on the one nearest to the clip's shape (nano: that shape "
        "at the area of 256x160)",
    )
    group.add_argument("--start-frame", type=int, metavar="N", help="first source frame (default: 0)")
    group.add_argument(
        "--max-frames",
        type=int,
        metavar="N",
        help="take in at most N frames (default: all; bidirectional_short: all of a clip of up to 81)",
    )
    group.add_argument("--fps", help="frame rate of the output, e.g. 16 or 30000/1001 (default: the source's)")
    group.add_argument(
        "--resample-fps",
        metavar="RATE",
        help="read the source at this rate by its times, frames dropped or repeated; evens out a variable rate, and "
        "--start-frame and --max-frames count these frames (default: every frame as it is)",
    )
    group.add_argument(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        help="average where frames are made smaller: finer, other numbers than the release's (default: no)",
    )
    group.add_argument(
        "--square-pixels",
        action=argparse.BooleanOptionalAction,
        help="stretch pixels that the file says are not square, as a player does (default: no)",
    )
    group.add_argument(
        "--hdr",
        choices=("refuse", "tone-map", "ignore"),
        help="what to do with high dynamic range: refuse, bring it to ordinary range, or take the values as they are "
        "(default: refuse)",
    )
    group.add_argument("--crf", type=int, default=25, help="H.264 quality, 0 (lossless) to 51 (default: 25)")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps",
        type=int,
        help="denoising passes, per chunk of a stream (default: 4, also made for 2; bidirectional_short: 50)",
    )
    group.add_argument("--seed", type=int, help="of the noise (default: 0)")
    group.add_argument("--cfg-scale", type=float, help="guidance; 1 is none (default: 1; bidirectional_short: 6)")
    group.add_argument(
        "--flow-shift",
        type=float,
        help="how far denoising times are pulled towards noise; streams of 4 or 2 steps have fixed ones (default: 8)",
    )
    group.add_argument("--noise-device", help="generator of the noise: cpu or cuda (default: cpu)")
    group.add_argument(
        "--tiles",
        action=argparse.BooleanOptionalAction,
        help="bidirectional_short only: the VAE works in tiles as in the release; --no-tiles takes frames whole, with more "
        "memory (default: yes)",
    )


def _add_steering(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-cached-blocks", type=int, metavar="N", help="chunks that softmax blocks read back (default: 2)"
    )
    group.add_argument(
        "--sink-token", action=argparse.BooleanOptionalAction, help="keep the first chunk in view (default: yes)"
    )
    group.add_argument("--noise", choices=("clip", "chunk"), help="draw noise once or per chunk (default: clip)")
    group.add_argument(
        "--anchor-every",
        type=int,
        metavar="N",
        help="against drift: every N chunks the model forgets what it made and begins anew, without a gap in time "
        "(default: 0, never)",
    )
    group.add_argument(
        "--start-step",
        type=int,
        metavar="K",
        help="begin at step K from the noised source: changes less and takes K passes less (default: 0, from noise)",
    )
    group.add_argument(
        "--max-sink-distance",
        type=int,
        metavar="N",
        help="latent frames within which the first chunk seems to stay; trained were up to 122 (default: 0, no limit)",
    )


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument(
        "--vae-device",
        metavar="DEVICE",
        help="long_streaming only: another device for the whole VAE, such as cuda:1 (default: the same)",
    )
    group.add_argument(
        "--overlap",
        choices=("auto", "on", "off"),
        help="long_streaming only: encode the next chunk and decode the last one while a chunk is denoised, read and write in "
        "threads; takes more memory, and the frames are the same (default: auto, on where the transformer runs on a GPU)",
    )
    group.add_argument(
        "--cuda-graph",
        choices=("auto", "on", "off"),
        help="long_streaming only: record the steady work of transformer and VAE once and replay it; takes more memory, and "
        "the frames are the same (default: auto, on where they run on a GPU)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="long_streaming only: let torch.compile make the transformer's blocks faster; the first chunks take minutes",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="of transformer and VAE (default: bfloat16 on a GPU, float32 on the CPU)",
    )


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--save-state", type=Path, metavar="FILE", help="save the stream at the end, to go on later")
    group.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved stream")
    group.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    group.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet (PNG) of source and edit")
    group.add_argument(
        "--compare",
        choices=("side-by-side", "wipe"),
        help="write source and edit in one picture: source on the left, or left of a line that moves",
    )
    group.add_argument(
        "--save-latent",
        type=Path,
        metavar="FILE",
        help="save noise, source and result as latents (.pt); they are kept in memory to the end, 1.4 MB for 8 frames of "
        "1280x704",
    )
    group.add_argument(
        "--input-latent",
        type=Path,
        metavar="FILE",
        help="take noise and source from such a file; IN then gives length, rate and sound, and is not encoded",
    )
