"""How far and how wide a mouth opens, as a smooth function of the speech features around a frame."""

import torch

from synccache.portrait.config import CONFIG

__all__ = ["mouth_motion"]

_FIRST_FORMANT = slice(2, 9)  # mel bands of about 250 to 1050 Hz: open vowels are loud there
_BACK_VOWELS = slice(2, 8)
_FRONT_VOWELS = slice(11, 16)  # about 1500 to 3600 Hz: spread lips
_SMOOTHING = (0.1, 0.25, 0.3, 0.25, 0.1)  # half a frame (25 ms) per tap


def mouth_motion(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Opening and width in [0, 1], each [frames], from a window of features with its context.

    Shapes:  window [2 * frames + 2 * context_features, mel_bands], as `feature_windows` returns it.
    """
    low = window[:, _FIRST_FORMANT].mean(1)
    ratio = window[:, _FRONT_VOWELS].mean(1) - window[:, _BACK_VOWELS].mean(1)
    loud = torch.sigmoid((low - 0.1) * 8.0)
    opening = _per_frame(((low + 0.08) / 0.62).clamp(0.0, 1.0))
    width = _per_frame(0.5 + loud * 0.5 * torch.tanh((ratio + 0.33) * 4.0))
    return opening, width


def _per_frame(signal: torch.Tensor) -> torch.Tensor:
    """The signal smoothed and read in the middle of every video frame."""
    taps = torch.tensor(_SMOOTHING, dtype=signal.dtype)
    smooth = torch.nn.functional.conv1d(
        torch.nn.functional.pad(signal[None, None], (2, 2), mode="replicate"), taps[None, None]
    )[0, 0]
    inner = smooth[CONFIG.context_features : len(smooth) - CONFIG.context_features]
    return inner.reshape(-1, CONFIG.features_per_frame).mean(1)
