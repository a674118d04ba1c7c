"""The figures that separate the compiled clip from the uncached one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synccache.demo.comparison import Quality
from synccache.portrait.data import Clip
from synccache.portrait.measures import (
    Box,
    correlation,
    mouth_area_error,
    mouth_opening_trace,
    psnr,
)

__all__ = ["judged", "mouth_trace"]

_MARGIN = 2  # pixels around where the drawn mouth goes: the generated head sways a little otherwise


def judged(uncached: Tensor, compiled: Tensor, drawn: Clip) -> Quality:
    """Both clips against each other by region, and both mouths against the audio.

    Shapes:  uncached and compiled [frames, 3, height, width] in [0, 1].
    """
    person = drawn.person.amax(0, keepdim=True)
    mouth = torch.zeros_like(person)
    top, bottom, left, right = mouth_box(drawn)
    mouth[:, top:bottom, left:right] = 1.0
    before, after = mouth_trace(uncached, drawn), mouth_trace(compiled, drawn)
    return Quality(
        psnr={
            "whole": psnr(uncached, compiled),
            "person": psnr(uncached, compiled, person),
            "mouth": psnr(uncached, compiled, mouth),
            "background": psnr(uncached, compiled, 1.0 - person),
        },
        audio_uncached=correlation(before, drawn.opening),
        audio_compiled=correlation(after, drawn.opening),
        between=correlation(before, after),
        mouth_area_error=_area_error(before, after),
        identical=bool(torch.equal(uncached, compiled)),
    )


def _area_error(before: Tensor, after: Tensor) -> float:
    """The mouth's area error as a fraction; undefined where the uncached mouth never opens."""
    return mouth_area_error(after, before) / 100 if float(before.max()) > 0 else math.nan


def mouth_trace(frames: Tensor, drawn: Clip) -> Tensor:
    """How far the mouth is open in every frame [frames], in pixels of dark area."""
    return mouth_opening_trace(frames, mouth_box(drawn))


def mouth_box(drawn: Clip) -> Box:
    """The rows and columns that the drawn clip's mouth ever covers, and a margin."""
    covered = drawn.mouth.amax(0) > 0
    rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
    height, width = covered.shape
    return (
        max(0, int(rows.min()) - _MARGIN),
        min(height, int(rows.max()) + 1 + _MARGIN),
        max(0, int(columns.min()) - _MARGIN),
        min(width, int(columns.max()) + 1 + _MARGIN),
    )
