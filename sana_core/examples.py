"""The release's three demo edits: its clips and its settings, as settings for a run of ours. Knows no networks and no files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import InputError
from .models.prompt import DEFAULT_NEGATIVE_PROMPT
from .short_clip import DEFAULT_MOTION_SCORE, TRAINED_FRAMES, ShortClipOptions
from .streaming.options import StreamOptions

Mode = Literal["long_streaming", "bidirectional_short"]

# One minute at the release's frame rate.
STREAMING_FRAMES = 969
FRAME_RATE = 16
HEIGHT, WIDTH = 704, 1280
_SOURCES = "hf://Efficient-Large-Model/SANA-Streaming/source"


@dataclass(frozen=True)
class Example:
    """One demo edit. ``source`` is the release's clip; the prompt is ours and fits other clips too."""

    name: str
    description: str
    source: str
    prompt: str


@dataclass(frozen=True)
class ExampleRun:
    """Everything that a run of an example needs to be told.

    Attributes:
        name: of the example.
        mode: ``long_streaming`` or ``bidirectional_short``.
        preset: the network of that mode, by the name that a download goes by.
        video: path or ``hf://`` address of the clip.
        prompt, negative_prompt: texts for the encoder.
        motion_score: written behind the prompt where it is above 0.
        max_frames: frames to take in at most, None for the whole clip.
        height, width: of the edited video in pixels.
        fps: frame rate of the edited video, None for that of the clip.
        steps, cfg_scale, flow_shift, seed: of the sampler.
        num_cached_blocks, sink_token: what a stream remembers; None in ``bidirectional_short``, which has no memory.
    """

    name: str
    mode: Mode
    preset: str
    video: str
    prompt: str
    negative_prompt: str
    motion_score: int
    max_frames: int | None
    height: int
    width: int
    fps: int | None
    steps: int
    cfg_scale: float
    flow_shift: float
    seed: int
    num_cached_blocks: int | None
    sink_token: bool | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_EXAMPLES = (
    Example(
        name="local",
        description="changes one thing in the picture",
        source=f"{_SOURCES}/00_local_editing_source.mp4",
        prompt="Change the color of the main subject to bright red. Keep everything else as it is.",
    ),
    Example(
        name="background",
        description="changes what is behind",
        source=f"{_SOURCES}/05_background_editing_source.mp4",
        prompt="Replace the background with snowy mountains under a clear sky. Keep the foreground as it is.",
    ),
    Example(
        name="style",
        description="paints everything anew",
        source=f"{_SOURCES}/09_style_transfer_source.mp4",
        prompt="Turn the video into a watercolor painting with soft brush strokes.",
    ),
)


def list_examples() -> tuple[Example, ...]:
    """The demo edits, in the release's order."""
    return _EXAMPLES


def example_run(name: str, mode: str = "long_streaming", video: str | None = None) -> ExampleRun:
    """The settings that run example ``name`` (local, background or style) in ``mode``, on ``video`` if it is given.

    The release's clip is edited with the release's defaults: 969 or 81 frames at most, 16 frames per second. A clip of one's
    own keeps its frame rate, and in ``long_streaming`` its whole length. Raises InputError for an unknown name or mode.
    """
    example = next((example for example in _EXAMPLES if example.name == name), None)
    if example is None:
        known = ", ".join(example.name for example in _EXAMPLES)
        raise InputError(f"there is no example {name!r}; use one of {known}")
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r} is unknown; use one of {', '.join(get_args(Mode))}")
    own = video is not None
    shared: dict[str, Any] = {
        "name": name,
        "mode": mode,
        "video": video if own else example.source,
        "prompt": example.prompt,
        "height": HEIGHT,
        "width": WIDTH,
        "fps": None if own else FRAME_RATE,
    }
    settings = _streaming_settings(own) if mode == "long_streaming" else _short_settings()
    return ExampleRun(**shared, **settings)


def _streaming_settings(own_clip: bool) -> dict[str, Any]:
    options = StreamOptions()
    return {
        "preset": "streaming-2b",
        "negative_prompt": "",
        "motion_score": 0,
        "max_frames": None if own_clip else STREAMING_FRAMES,
        "steps": options.steps,
        "cfg_scale": options.cfg_scale,
        "flow_shift": options.flow_shift,
        "seed": options.seed,
        "num_cached_blocks": options.num_cached_blocks,
        "sink_token": options.sink_token,
    }


def _short_settings() -> dict[str, Any]:
    options = ShortClipOptions()
    return {
        "preset": "bidirectional-2b",
        "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
        "motion_score": DEFAULT_MOTION_SCORE,
        "max_frames": TRAINED_FRAMES,
        "steps": options.steps,
        "cfg_scale": options.cfg_scale,
        "flow_shift": options.flow_shift,
        "seed": options.seed,
        "num_cached_blocks": None,
        "sink_token": None,
    }
