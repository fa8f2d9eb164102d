"""The options of ``queue`` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_queue_options(parser: argparse.ArgumentParser) -> None:
    """WORKFLOW and all options."""
    parser.add_argument(
        "workflow", type=Path, metavar="WORKFLOW", help="workflow in API format: Workflow > Export (API)"
    )
    parser.add_argument(
        "--server",
        action="append",
        required=True,
        metavar="URL",
        help="a ComfyUI, such as http://127.0.0.1:8188 or https://USER:PASSWORD@HOST; may be given several times",
    )
    parser.add_argument("--video-dir", type=Path, required=True, metavar="DIR", help="folder of clips to edit")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="every clip is edited with every prompt: one a line (# begins a comment), or a JSON list (.json)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="for results, CLIP__PROMPT.mp4; a batch that is there is gone on with (default: runs/<WORKFLOW>)",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="table of results; the journal is beside it (default: results.csv in DIR)",
    )
    parser.add_argument(
        "--video-input", metavar="NODE.INPUT", help="where the clip goes, such as 5.file (default: into Load Video)"
    )
    parser.add_argument(
        "--prompt-input", metavar="NODE.INPUT", help="where the prompt goes (default: into SANA-Streaming Prompt)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="for every seed of the workflow (default: as it says)")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent to every server with every request, such as 'Authorization: Bearer ...'; may be given several times",
    )
    parser.add_argument(
        "--server-wait",
        type=float,
        metavar="SECONDS",
        help="end when no server has answered for so long (default: 600, and at the start at once)",
    )
