"""Flow-matching sampling: Euler steps, audio guidance by two calls per step, long clips window by window."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from synccache.portrait.audio import feature_windows, null_audio
from synccache.portrait.autoencoder import PortraitAutoencoder
from synccache.portrait.changes import changes_of, latents_of
from synccache.portrait.config import CONFIG, PortraitError

__all__ = ["Denoiser", "generate_clip", "noise_levels", "sample"]

StepCallback = Callable[[int, Tensor], None]


class Denoiser(Protocol):
    """Anything called like `PortraitTransformer`, a compiled one too."""

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        audio: Tensor,
        reference: Tensor,
        motion: Tensor | None = None,
    ) -> Tensor: ...


def noise_levels(steps: int, shift: float) -> Tensor:
    """The noise levels [steps + 1] from 1 down to 0; a larger shift spends more steps on high noise."""
    if steps < 1:
        raise PortraitError(f"noise_levels: at least 1 step is needed, got {steps}")
    if not shift > 0.0:
        raise PortraitError(f"noise_levels: the shift must be positive, got {shift}")
    even = torch.linspace(1.0, 0.0, steps + 1)
    return shift * even / (1.0 + (shift - 1.0) * even)


@torch.no_grad()
def sample(
    model: Denoiser,
    audio: Tensor,
    reference: Tensor,
    *,
    motion: Tensor | None = None,
    steps: int = 40,
    guidance: float = 3.0,
    shift: float = 2.0,
    seed: int = 0,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Clean latents [batch, 32, 8, 8, 8] for a voice and a reference picture.

    Every step calls the model with the audio and then, unless `guidance` is 1, with null audio at the same timestep:
    v = v_null + guidance * (v_audio - v_null). `on_step(step, latents)` is called after every step.
    The model works on changes from the reference (see `changes`); what goes in and comes out here are latents.
    Shapes:  audio [batch, window_features, mel_bands]; reference and motion [batch, 32, 8, 8].
    """
    _check(audio, reference, motion)
    shape = (
        len(audio),
        CONFIG.latent_channels,
        CONFIG.latent_frames,
        CONFIG.latent_size,
        CONFIG.latent_size,
    )
    state = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(reference)
    known = None if motion is None else changes_of(motion, reference)
    silent = null_audio(audio)
    levels = noise_levels(steps, shift).to(reference)
    for step in range(steps):
        timestep = levels[step].expand(len(audio)).contiguous()
        velocity = model(state, timestep, audio, reference, known)
        if guidance != 1.0:
            without = model(state, timestep, silent, reference, known)
            velocity = without + guidance * (velocity - without)
        state = state + (levels[step + 1] - levels[step]) * velocity
        if on_step is not None:
            on_step(step, latents_of(state, reference))
    latents = latents_of(state, reference)
    if motion is not None:
        latents = torch.cat([motion.unsqueeze(2), latents[:, :, 1:]], dim=2)
    return latents


def _check(audio: Tensor, reference: Tensor, motion: Tensor | None) -> None:
    """Shapes are right, or a PortraitError says which is not."""
    batch = len(audio)
    latent = [batch, CONFIG.latent_channels, CONFIG.latent_size, CONFIG.latent_size]
    expected = {
        "audio": [batch, CONFIG.window_features, CONFIG.mel_bands],
        "reference": latent,
        "motion": latent,
    }
    for name, value in (("audio", audio), ("reference", reference), ("motion", motion)):
        if value is not None and list(value.shape) != expected[name]:
            raise PortraitError(
                f"sample: {name} has shape {list(value.shape)}, expected {expected[name]}"
            )


@torch.no_grad()
def generate_clip(
    model: Denoiser,
    autoencoder: PortraitAutoencoder,
    features: Tensor,
    reference: Tensor,
    *,
    steps: int = 40,
    guidance: float = 3.0,
    shift: float = 2.0,
    seed: int = 0,
    on_step: StepCallback | None = None,
    on_window: Callable[[int, int], None] | None = None,
) -> Tensor:
    """All frames [frames, 3, 64, 64] in [0, 1] of a voice as long as it is.

    The first window makes 16 frames. Every further one is given the last latent frame of the one before as
    its first and adds 14. `on_window(window, windows)` is called before each; their seeds are seed, seed + 1, ...
    Shapes:  features [feature frames, mel_bands] of `audio_features`; reference [32, 8, 8] or [1, 32, 8, 8].
    """
    reference = reference.reshape(1, *reference.shape[-3:])
    frames = max(1, -(-len(features) // CONFIG.features_per_frame))
    overlap = CONFIG.frames // CONFIG.latent_frames
    windows = 1 + max(0, -(-(frames - CONFIG.frames) // (CONFIG.frames - overlap)))
    parts: list[Tensor] = []
    motion: Tensor | None = None
    for window in range(windows):
        if on_window is not None:
            on_window(window, windows)
        audio = feature_windows(features, window * (CONFIG.frames - overlap))[None].to(reference)
        latents = sample(
            model,
            audio,
            reference,
            motion=motion,
            steps=steps,
            guidance=guidance,
            shift=shift,
            seed=seed + window,
            on_step=on_step,
        )
        motion = latents[:, :, -1]
        parts.append(latents if window == 0 else latents[:, :, 1:])
    return autoencoder.decode(torch.cat(parts, dim=2))[0, :frames]
