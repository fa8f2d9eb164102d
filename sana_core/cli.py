"""The command line: ``python -m sana_streaming edit | evaluate | inspect | toy | train | train-vae``.

Parses, calls the library, and turns bad input into one line and exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .config import DIT_PRESETS
from .errors import InputError

MEMORY_KNOBS = "make --height and --width smaller, or use --dtype bfloat16"
TRAINING_MEMORY_KNOBS = "make size, crop or batch smaller in the config"
EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return options.run(options)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        # The reader of our output went away; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAILED
    except MemoryError as error:
        print(f"failed: out of memory ({error}); {options.memory_knobs}", file=sys.stderr)
        return EXIT_FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print(f"failed: {str(error).splitlines()[0]}; {options.memory_knobs}", file=sys.stderr)
        return EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sana_streaming", description="Edit video by text, as a stream.")
    parser.set_defaults(memory_knobs=MEMORY_KNOBS)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_edit(commands.add_parser("edit", help="edit a video file"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a model on the held-out clips"))
    _add_inspect(commands.add_parser("inspect", help="show config, parameter count and keys of a transformer"))
    _add_toy(commands.add_parser("toy", help="write a small bundle of random weights, to try the pipeline"))
    _add_train(commands.add_parser("train", help="train a transformer, or a LoRA for it, on pairs of clips"), _train)
    _add_train(commands.add_parser("train-vae", help="train a small causal VAE on clips"), _train_vae)
    return parser


def _edit(options: argparse.Namespace) -> int:
    from .commands.edit import run

    return run(options)


def _train(options: argparse.Namespace) -> int:
    from .commands.train import run

    return run(options)


def _train_vae(options: argparse.Namespace) -> int:
    from .commands.train_vae import run

    return run(options)


def _add_edit(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_edit)
    parser.add_argument("input", type=Path, metavar="IN", help="video file to edit")
    parser.add_argument("output", type=Path, metavar="OUT", help="video file to write (.mp4, .mkv, .mov, .m4v)")
    parser.add_argument("--prompt", help="what to do to the video (with --resume: the prompt of the saved stream)")
    parser.add_argument("--negative-prompt", help="what to avoid; used only with --cfg-scale above 1 (default: empty)")

    files = parser.add_argument_group("weights")
    presets = ", ".join(DIT_PRESETS)
    files.add_argument(
        "--model",
        metavar="nano|FILE|FOLDER|PRESET",
        help="checkpoint of the transformer, or a folder with dit, vae and text_encoder (default: nano, the small model "
        f"that is built in); presets for --random-weights: {presets}",
    )
    files.add_argument("--vae", type=Path, metavar="PATH", help="causal LTX-2 VAE (default: beside the model)")
    files.add_argument("--text-encoder", type=Path, metavar="PATH", help="Gemma-2 folder (default: beside the model)")
    files.add_argument(
        "--random-weights", action="store_true", help="build the preset without files, to measure speed and memory"
    )

    frames = parser.add_argument_group("frames")
    frames.add_argument(
        "--height", type=int, help="of the edited video in pixels, a multiple of 32 (default: 704, nano: 160)"
    )
    frames.add_argument(
        "--width", type=int, help="of the edited video in pixels, a multiple of 32 (default: 1280, nano: 256)"
    )
    frames.add_argument("--start-frame", type=int, metavar="N", help="first source frame (default: 0)")
    frames.add_argument("--max-frames", type=int, metavar="N", help="take in at most N frames (default: all)")
    frames.add_argument("--fps", help="frame rate of the output, e.g. 16 or 30000/1001 (default: the source's)")
    frames.add_argument("--crf", type=int, default=25, help="H.264 quality, 0 (lossless) to 51 (default: 25)")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=int, help="denoising passes per chunk (default: 4; also made for 2)")
    sampling.add_argument("--seed", type=int, help="of the noise (default: 0)")
    sampling.add_argument("--cfg-scale", type=float, help="guidance; 1 is none (default: 1)")
    sampling.add_argument("--num-cached-blocks", type=int, help="chunks that softmax blocks read back (default: 2)")
    sampling.add_argument(
        "--sink-token", action=argparse.BooleanOptionalAction, help="keep the first chunk in view (default: yes)"
    )
    sampling.add_argument("--noise", choices=("clip", "chunk"), help="draw noise once or per chunk (default: clip)")
    sampling.add_argument("--noise-device", help="generator of the noise: cpu or cuda (default: cpu)")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    machine.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="of transformer and VAE (default: bfloat16 on a GPU, float32 on the CPU)",
    )

    results = parser.add_argument_group("state and reports")
    results.add_argument("--save-state", type=Path, metavar="FILE", help="save the stream at the end, to go on later")
    results.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved stream")
    results.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    results.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet (PNG) of source and edit")


def _evaluate(options: argparse.Namespace) -> int:
    from .commands.evaluate import run

    return run(options)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_evaluate)
    parser.add_argument(
        "--model",
        default="nano",
        metavar="nano|FILE|FOLDER",
        help="checkpoint of the transformer, or a folder with dit, vae and text_encoder (default: nano)",
    )
    parser.add_argument("--vae", type=Path, metavar="PATH", help="causal VAE (default: beside the model)")
    parser.add_argument("--text-encoder", type=Path, metavar="PATH", help="Gemma-2 folder (default: beside the model)")
    parser.add_argument("--steps", type=int, default=4, help="denoising passes per chunk (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--height", type=int, default=160, help="of the clips in pixels (default: 160)")
    parser.add_argument("--width", type=int, default=256, help="of the clips in pixels (default: 256)")
    parser.add_argument("--frames", type=int, default=97, help="of each clip (default: 97)")
    parser.add_argument("--clips", type=int, metavar="N", help="measure N of the clips, of all kinds (default: all)")
    parser.add_argument(
        "--loop-frames", type=int, default=1000, metavar="N", help="of the long run, 0 for none (default: 1000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report, brought up to date after each clip")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw source, truth and output of each edit (PNG)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    from .commands.inspect import run

    parser.set_defaults(run=run)
    names = ", ".join(("nano", *DIT_PRESETS))
    parser.add_argument("model", metavar="nano|PRESET|FILE", help=f"{names}, or a checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_toy(parser: argparse.ArgumentParser) -> None:
    from .commands.toy import run

    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write dit, vae and text_encoder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")


def _add_train(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.set_defaults(run=run, memory_knobs=TRAINING_MEMORY_KNOBS)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="settings in YAML (docs/training.md)")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="RUN",
        help="for checkpoints, losses and the result; a run that is there is gone on with (default: runs/<CONFIG>)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="end after step N (default: as the config says)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
