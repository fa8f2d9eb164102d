"""Edits with an exact truth: what an instruction asks for, computed.

Each edit is one fixed function of a frame, so its result is as steady over time as its source. Frames are uint8
[F, H, W, 3], RGB. Edits of the whole picture work on any frames; edits of one layer need the `Shot` that the frames
were made from, for only there is it known which pixels belong to what.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from .scenes import COLORS, Scene, Shot
from .textures import Color

Parameters = Mapping[str, str]
"""What an edit's wordings leave open, such as object and colour; empty for edits of the whole picture."""

BACKGROUND_COLORS: dict[str, Color] = {**COLORS, "white": (240, 240, 240), "black": (16, 16, 16)}

_ALIASES = {"ball": "sphere", "box": "square", "triangle": "wedge", "star": "five-pointed star", "ring": "hoop"}
_BACKGROUND_WORDS = {
    "noise": "cloudy",
    "stripes": "striped",
    "checker": "chequered",
    "gradient": "shaded",
    "landscape": "hilly",
    "photograph": "photographed",
    "plain": "plain",
}
_LUMA = (0.299, 0.587, 0.114)
_PIXEL_ART_ROWS = 20
_PIXEL_ART_LEVELS = 32
# A shape worth an instruction fills this share of the picture.
_NOTICEABLE = 0.01


@dataclass(frozen=True)
class Edit:
    """One kind of edit: its function, and its wordings both ways with {places} for parameters.

    ``transform`` maps frames, shot and parameters to frames. ``choices`` lists the parameters that make sense for a
    shot, none where the edit does not fit. ``layer`` names the scene's layer that the edit changes; without it, the
    edit is one of the whole picture.
    """

    name: str
    wordings: tuple[str, ...]
    reverse_wordings: tuple[str, ...]
    transform: Callable[[Tensor, Shot | None, Parameters], Tensor]
    choices: Callable[[Shot | None], tuple[Parameters, ...]] = lambda _: ({},)
    layer: Callable[[Parameters], str] | None = None

    @property
    def masked(self) -> bool:
        """True where only some pixels may change, and frames alone are not enough."""
        return self.layer is not None

    def apply(self, frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
        """The true result for ``frames``, uint8 [F, H, W, 3]; the source is left as it is.

        ``shot`` is what ``frames`` were made from, and may be None where the edit is not masked. Raises InputError for
        other frames, a masked edit without a shot, and parameters that do not fit it.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise InputError(
                f"cannot edit {frames.dtype} of shape {tuple(frames.shape)}: give uint8 [frames, height, width, 3]"
            )
        if self.masked and shot is None:
            raise InputError(f"{self.name} needs to know the scene: give the shot that the frames were made from")
        return self.transform(frames, shot, parameters)

    def mask(self, shot: Shot | None, parameters: Parameters) -> Tensor | None:
        """bool [F, H, W], the pixels that the edit may change; None for an edit of the whole picture."""
        return shot.mask(self.layer(parameters)) if self.layer and shot else None

    def instructions(self, parameters: Parameters) -> tuple[str, ...]:
        """Wordings that ask for the edit."""
        return tuple(wording.format(**parameters) for wording in self.wordings)

    def reverse_instructions(self, parameters: Parameters) -> tuple[str, ...]:
        """Wordings that ask for the source, given the result."""
        return tuple(wording.format(**parameters) for wording in self.reverse_wordings)


def object_color_parameters(shot: Shot | None) -> tuple[Parameters, ...]:
    """Every object that can be noticed from the first frame to the last, in every other colour."""
    if shot is None:
        return ()
    parameters: list[Parameters] = []
    for item in shot.scene.objects:
        layer = shot.scene.layer(item.shape)
        looks = (shot.numbers[i] for i in (0, len(shot.numbers) // 2, -1))
        if all(float(shot.scene.visibility(i, shot.device)[layer].mean()) > _NOTICEABLE for i in looks):
            parameters += [
                {"object": item.shape, "alias": _ALIASES[item.shape], "color": color, "original": item.color}
                for color in COLORS
                if color != item.color
            ]
    return tuple(parameters)


def background_parameters(shot: Shot | None) -> tuple[Parameters, ...]:
    """Every plain colour that no object has, for scenes that have objects."""
    if shot is None or not shot.scene.objects:
        return ()
    original = _BACKGROUND_WORDS[shot.scene.background.kind]
    taken = {item.color for item in shot.scene.objects}
    return tuple({"color": color, "original": original} for color in BACKGROUND_COLORS if color not in taken)


def _linear(red: Color, green: Color, blue: Color, offset: Color = (0, 0, 0)) -> Callable[..., Tensor]:
    """An edit of each pixel alone: its three rows times RGB, plus ``offset`` (0 to 255), rounded and clamped."""

    def transform(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
        matrix = torch.tensor([red, green, blue], device=frames.device)
        edited = torch.empty_like(frames)
        for frame, out in zip(frames, edited, strict=True):
            colors = frame.float() @ matrix.T + torch.tensor(offset, device=frames.device)
            out.copy_(colors.round_().clamp_(0, 255))
        return edited

    return transform


def _gray(gain: float) -> Color:
    """The row of a matrix that gives the brightness (BT.601 luma), times ``gain``."""
    red, green, blue = _LUMA
    return gain * red, gain * green, gain * blue


def _keep(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
    return frames.clone()


def _negative(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
    return 255 - frames


def _pixel_art(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
    """Squares of one colour, about `_PIXEL_ART_ROWS` from top to bottom, in `_PIXEL_ART_LEVELS` levels of brightness.

    Brightness alone is rounded: rounded channel by channel, grey would get spots of colour.
    """
    height, width = frames.shape[1:3]
    side = max(2, round(height / _PIXEL_ART_ROWS))
    step = 255 / (_PIXEL_ART_LEVELS - 1)
    weights = torch.tensor(_LUMA, device=frames.device)[:, None, None]
    edited = torch.empty_like(frames)
    for frame, out in zip(frames, edited, strict=True):
        squares = F.avg_pool2d(frame.permute(2, 0, 1)[None].float(), side, ceil_mode=True)[0]
        luma = (squares * weights).sum(0)
        squares += (luma / step).round_() * step - luma
        squares = squares.round_().clamp_(0, 255).to(torch.uint8)
        enlarged = squares.repeat_interleave(side, 1).repeat_interleave(side, 2)
        out.copy_(enlarged[:, :height, :width].permute(1, 2, 0))
    return edited


def _recolor_object(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
    assert shot is not None
    changed = shot.scene.recolored(parameters["object"], parameters["color"])
    return _redrawn(frames, shot, changed, parameters["object"])


def _plain_background(frames: Tensor, shot: Shot | None, parameters: Parameters) -> Tensor:
    assert shot is not None
    if parameters["color"] not in BACKGROUND_COLORS:
        raise InputError(
            f"{parameters['color']} is not a colour of backgrounds: choose one of {', '.join(BACKGROUND_COLORS)}"
        )
    changed = shot.scene.with_plain_background(BACKGROUND_COLORS[parameters["color"]])
    return _redrawn(frames, shot, changed, "background")


def _redrawn(frames: Tensor, shot: Shot, changed: Scene, layer: str) -> Tensor:
    """``frames`` with the pixels of one layer, soft rims too, as the changed scene draws them."""
    if frames.shape != (len(shot.numbers), shot.scene.height, shot.scene.width, 3):
        raise InputError(
            f"frames of shape {tuple(frames.shape)} are not of the shot, which has {len(shot.numbers)} frames of "
            f"{shot.scene.width}x{shot.scene.height}: give the shot that they were made from"
        )
    redrawn = replace(shot, scene=changed).frames()
    return torch.where(shot.mask(layer)[..., None], redrawn, frames)


_KEEP_WORDINGS = (
    "keep the video as it is",
    "leave the video unchanged",
    "do not change anything",
    "keep everything the same",
    "return the same video",
)

_EDITS = (
    Edit(
        name="keep",
        wordings=_KEEP_WORDINGS,
        reverse_wordings=_KEEP_WORDINGS,
        transform=_keep,
    ),
    Edit(
        name="black_and_white",
        wordings=(
            "make it black and white",
            "turn the video black and white",
            "convert the video to greyscale",
            "convert the video to grayscale",
            "remove all colour",
            "remove all color from the video",
            "make it monochrome in shades of grey",
        ),
        reverse_wordings=(
            "give the black and white video its colours back",
            "restore the colors of the grayscale video",
            "colourise the grey video",
            "colorize the black and white video",
        ),
        transform=_linear(_gray(1), _gray(1), _gray(1)),
    ),
    Edit(
        name="sepia",
        wordings=(
            "make it sepia",
            "turn the video sepia",
            "give it a sepia tone",
            "tint it brown like an old photograph",
            "give it the brown colour of a faded print",
            "give it the faded brown color of an antique film",
        ),
        reverse_wordings=(
            "remove the sepia tone",
            "undo the sepia",
            "give the sepia video its colours back",
            "restore the true colors under the brown tint",
        ),
        transform=_linear(_gray(1.02), _gray(0.87), _gray(0.64), offset=(20, 8, 2)),
    ),
    Edit(
        name="night",
        wordings=(
            "make it night",
            "turn day into night",
            "make it a blue night",
            "show it at night-time in blue moonlight",
            "darken it to the deep blue colour of midnight",
            "darken it to a dark blue color as after nightfall",
        ),
        reverse_wordings=(
            "make it day",
            "turn night into day",
            "bring back the daylight",
            "brighten the blue night to its daytime colours",
            "restore the colors of day",
        ),
        transform=_linear((0.18, 0.08, 0.02), (0.08, 0.26, 0.05), (0.10, 0.22, 0.34), offset=(0, 4, 24)),
    ),
    Edit(
        name="sunset",
        wordings=(
            "make it a warm sunset",
            "light it like a sunset",
            "give it warm golden-hour light",
            "bathe the video in orange evening light",
            "warm the colours as at dusk",
            "warm up the colors as the sun goes down",
        ),
        reverse_wordings=(
            "remove the sunset light",
            "take the warm orange light away",
            "undo the warm evening colours",
            "restore neutral colors after the sunset",
        ),
        transform=_linear((0.83, 0.12, 0.0), (0.10, 0.60, 0.0), (0.05, 0.10, 0.25), offset=(58, 8, 10)),
    ),
    Edit(
        name="negative",
        wordings=(
            "make it a negative",
            "turn the video into a photographic negative",
            "show it as a film negative",
            "invert the colours",
            "invert all colors",
            "swap light and dark and every colour for its opposite",
        ),
        reverse_wordings=(
            "turn the negative back into a positive",
            "undo the inversion",
            "develop the negative into true colours",
            "restore the true colors of the negative",
        ),
        transform=_negative,
    ),
    Edit(
        name="pixel_art",
        wordings=(
            "make it pixel art",
            "turn the video into pixel art",
            "pixelate it",
            "make it look like a retro video game",
            "draw it in big square pixels with few colours",
            "show it in large blocks of a few flat colors",
        ),
        reverse_wordings=(
            "remove the pixel art",
            "unpixelate the video",
            "restore the detail behind the big pixels",
            "make the blocky video sharp again with all its colours",
        ),
        transform=_pixel_art,
    ),
    Edit(
        name="object_color",
        wordings=(
            "make the {object} {color}",
            "turn the {object} {color}",
            "paint the {alias} {color}",
            "change the colour of the {object} to {color}",
            "change the color of the {alias} to {color}",
            "recolour the {object} {color}",
            "recolor the {object} in {color}",
        ),
        reverse_wordings=(
            "make the {object} {original} again",
            "turn the {alias} back to {original}",
            "give the {object} its {original} colour back",
            "restore the {original} color of the {object}",
        ),
        transform=_recolor_object,
        choices=object_color_parameters,
        layer=lambda parameters: parameters["object"],
    ),
    Edit(
        name="plain_background",
        wordings=(
            "make the background plain {color}",
            "replace the background with plain {color}",
            "put everything in front of a plain {color} wall",
            "use a solid {color} backdrop",
            "give the background one flat {color} colour",
            "set the background to a uniform {color} color",
        ),
        reverse_wordings=(
            "bring back the {original} background",
            "replace the plain {color} background with the {original} one",
            "undo the solid {color} backdrop",
            "restore the {original} backdrop with its colours",
        ),
        transform=_plain_background,
        choices=background_parameters,
        layer=lambda parameters: "background",
    ),
)

EDITS: dict[str, Edit] = {edit.name: edit for edit in _EDITS}
"""Every edit by its name."""


def instruction_words() -> tuple[str, ...]:
    """Every word that instructions and reverse instructions can have, sorted; one with hyphens is one word."""
    parts = [*_ALIASES, *_ALIASES.values(), *COLORS, *BACKGROUND_COLORS, *_BACKGROUND_WORDS.values()]
    for edit in _EDITS:
        parts += [re.sub("{[a-z]+}", "", wording) for wording in (*edit.wordings, *edit.reverse_wordings)]
    return tuple(sorted({word for part in parts for word in part.split()}))
