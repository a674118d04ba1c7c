"""Predictors as their papers and released codes write them: by recurrence, on whole histories.

    predicted(Taylor(order=2), history, at=7)

``history`` is all that was ever put in for one run, oldest first. The library computes the same as one
weighted sum of the few newest tensors (synccache/policies/predictors.py); nothing is shared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """One value of a run: of which step, and whether it was itself predicted."""

    step: int
    tensor: Tensor
    forecast: bool = False


def predicted(
    predictor: Any, history: Sequence[Kept], at: int, ratio: float | None = None
) -> Tensor:
    """What a skipped step uses; ``ratio`` is how far the probe has gone (two anchors)."""
    computed = [kept for kept in history if not kept.forecast]
    if len(computed) == 1 and len(history) == 1:
        return computed[0].tensor
    return _FORMULA[type(predictor).__name__](predictor, computed, history, at, ratio)


def _hold(predictor: Any, computed: Sequence[Kept], *_: Any) -> Tensor:
    return computed[-1].tensor


def _linear(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    if len(computed) < 2:
        return computed[-1].tensor
    b, a = computed[-2:]
    slope = (a.tensor - b.tensor) / (a.step - b.step)
    return a.tensor + slope * (at - a.step)


def _factors(computed: Sequence[Kept], order: int, start: int) -> list[Tensor]:
    """TaylorSeer's: each new factor is the change of the one before it over the last gap."""
    factors: list[Tensor] = []
    for index, kept in enumerate(computed):
        new = [kept.tensor]
        gap = kept.step - computed[index - 1].step if index else 0
        while len(new) <= order and len(new) <= len(factors) and kept.step >= start:
            new.append((new[-1] - factors[len(new) - 1]) / gap)
        factors = new
    return factors


def _taylor(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    distance = at - computed[-1].step
    factors = _factors(computed, predictor.order, predictor.start)
    return sum(
        (f * distance**i / math.factorial(i) for i, f in enumerate(factors)),
        torch.zeros_like(factors[0]),
    )


def _hermite(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    s, distance = predictor.scale, at - computed[-1].step
    factors = _factors(computed, predictor.order, predictor.start)
    found = factors[0]
    for i, factor in enumerate(factors[1:], start=1):
        found = found + factor / math.factorial(i) * s**i * _polynomial(i, s * distance)
    return found


def _polynomial(n: int, x: float) -> float:
    """Physicists' Hermite polynomial H_n."""
    if n == 0:
        return 1.0
    return 2 * x if n == 1 else 2 * x * _polynomial(n - 1, x) - 2 * (n - 1) * _polynomial(n - 2, x)


def _newton(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    """Newton's form with divided differences over the last order + 1 points."""
    points = list(reversed(computed[-predictor.order - 1 :]))
    differences = [p.tensor for p in points]
    found, product = differences[0], 1.0
    for level in range(1, len(points)):
        differences = [
            (differences[i] - differences[i + 1]) / (points[i].step - points[i + level].step)
            for i in range(len(points) - level)
        ]
        product *= at - points[level - 1].step
        found = found + differences[0] * product
    return found


def _two_anchors(
    predictor: Any, computed: Sequence[Kept], history: Any, at: int, ratio: float | None
) -> Tensor:
    if len(computed) < 2 or ratio is None:
        return computed[-1].tensor
    b, a = computed[-2:]
    gamma = min(max(ratio, predictor.low), predictor.high)
    return b.tensor + gamma * (a.tensor - b.tensor)


def _foca(
    predictor: Any, computed: Sequence[Kept], history: Sequence[Kept], at: int, *_: Any
) -> Tensor:
    if len(computed) < 2:
        return computed[-1].tensor
    b, a = computed[-2:]
    before, last = history[-2:]
    distance = at - a.step
    slopes = (a.tensor - b.tensor) + (last.tensor - before.tensor)
    if distance <= 3:
        return a.tensor + distance / 2 * slopes
    share = 3 / distance
    return share * (a.tensor + 3 / 2 * slopes) + (1 - share) * a.tensor


def _feedback(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    if len(computed) < 2:
        return computed[-1].tensor
    b, a = computed[-2:]
    error = b.tensor - a.tensor  # of reusing b on step a
    for _step in range(at - a.step):
        error = error * predictor.rho
    return a.tensor - error


def _fixed(predictor: Any, computed: Any, history: Sequence[Kept], *_: Any) -> Tensor:
    factors = predictor.factors
    if len(history) < len(factors):
        return history[-1].tensor
    values = [kept.tensor for kept in history[-len(factors) :]]
    return sum((w * v for w, v in zip(factors, values, strict=True)), torch.zeros_like(values[0]))


def _split(predictor: Any, computed: Any, history: Sequence[Kept], at: int, *_: Any) -> Tensor:
    bands = {"low": predictor.low, "high": predictor.high}
    low, high = (predicted(band, history, at) for band in bands.values())
    keep = _BAND[predictor.transform.name]
    return keep(low, predictor.cutoff) + high - keep(high, predictor.cutoff)


def _fitted(predictor: Any, computed: Sequence[Kept], history: Any, at: int, *_: Any) -> Tensor:
    """The planned weights of this step, if the steps that it was planned on were computed."""
    for step, anchors, weights in predictor.mixes:
        used = computed[-len(anchors) :]
        if step == at and [kept.step for kept in used] == list(anchors):
            terms = (w * kept.tensor for w, kept in zip(weights, used, strict=True))
            return sum(terms, torch.zeros_like(used[0].tensor))
    return _linear(predictor, computed, history, at)


def _low_tokens(value: Tensor, cutoff: float) -> Tensor:
    """Frequencies along the tokens of at most ``cutoff`` times the highest."""
    spectrum = torch.fft.fft(value, dim=-2)
    frequencies = torch.fft.fftfreq(value.shape[-2]).abs()
    kept = (frequencies <= cutoff * frequencies.max()).to(value.dtype)
    return torch.fft.ifft(spectrum * kept[:, None], dim=-2).real


def _low_grid(value: Tensor, cutoff: float) -> Tensor:
    """Cosines over a square grid of tokens whose radial index is at most ``cutoff`` times the largest."""
    side = math.isqrt(value.shape[-2])
    n = torch.arange(side, dtype=torch.float64)
    cosines = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / (2 * side))
    cosines = (cosines / cosines.norm(dim=1, keepdim=True)).to(value.dtype)
    radius = (n[:, None] ** 2 + n[None] ** 2).sqrt()
    kept = (radius <= cutoff * radius.max()).to(value.dtype)
    grid = value.unflatten(-2, (side, side))
    spectrum = torch.einsum("ip,jq,...pqc->...ijc", cosines, cosines, grid) * kept[..., None]
    return torch.einsum("ip,jq,...ijc->...pqc", cosines, cosines, spectrum).flatten(-3, -2)


_BAND = {"TOKEN_FFT": _low_tokens, "GRID_DCT": _low_grid}
_FORMULA = {
    "Hold": _hold,
    "Linear": _linear,
    "Taylor": _taylor,
    "Hermite": _hermite,
    "Newton": _newton,
    "TwoAnchor": _two_anchors,
    "Foca": _foca,
    "Fixed": _fixed,
    "Split": _split,
    "Feedback": _feedback,
    "Fitted": _fitted,
}


def from_sibling(
    predictor: Any, other: Tensor, difference: Tensor, gains: list[float], timestep: float
) -> Tensor:
    """FasterCache's: the other branch's output, and both bands of the difference, ever more enlarged.

    ``gains`` of the low and the high band grow in place, on every skipped step in their window.
    """
    for band, (gain, window) in enumerate(
        [(predictor.low, predictor.low_window), (predictor.high, predictor.high_window)]
    ):
        gains[band] *= gain if window[0] < timestep < window[1] else 1.0
    height, width = difference.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference.float()), dim=(-2, -1))
    for row in range(height):
        for column in range(width):
            distance = math.hypot(row - height // 2, column - width // 2)
            inside = distance <= int(predictor.radius * min(height, width))
            spectrum[..., row, column] *= gains[0] if inside else gains[1]
    return other + torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
