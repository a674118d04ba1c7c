"""Measurements on probes: from tensors to 0-d float32 tensors on their device; nothing waits here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from synccache.errors import StateError
from synccache.policies import dsl

SPECTRAL_EPS = 1e-16  # SeaCache's guard of both fractions
MIN_SIGMA = 1e-6  # noise levels are kept within [1e-6, 1 - 1e-6], as released
MAX_SPECTRAL_AXES = 3  # frames, height, width


def prepared(value: Tensor, weights: tuple[dsl.Weight, ...], timestep: float) -> Tensor:
    """The probe as it is compared and kept: filtered to what is signal, fewer channels."""
    for weight in weights:
        if isinstance(weight, dsl.ChannelStride):
            value = value[..., :: weight.n].contiguous()
        elif isinstance(weight, dsl.Spectral):
            value = wiener(value, timestep / weight.levels, weight.power)
    return value


def change(
    signal: dsl.RelativeL1 | dsl.MeanChange, now: Tensor, reference: Tensor, tokens: Tensor | None
) -> Tensor:
    """The value of ``signal`` for a prepared probe and its reference.

    Shapes: now, reference alike, [batch, tokens..., channels] where tokens are weighed;
    tokens [batch or 1, tokens] or None for uniform weights.
    """
    threshold = [w.threshold for w in dsl.weights_of(signal) if isinstance(w, dsl.TokenFilter)]
    if threshold:
        tokens = _moving(now, reference, threshold[0], tokens)
    if isinstance(signal, dsl.MeanChange):
        return _mean((now.float() - reference.float()).abs_(), tokens)
    return relative(now, reference, signal.norm, signal.denominator, signal.eps, tokens)


def relative(
    now: Tensor, reference: Tensor, norm: dsl.Norm, denominator: dsl.Denominator, eps: float,
    tokens: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The relative change between two tensors of one shape; see ``dsl.Norm``."""
    below = reference if denominator is dsl.OLD else now
    return _NORMS[norm](now.float() - reference.float(), below.float(), eps, tokens)


# The difference is these functions' own: they write its magnitudes over it.


def _ratio_of_means(difference: Tensor, below: Tensor, eps: float, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        size = below.abs().sum()
        return difference.abs_().sum() / (size + eps * difference.numel() if eps else size)
    moved, size = difference.abs_().sum(-1).flatten(1), _by_token(below)
    least = eps * difference.shape[-1]
    return (moved * tokens).sum() / ((size * tokens).sum() + least * _all(tokens, moved))


def _mean_of_ratios(difference: Tensor, below: Tensor, eps: float, tokens: Tensor | None) -> Tensor:
    return _mean(difference.abs_() / (below.abs() + eps), tokens)


def _token_norms(difference: Tensor, below: Tensor, eps: float, tokens: Tensor | None) -> Tensor:
    moved = torch.linalg.vector_norm(difference, dim=-1).flatten(1)
    ratios = moved / (torch.linalg.vector_norm(below, dim=-1).flatten(1) + eps)
    return ratios.mean() if tokens is None else (ratios * tokens).sum() / _all(tokens, ratios)


_NORMS: Mapping[dsl.Norm, Callable[[Tensor, Tensor, float, Tensor | None], Tensor]] = {
    dsl.Norm.RATIO_OF_MEANS: _ratio_of_means,
    dsl.Norm.MEAN_OF_RATIOS: _mean_of_ratios,
    dsl.Norm.TOKEN_NORMS: _token_norms,
}


def mean_size(value: Tensor) -> Tensor:
    """``mean|value|``."""
    return value.float().abs().mean()


def size_ratio(now: Tensor, reference: Tensor) -> Tensor:
    """The mean over tokens of ``||now|| / ||reference||``."""
    sizes = [torch.linalg.vector_norm(t.float(), dim=-1) for t in (now, reference)]
    return (sizes[0] / sizes[1]).mean()


def two_anchor_ratio(now: Tensor, older: Tensor, newer: Tensor) -> Tensor:
    """``mean|now - older| / mean|newer - older|``; 1, plain reuse, where the anchors coincide."""
    moved = (now.float() - older.float()).abs_().mean()
    span = (newer.float() - older.float()).abs_().mean()
    return torch.where(span > 0, moved / span, torch.ones_like(span))


def wiener(value: Tensor, sigma: float, power: float) -> Tensor:
    """The filter described at ``dsl.Spectral``, over up to three last axes behind [batch, channels].

    Raises:  StateError for a probe that is no latent grid.
    """
    if value.dim() < 4:
        raise StateError(
            f"spectral(...) filters a latent [batch, channels, (frames,) height, width], but this probe "
            f"has the shape {list(value.shape)}.",
            hint="Use it on a model whose sample is a grid, or leave the weight out.",
        )
    axes = tuple(range(max(2, value.dim() - MAX_SPECTRAL_AXES), value.dim()))
    sigma = min(max(sigma, MIN_SIGMA), 1.0 - MIN_SIGMA)
    gain = torch.ones((), device=value.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(value.shape[axis], device=value.device, dtype=torch.float32)
        clean = 1.0 / (frequency.abs().pow(power) + SPECTRAL_EPS)
        kept = (1.0 - sigma) * clean / ((1.0 - sigma) ** 2 * clean + sigma**2 + SPECTRAL_EPS)
        gain = gain * kept.reshape([-1] + [1] * (value.dim() - 1 - axis))
    gain = gain / gain.mean()
    # of real values half the spectrum says all: the gain is the same for a frequency and its negative
    half = value.shape[-1] // 2 + 1
    spectrum = torch.fft.rfftn(value.float(), dim=axes) * gain[..., :half]
    sizes = [value.shape[axis] for axis in axes]
    return torch.fft.irfftn(spectrum, s=sizes, dim=axes).to(value.dtype)


def mask_weights(
    weight: dsl.MaskWeight, mask: Tensor | None, written: Tensor | None, now: Tensor
) -> Tensor | None:
    """Token weights of a mask, [batch or 1, tokens]; None for uniform ones (no mask is known yet).

    Args:
        mask: what the user gave, [1 or batch, tokens]; tokens behind it (reference) weigh nothing.
        written: how strongly audio branches wrote to each token, where no mask was given.
    """
    tokens = now.flatten(1, -2).shape[1]
    if mask is None:
        if written is None:
            return None
        inside = written / written.amax(dim=1, keepdim=True).clamp_min(1e-12)
        return 1.0 + (weight.inside - 1.0) * inside
    mask = mask.to(device=now.device, dtype=torch.float32)
    weights = 1.0 + (weight.inside - 1.0) * mask
    if mask.shape[-1] < tokens:
        weights = torch.nn.functional.pad(weights, (0, tokens - mask.shape[-1]))
    return weights


def _by_token(value: Tensor) -> Tensor:
    if value.device.type == "cpu":  # torch's one pass is slower there than these two
        return value.abs().sum(-1).flatten(1)
    return torch.linalg.vector_norm(value, ord=1, dim=-1).flatten(1)


def _all(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.expand_as(like).sum()


def _mean(sizes: Tensor, tokens: Tensor | None) -> Tensor:
    """The mean of non-negative numbers, weighed by token."""
    if tokens is None:
        return sizes.mean()
    by_token = sizes.mean(dim=-1).flatten(1)
    return (by_token * tokens).sum() / _all(tokens, by_token)


def _moving(now: Tensor, reference: Tensor, threshold: float, tokens: Tensor | None) -> Tensor:
    """Weight 1 for tokens whose relative change exceeds the threshold; all where none does."""
    moved, size = _by_token(now.float() - reference.float()), _by_token(reference.float())
    chosen = (moved / size > threshold).float()
    chosen = torch.where(chosen.any(), chosen, torch.ones_like(chosen))
    return chosen if tokens is None else chosen * tokens
