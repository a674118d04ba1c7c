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

__all__ = ["judged"]


def judged(uncached: Tensor, compiled: Tensor, drawn: Clip, box: Box) -> Quality:
    """Both clips against each other by region, and both mouths against the audio.

    Shapes:  uncached and compiled [frames, 3, height, width] in [0, 1]; box: where the mouth is.
    """
    person = drawn.person.amax(0, keepdim=True)
    mouth = torch.zeros_like(person)
    top, bottom, left, right = box
    mouth[:, top:bottom, left:right] = 1.0
    before, after = mouth_opening_trace(uncached, box), mouth_opening_trace(compiled, box)
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
