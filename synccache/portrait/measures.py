"""Measures of pictures and of lip-sync, all from pixels."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from synccache.portrait.config import PortraitError

__all__ = ["Box", "correlation", "mouth_area_error", "mouth_opening_trace", "psnr", "ssim"]

Box = tuple[
    int, int, int, int
]  # top, bottom, left, right: rows top..bottom-1, columns left..right-1

_LUMINANCE = (0.299, 0.587, 0.114)
_DARK, _BRIGHT = 0.22, 0.42  # luminance relative to the skin: surely inside a mouth, surely not
_SKIN_QUANTILE = 0.75
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def mouth_opening_trace(frames: Tensor, box: Box) -> Tensor:
    """The dark area in the mouth box of every frame [frames], in pixels.

    A pixel counts fully below 22 % of the brightness of the skin around it, not at all above 42 %, and partly between.
    Shapes:  frames [frames, 3, height, width] in [0, 1].
    """
    top, bottom, left, right = box
    weights = torch.tensor(_LUMINANCE, dtype=frames.dtype).view(1, 3, 1, 1)
    brightness = (frames[:, :, top:bottom, left:right] * weights).sum(1).flatten(1)
    skin = torch.quantile(brightness, _SKIN_QUANTILE, dim=1, keepdim=True)
    return ((_BRIGHT - brightness / skin) / (_BRIGHT - _DARK)).clamp(0.0, 1.0).sum(1)


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation of two traces [n]; 0 when one of them does not change."""
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise PortraitError(
            f"correlation: two traces of one length are needed, got {list(first.shape)} and {list(second.shape)}"
        )
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def mouth_area_error(cached: Tensor, uncached: Tensor) -> float:
    """How far the mouth's dark area is off, in per cent of its mean: 100 * mean |a_c - a_u| / mean a_u.

    Shapes:  cached and uncached [frames], traces from `mouth_opening_trace`.
    Raises: PortraitError when the uncached mouth never opens.
    """
    mean = float(uncached.mean())
    if mean < 1e-6:
        raise PortraitError(
            "mouth_area_error: the uncached mouth never opens, so a relative error has no meaning"
        )
    return 100.0 * float((cached - uncached).abs().mean()) / mean


def psnr(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite when they are equal.

    Shapes:  first and second [frames, 3, height, width]; mask [frames or 1, height, width], where to look.
    """
    _same_shape("psnr", first, second)
    square = (first.double() - second.double()).square()
    if mask is None:
        error = float(square.mean())
    else:
        error = _masked_mean(square.mean(1), mask)
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def ssim(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity, 11 x 11 Gaussian window of sigma 1.5, unbiased by borders (valid positions only).

    Shapes:  like `psnr`; the mask is read at the middle of every window.
    """
    _same_shape("ssim", first, second)
    a, b = first.double(), second.double()
    channels = a.shape[1]
    offset = torch.arange(_SSIM_WINDOW, dtype=torch.float64) - _SSIM_WINDOW // 2
    line = torch.exp(-(offset**2) / (2 * _SSIM_SIGMA**2))
    line = line / line.sum()
    window = (line[:, None] * line[None]).expand(channels, 1, -1, -1)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)) / (
        (mean_a**2 + mean_b**2 + _SSIM_C1) * (variance_a + variance_b + _SSIM_C2)
    )
    if mask is None:
        return float(similarity.mean())
    side = _SSIM_WINDOW // 2
    return _masked_mean(similarity.mean(1), mask[:, side:-side, side:-side])


def _same_shape(name: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4:
        raise PortraitError(
            f"{name}: two [frames, 3, height, width] are needed, got {list(first.shape)} and {list(second.shape)}"
        )


def _masked_mean(values: Tensor, mask: Tensor) -> float:
    weights = mask.double().expand_as(values)
    total = float(weights.sum())
    if total == 0.0:
        raise PortraitError("the mask is empty: no pixel to measure")
    return float((values * weights).sum()) / total
