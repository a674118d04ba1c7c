"""Pieces of picture: enlarged frames, labels, mouth traces and the strip of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "AMPLIFICATION",
    "AUDIO_COLOUR",
    "BACKGROUND",
    "COMPILED_COLOUR",
    "FAINT",
    "TEXT",
    "UNCACHED_COLOUR",
    "Colour",
    "Trace",
    "decision_strip",
    "difference",
    "enlarged",
    "put_text",
    "trace_plot",
]

Frame = npt.NDArray[np.uint8]  # [height, width, 3]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (17, 19, 24)
TEXT: Colour = (232, 234, 237)
FAINT: Colour = (132, 138, 148)
GRID: Colour = (46, 50, 58)
UNCACHED_COLOUR: Colour = (110, 176, 255)
COMPILED_COLOUR: Colour = (255, 170, 70)
AUDIO_COLOUR: Colour = (126, 211, 140)

AMPLIFICATION = 10  # what the eye needs to see a difference of about 45 dB at all
_MIDDLE_GREY = 128
_SMOOTH = 3  # lines are drawn this many times larger and scaled down


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of a plot: a name, a colour and a value per frame in [0, 1]."""

    name: str
    colour: Colour
    values: npt.NDArray[np.float64]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def put_text(
    picture: Image.Image,
    at: tuple[float, float],
    text: str,
    *,
    size: int = 16,
    colour: Colour = TEXT,
    anchor: str = "la",
) -> float:
    """Write `text` on the picture; the width it took, in pixels."""
    pen = ImageDraw.Draw(picture)
    pen.text(at, text, fill=colour, font=_font(size), anchor=anchor)
    return float(pen.textlength(text, font=_font(size)))


def enlarged(frame: Frame, size: int) -> Image.Image:
    """The frame as a picture of `size` x `size` pixels."""
    return Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)


def difference(one: Frame, other: Frame) -> Frame:
    """Middle grey where two frames agree; their signed difference, amplified, elsewhere."""
    signed = (other.astype(np.int32) - one.astype(np.int32)) * AMPLIFICATION
    return np.asarray((signed + _MIDDLE_GREY).clip(0, 255), np.uint8)


def trace_plot(
    size: tuple[int, int], traces: Sequence[Trace], *, cursor: int | None = None
) -> Image.Image:
    """The traces over the frames, with a legend above, and a cursor at one frame if given."""
    width, height = size
    legend = 24
    picture = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    left, right = 6 * _SMOOTH, (width - 6) * _SMOOTH
    top, bottom = (legend + 8) * _SMOOTH, (height - 6) * _SMOOTH
    for part in (0.0, 0.5, 1.0):
        level = bottom + (top - bottom) * part
        pen.line([(left, level), (right, level)], fill=GRID, width=_SMOOTH)
    last = max(1, len(traces[0].values) - 1)
    if cursor is not None:
        x = left + (right - left) * cursor / last
        pen.line([(x, top), (x, bottom)], fill=TEXT, width=_SMOOTH)
    for trace in traces:
        points = [
            (left + (right - left) * frame / last, bottom + (top - bottom) * float(value))
            for frame, value in enumerate(trace.values.clip(-0.05, 1.05))
        ]
        pen.line(points, fill=trace.colour, width=2 * _SMOOTH, joint="curve")
    small = picture.resize(size, Image.Resampling.LANCZOS)
    x = 6.0
    for trace in traces:
        x += put_text(small, (x, 2), trace.name, size=15, colour=trace.colour) + 18
    return small


def decision_strip(width: int, decisions: dict[str, str]) -> Image.Image:
    """One row of cells per guidance branch: filled where the step was computed, hollow where skipped."""
    row, gap, label = 16, 6, 96
    picture = Image.new("RGB", (width, len(decisions) * (row + gap)), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for number, (branch, letters) in enumerate(decisions.items()):
        top = number * (row + gap)
        put_text(picture, (6, top + row / 2), branch, size=14, colour=FAINT, anchor="lm")
        cell = (width - label - 6) / max(1, len(letters))
        for step, letter in enumerate(letters):
            x = label + step * cell
            box = (x + 1, top + 1, x + cell - 1, top + row - 1)
            fill = COMPILED_COLOUR if letter == "C" else GRID
            pen.rectangle(box, fill=fill)
    return picture
