"""Figures as text; one wording for table, sheet and video."""

from __future__ import annotations

import math

__all__ = ["decibel", "pearson", "percent"]


def decibel(value: float) -> str:
    """A PSNR; infinite means that the frames are identical."""
    return f"{value:.1f} dB" if math.isfinite(value) else "identical"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else "undefined"


def pearson(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
