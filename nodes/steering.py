"""Widgets that came after the first release of a node. Optional, so that workflows saved without them go on as they did.

As for the other lists: they are not to be added to, a further widget goes to the end of each node.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import comfy_host


def steering_inputs() -> list[Any]:
    """How a long stream is held together."""
    return [
        comfy_host.widget(
            io.Int,
            "anchor_every",
            default=0,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Against drift: start the model's memory anew every so many chunks, while the picture goes on without "
            "a seam in time. 0 never does; 20 to 24 are usual for endless streams, and the new start can be seen.",
        ),
        comfy_host.widget(
            io.Int,
            "start_step",
            default=0,
            min=0,
            max=99,
            optional=True,
            advanced=True,
            tooltip="Begin at this step with the noised source instead of noise alone: the edit stays closer to the "
            "source and takes that many passes less. Below steps; 0 is the full edit.",
        ),
        comfy_host.widget(
            io.Int,
            "max_sink_distance",
            default=0,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Keeps the first chunk within this many latent frames of the current one, for very long streams: the "
            "model was trained up to 122. 0 sets no limit.",
        ),
    ]


def footage_inputs() -> list[Any]:
    """How frames are read and fitted."""
    return [
        comfy_host.widget(
            io.Boolean,
            "antialias",
            default=False,
            optional=True,
            advanced=True,
            tooltip="A smoother way to make large frames smaller; without it fine detail of 4K flickers. The release's way "
            "is off.",
        ),
        comfy_host.widget(
            io.Combo,
            "hdr",
            options=["refuse", "tone-map", "ignore"],
            default="refuse",
            optional=True,
            advanced=True,
            tooltip="For files of high dynamic range, which the model does not know: refuse them, bring them to ordinary "
            "range, or ignore it and take the values as they are.",
        ),
    ]


def tiles_input(what: str) -> Any:
    return comfy_host.widget(
        io.Boolean,
        "tiles",
        default=False,
        optional=True,
        advanced=True,
        tooltip=f"For short clips: {what} the whole clip in tiles of 512x512 pixels, one every 448, as the release does for "
        "the bidirectional model. Off works frame by frame on whole frames, as streams need it.",
    )
