"""The pictures of a comparison: the frames of its video, and the contact sheet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from synccache.demo.comparison import Comparison
from synccache.demo.drawing import (
    AMPLIFICATION,
    AUDIO_COLOUR,
    BACKGROUND,
    COMPILED_COLOUR,
    FAINT,
    TEXT,
    UNCACHED_COLOUR,
    Colour,
    Trace,
    decision_strip,
    difference,
    enlarged,
    put_text,
    trace_plot,
)
from synccache.demo.words import decibel, pearson, percent

__all__ = ["contact_sheet", "video_pictures"]

_EDGE = 24
_TITLE = 56
_LABEL = 30
_VIEW = 384  # the side of one view in the video
_THUMB = 128  # the side of one frame on the contact sheet
_THUMBS = 8
_STRIP_LABEL = "denoising steps of the first window: filled = computed"


def video_pictures(comparison: Comparison) -> list[Image.Image]:
    """One picture per frame: uncached left, compiled right, their difference and the mouth below."""
    board = _board(comparison)
    pictures = []
    for number in range(len(comparison.uncached.frames)):
        picture = board.copy()
        one, other = comparison.uncached.frames[number], comparison.compiled.frames[number]
        views = (one, other, difference(one, other))
        for view, (x, y) in zip(views, _CORNERS, strict=False):
            picture.paste(enlarged(view, _VIEW), (x, y + _LABEL))
        plot = trace_plot((_VIEW, _VIEW // 2), _traces(comparison), cursor=number)
        x, y = _CORNERS[3]
        picture.paste(plot, (x, y + _LABEL))
        pictures.append(picture)
    return pictures


def contact_sheet(comparison: Comparison) -> Image.Image:
    """Frames of both clips and their difference in rows, the mouth below, and what was computed when."""
    frames = len(comparison.uncached.frames)
    shown = np.linspace(0, frames - 1, min(_THUMBS, frames)).round().astype(int)
    gutter, gap, plot_height = 108, 4, 150
    width = 2 * _EDGE + gutter + _THUMBS * (_THUMB + gap)
    strip = decision_strip(width - 2 * _EDGE, comparison.work.decisions[0])
    rows_height = 3 * (_THUMB + gap)
    height = _TITLE + rows_height + 20 + plot_height + 34 + strip.height + _EDGE
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    put_text(sheet, (_EDGE, 18), _headline(comparison), size=20)
    ones, others = comparison.uncached.frames[shown], comparison.compiled.frames[shown]
    rows = [
        ("uncached", UNCACHED_COLOUR, ones),
        ("compiled", COMPILED_COLOUR, others),
        (f"difference\nx {AMPLIFICATION}", FAINT, list(map(difference, ones, others))),
    ]
    for row, (name, colour, views) in enumerate(rows):
        y = _TITLE + row * (_THUMB + gap)
        _put_lines(sheet, (_EDGE, y + 54), name, colour)
        for column, view in enumerate(views):
            x = _EDGE + gutter + column * (_THUMB + gap)
            sheet.paste(enlarged(view, _THUMB), (x, y))
    y = _TITLE + rows_height + 20
    _put_lines(sheet, (_EDGE, y + 54), "mouth\nopening")
    plot = trace_plot((width - 2 * _EDGE - gutter, plot_height), _traces(comparison))
    sheet.paste(plot, (_EDGE + gutter, y))
    y += plot_height + 12
    put_text(sheet, (_EDGE, y), _STRIP_LABEL, size=14, colour=FAINT)
    sheet.paste(strip, (_EDGE, y + 22))
    return sheet


def _put_lines(sheet: Image.Image, at: tuple[int, int], text: str, colour: Colour = FAINT) -> None:
    for line, words in enumerate(text.split("\n")):
        put_text(sheet, (at[0], at[1] + 18 * line), words, size=16, colour=colour)


_CORNERS = tuple(
    (_EDGE + column * (_VIEW + _EDGE), _TITLE + row * (_VIEW + _LABEL + 12))
    for row in (0, 1)
    for column in (0, 1)
)


def _board(comparison: Comparison) -> Image.Image:
    """What stays the same from frame to frame: title, labels, figures and the strip of decisions."""
    width = 2 * _VIEW + 3 * _EDGE
    height = _TITLE + 2 * (_VIEW + _LABEL + 12) + _EDGE // 2
    board = Image.new("RGB", (width, height + height % 2), BACKGROUND)
    put_text(board, (_EDGE, 18), "synccache", size=22)
    put_text(board, (width - _EDGE, 20), _headline(comparison), size=17, colour=FAINT, anchor="ra")
    work, quality = comparison.work, comparison.quality
    labels = (
        ("uncached", UNCACHED_COLOUR, f"{work.uncached_seconds:.1f} s"),
        (
            f"compiled: {comparison.settings.policy}",
            COMPILED_COLOUR,
            f"{work.compiled_seconds:.1f} s",
        ),
        (f"difference x {AMPLIFICATION}", TEXT, decibel(quality.psnr["whole"])),
        ("mouth opening", TEXT, f"r = {pearson(quality.between)}"),
    )
    for (x, y), (name, colour, figure) in zip(_CORNERS, labels, strict=True):
        put_text(board, (x, y + 4), name, size=18, colour=colour)
        put_text(board, (x + _VIEW, y + 5), figure, size=17, colour=FAINT, anchor="ra")
    x, y = _CORNERS[3]
    y += _LABEL + _VIEW // 2 + 16
    put_text(board, (x + 6, y), _STRIP_LABEL, size=14, colour=FAINT)
    strip = decision_strip(_VIEW, work.decisions[0])
    board.paste(strip, (x, y + 24))
    for line, text in enumerate(_figures(comparison)):
        put_text(board, (x + 6, y + 34 + strip.height + 20 * line), text, size=15, colour=FAINT)
    return board


def _headline(comparison: Comparison) -> str:
    work = comparison.work
    return (
        f"{comparison.settings.policy}: {work.ratio:.2f}x faster, "
        f"{100 * work.executed_fraction:.0f} % of the work, "
        f"{decibel(comparison.quality.psnr['whole'])}"
    )


def _figures(comparison: Comparison) -> tuple[str, ...]:
    quality = comparison.quality
    return (
        f"mouth area error {percent(quality.mouth_area_error)}",
        f"PSNR person {decibel(quality.psnr['person'])}, mouth {decibel(quality.psnr['mouth'])}",
    )


def _traces(comparison: Comparison) -> tuple[Trace, ...]:
    """The audio's wish and both mouths, on scales that make them comparable by eye."""
    low, high = float(comparison.uncached.mouth.min()), float(comparison.uncached.mouth.max())
    span = max(high - low, 1e-9)
    return (
        Trace("audio", AUDIO_COLOUR, _unit(comparison.opening)),
        Trace("uncached", UNCACHED_COLOUR, (comparison.uncached.mouth - low) / span),
        Trace("compiled", COMPILED_COLOUR, (comparison.compiled.mouth - low) / span),
    )


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    span = max(float(values.max() - values.min()), 1e-9)
    return np.asarray((values - values.min()) / span, np.float64)
