"""The command line: ``python -m sana_streaming COMMAND``.

Parses, calls the library, and turns bad input into one line and exit code 2.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .commands.edit_parser import DOWNLOAD_HELP, LORA_HELP, add_edit_options
from .commands.live_parser import add_live_options
from .commands.queue_parser import add_queue_options
from .config import DIT_PRESETS
from .errors import InputError
from .weights.hub_address import path_or_address

MEMORY_KNOBS = "make --height and --width smaller, or use --dtype bfloat16 or --overlap off"
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


class _Command(argparse.ArgumentParser):
    """A command, which shows its own usage where an option of it is unknown. Options are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sana_streaming", description="Edit video by text, as a stream.")
    parser.set_defaults(memory_knobs=MEMORY_KNOBS)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)
    edit = commands.add_parser("edit", help="edit a video file")
    edit.set_defaults(run=_edit)
    add_edit_options(edit)
    _add_evaluate(commands.add_parser("evaluate", help="measure a model on the held-out clips"))
    _add_inspect(
        commands.add_parser(
            "inspect", help="show config, parameter count and keys of a network, or what a saved stream is"
        )
    )
    _add_info(commands.add_parser("info", help="versions and devices, for a report of a bug"))
    _add_download(commands.add_parser("download", help="fetch published weights; shows sizes and asks first"))
    _add_convert(commands.add_parser("convert", help="make one safetensors file of weights in any layout"))
    _add_precision(commands.add_parser("precision", help="weights of fewer bits: show a plan, write a network"))
    _add_toy(commands.add_parser("toy", help="write a small bundle of random weights, to try the pipeline"))
    _add_examples(commands.add_parser("examples", help="the demo edits of the release: list them, run one"))
    live = commands.add_parser("live", help="edit a camera or a network stream while it happens")
    live.set_defaults(run=_live)
    add_live_options(live)
    queue = commands.add_parser("queue", help="edit many clips with many prompts on one or more ComfyUI servers")
    queue.set_defaults(run=_queue)
    add_queue_options(queue)
    _add_train(commands.add_parser("train", help="train a transformer, or a LoRA for it, on pairs of clips"), _train)
    _add_bench(commands.add_parser("bench", help="measure speed, row by row, beside its floor and its baselines"))
    _add_train(commands.add_parser("train-vae", help="train a small causal VAE on clips"), _train_vae)
    return parser


def _edit(options: argparse.Namespace) -> int:
    from .commands.edit import run

    return run(options)


def _live(options: argparse.Namespace) -> int:
    from .commands.live import run

    return run(options)


def _queue(options: argparse.Namespace) -> int:
    from .commands.queue import run

    return run(options)


def _train(options: argparse.Namespace) -> int:
    from .commands.train import run

    return run(options)


def _train_vae(options: argparse.Namespace) -> int:
    from .commands.train_vae import run

    return run(options)


def _evaluate(options: argparse.Namespace) -> int:
    from .commands.evaluate import run

    return run(options)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_evaluate)
    parser.add_argument(
        "--model",
        default="nano",
        metavar="nano|FILE|FOLDER|NAME",
        help="checkpoint of the transformer, a folder with dit, vae and text_encoder, or a published model, such as "
        "streaming-2b (default: nano)",
    )
    parser.add_argument("--vae", type=path_or_address, metavar="PATH", help="causal VAE (default: beside the model)")
    parser.add_argument(
        "--text-encoder", type=path_or_address, metavar="PATH", help="Gemma-2 folder (default: beside the model)"
    )
    parser.add_argument("--lora", action="append", metavar="FILE[:STRENGTH]", help=LORA_HELP)
    parser.add_argument("--download", action="store_true", help=DOWNLOAD_HELP)
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
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="draw source, truth and output of each edit (.png, .jpg)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def _bench(options: argparse.Namespace) -> int:
    from .commands.bench import run

    return run(options)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_bench)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write each row there once it is done; rows that it has are not run again",
    )
    parser.add_argument(
        "--again", action="store_true", help="run rows that FILE has too, and put the new ones in place"
    )
    parser.add_argument("--replace", action="store_true", help="start FILE anew instead of adding to it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows only: names or NAME@SIZE, see --list")
    parser.add_argument("--list", action="store_true", help="show the rows and stop")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    from .commands.inspect import run

    parser.set_defaults(run=run)
    names = ", ".join(("nano", *DIT_PRESETS))
    parser.add_argument(
        "model",
        metavar="nano|PRESET|FILE",
        help=f"{names}, weights of a transformer or a VAE (a path, hf://...), or a file that edit --save-state wrote",
    )
    _add_decoder(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_decoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder",
        choices=("auto", "causal", "chunk_tile"),
        default="auto",
        help="of a VAE whose files do not say it (default: auto, as its config says)",
    )


def _info(options: argparse.Namespace) -> int:
    from .commands.info import run

    return run(options)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_info)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _download(options: argparse.Namespace) -> int:
    from .commands.download import run

    return run(options)


def _add_download(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_download)
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="streaming-2b, bidirectional-2b, vae (LTX-2's), causal-vae, text-encoder, or hf://owner/repo[@revision]/path",
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder for the files, which --model DIR reads (default: the hub's cache)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON of what is where")


def _convert(options: argparse.Namespace) -> int:
    from .commands.convert import run

    return run(options)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert)
    parser.add_argument(
        "source",
        type=path_or_address,
        metavar="IN",
        help="weights of a transformer or a VAE: .pth, .safetensors, an index of shards, a folder, hf://..., or nano for its "
        "transformer",
    )
    parser.add_argument("target", type=Path, metavar="OUT", help=".safetensors file to write")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of all tensors (default: each as it is)")
    parser.add_argument(
        "--precision",
        metavar="PLAN",
        help="quantize a transformer: bf16, fp8, int8, paper-mpq, or the JSON file of a plan; what it leaves is in --dtype, "
        "bf16 by default",
    )
    _add_decoder(parser)
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    from .commands.precision import add_options

    add_options(parser)


def _add_toy(parser: argparse.ArgumentParser) -> None:
    from .commands.toy import run

    parser.set_defaults(run=run)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write dit, vae and text_encoder")
    parser.add_argument(
        "--mode",
        choices=("long_streaming", "bidirectional_short"),
        default="long_streaming",
        help="of edit that the transformer is for (default: long_streaming)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")


def _examples_list(options: argparse.Namespace) -> int:
    from .commands.examples import run_list

    return run_list(options)


def _examples_run(options: argparse.Namespace) -> int:
    from .commands.examples import run_example

    return run_example(options)


def _add_examples(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="show names, prompts, sources and settings")
    listing.set_defaults(run=_examples_list)
    running = actions.add_parser("run", help="run one, on the release's clip or on your own")
    running.set_defaults(run=_examples_run)
    running.add_argument("name", metavar="local|background|style", help="which example")
    for parser, default in ((listing, None), (running, "long_streaming")):
        parser.add_argument(
            "--mode",
            choices=("long_streaming", "bidirectional_short"),
            default=default,
            help=f"of edit (default: {default or 'both'})",
        )
    running.add_argument("--video", type=Path, metavar="FILE", help="a clip of your own in place of the release's")
    running.add_argument(
        "--out", type=Path, metavar="FILE", help="video file to write (default: <name>_<mode>.mp4 in this folder)"
    )
    running.add_argument("--model", metavar="nano|FILE|FOLDER|NAME", help="as for edit (default: nano)")
    running.add_argument("--vae", type=path_or_address, metavar="PATH", help="as for edit")
    running.add_argument("--text-encoder", type=path_or_address, metavar="PATH", help="as for edit")
    running.add_argument(
        "--download", action="store_true", help="fetch the clip, and published weights that --model names, if not there"
    )
    for name in ("--height", "--width", "--max-frames", "--steps"):
        running.add_argument(name, type=int, metavar="N", help="in place of the example's setting")
    running.add_argument("--device", help="as for edit")
    running.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), help="as for edit")
    running.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    running.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet (PNG) of source and edit")


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
