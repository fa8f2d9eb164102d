"""docs/official_script.md against the official script's arguments on one side and our command line on the other."""

import argparse
import re
from pathlib import Path

import pytest
from sana_streaming.sana_core.cli import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "official_script.md"

# The official script's arguments with their defaults; where the modes differ, long_streaming / bidirectional_short.
OFFICIAL = {
    "--mode": "long_streaming",
    "--config": "per mode",
    "--model_path": "per mode",
    "--prompt": "required",
    "--video_path": "required",
    "--output_dir": "required",
    "--output_name": "output.mp4",
    "--num_frames": "969 / 81",
    "--height": "704",
    "--width": "1280",
    "--fps": "16",
    "--step": "4 / 50",
    "--cfg_scale": "1.0 / 6.0",
    "--flow_shift": "8.0",
    "--seed": "0",
    "--negative_prompt": "empty / a sentence",
    "--motion_score": "0 / 10",
    "--num_cached_blocks": "2",
    "--sink_token": "true",
    "--save_latent": "off",
    "--input_latent_path": "none",
    "--input_text_embed_path": "none",
}
# The one that needs no counterpart.
WITHOUT_OURS = {"--config"}


def rows(header):
    """The cells of each row of the table whose first header cell is ``header``, markup of code taken off the first two."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    else:
        pytest.fail(f"{PAGE.name} has no table that begins with {header}")
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def code(cell):
    """Everything in ``backticks``."""
    return re.findall(r"`([^`]+)`", cell)


def edit_parser():
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices["edit"]


def our_names():
    """Options and positionals of ``edit``, the latter as the usage line shows them."""
    for action in edit_parser()._actions:
        if action.dest != "help":
            yield from action.option_strings or [str(action.metavar)]


def documented():
    """Every option of ours that either table names."""
    names = [name for row in rows("official") for name in code(row[2])]
    return names + [name for row in rows("option") for name in code(row[0])]


def test_every_official_argument_is_in_the_table():
    table = {code(row[0])[0]: row[1].replace("`", "") for row in rows("official")}
    assert table == OFFICIAL
    assert len(rows("official")) == len(OFFICIAL)


def test_every_official_argument_has_ours_beside_it():
    for row in rows("official"):
        name = code(row[0])[0]
        assert len(code(row[2])) == (0 if name in WITHOUT_OURS else 1), name
        assert len(row) == 4 and (row[3] or name not in WITHOUT_OURS)


def test_ours_exist():
    unknown = set(documented()) - set(our_names())
    assert not unknown, f"the command line has no {', '.join(sorted(unknown))}"


def test_no_option_of_ours_is_left_out():
    missing = {name for name in our_names() if not name.startswith("--no-")} - set(documented())
    assert not missing, f"{PAGE.name} says nothing of {', '.join(sorted(missing))}"
