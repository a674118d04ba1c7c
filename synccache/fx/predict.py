"""What a skipped step uses: one weighted sum of the held tensors, for every predictor.

    T_n + sum over older tensors j of  w_j (T_j - T_n)          (the weights of a prediction sum to 1)

From the newest older tensor to the oldest, one addition each; terms of weight 0 are left out, so
reuse returns the held tensor itself and constant features are predicted exactly. In float32 for
16-bit tensors, rounded once at the end; in the tensors' own dtype otherwise. Weights that do not sum
to 1 (fitted ones) scale T_n by their sum first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from synccache.errors import StateError
from synccache.policies.predictors import (
    Foca,
    Predictor,
    Split,
    Transform,
    TwoAnchor,
    band_weights,
)

_HALF = (torch.bfloat16, torch.float16)
_ONE = 1e-9  # weights whose sum is this near to 1 sum to 1


def predict(
    predictor: Predictor, steps: Sequence[int], tensors: Sequence[Tensor], at: int, *,
    forecasts: frozenset[int] = frozenset(), ratio: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The tensor that a predictor makes for step ``at`` of those held for ``steps``, oldest first.

    Args:
        forecasts: those of ``steps`` whose tensor is itself a forecast.
        ratio: 0-d tensor, how far the rule's probe has gone between its anchors (TwoAnchor).
    """
    if len(tensors) == 1:
        return tensors[0]
    if isinstance(predictor, TwoAnchor):
        if ratio is None:
            return tensors[-1]
        return weighted_sum(tensors[-2:], (1.0 - ratio.clamp(predictor.low, predictor.high), 0.0))
    weights = _weights(predictor, tuple(steps), at, forecasts)
    total = weighted_sum(tensors, weights)
    if isinstance(predictor, Split):
        low = _weights(predictor.low, tuple(steps), at, forecasts)
        change = weighted_sum(tensors, tuple(a - b for a, b in zip(low, weights)))
        total = total + low_band(change, predictor.cutoff, predictor.transform)
    return total


@functools.lru_cache(maxsize=1024)
def _weights(
    predictor: Predictor, steps: tuple[int, ...], at: int, forecasts: frozenset[int]
) -> tuple[float, ...]:
    if isinstance(predictor, Foca):
        return predictor.weights(steps, at, forecasts)
    return band_weights(predictor, steps, at)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """The sum described above; the last weight is 1 minus the others unless the numbers say else."""
    newest = tensors[-1]
    numbers = [w for w in weights if not isinstance(w, Tensor)]
    whole = sum(numbers) if len(numbers) == len(weights) else 1.0
    wide = newest.float() if newest.dtype in _HALF else newest
    total = wide if abs(whole - 1.0) < _ONE else wide * whole
    for tensor, weight in zip(reversed(tensors[:-1]), reversed(weights[:-1])):
        if isinstance(weight, Tensor):
            total = total + (tensor - wide) * weight.to(wide.dtype)
        elif weight:
            further = tensor - wide
            total = (
                torch.add(total, further, alpha=weight)
                if total is wide
                else total.add_(further, alpha=weight)
            )
    return newest if total is wide else total.to(newest.dtype)


def low_band(value: Tensor, cutoff: float, transform: Transform) -> Tensor:
    """The low spatial frequencies of [batch, tokens, channels]; in float32 where 16-bit."""
    wide = value.float() if value.dtype in _HALF else value
    return _LOW_BAND[transform](wide, cutoff).to(value.dtype)


def _token_fft(value: Tensor, cutoff: float) -> Tensor:
    tokens = value.shape[-2]
    frequencies = torch.fft.rfftfreq(tokens, device=value.device)
    keep = frequencies <= cutoff * frequencies.max()
    spectrum = torch.fft.rfft(value, dim=-2) * keep[:, None]
    return torch.fft.irfft(spectrum, n=tokens, dim=-2)


def _grid_dct(value: Tensor, cutoff: float) -> Tensor:
    tokens = value.shape[-2]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise StateError(
            f"{tokens} tokens are no square grid, which Split(transform=GRID_DCT) needs.",
            hint="Use Split(transform=TOKEN_FFT).",
        )
    basis = _dct_basis(side, value.dtype, value.device)
    index = torch.arange(side, device=value.device, dtype=torch.float32)
    radius = (index[:, None] ** 2 + index[None, :] ** 2).sqrt()
    keep = (radius <= cutoff * radius.max()).to(value.dtype)
    grid = value.unflatten(-2, (side, side)).movedim(-1, -3)
    spectrum = basis @ grid @ basis.T * keep
    return (basis.T @ spectrum @ basis).movedim(-3, -1).flatten(-3, -2)


def _dct_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal DCT-II: row k is the cosine of frequency k."""
    n = torch.arange(size, device=device, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (n[None, :] + 0.5) * n[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype)


_LOW_BAND = {Transform.TOKEN_FFT: _token_fft, Transform.GRID_DCT: _grid_dct}
