"""One speech, one face, one noise, two runs: the model as it is and the model compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import synccache
from synccache.demo.comparison import Settings
from synccache.policies.dsl import Policy
from synccache.portrait.audio import (
    Waveform,
    audio_features,
    feature_windows,
    null_audio,
    read_wave,
)
from synccache.portrait.config import CONFIG, PortraitError
from synccache.portrait.data import HELD_OUT_IDENTITIES, Clip, draw_clip
from synccache.portrait.held_out import mouth_box
from synccache.portrait.load import Portrait
from synccache.portrait.measures import Box
from synccache.portrait.sampler import Denoiser, generate_clip

__all__ = ["Scene", "TimedRun", "compiled_for", "generate", "prepare", "warm_up"]

Advance = Callable[[], None]

_LEAST_SECONDS = 0.1  # two frames: less has no mouth movement to compare


@dataclass(frozen=True, slots=True)
class Scene:
    """Who speaks and what: the inputs of both runs, and what measures need of the drawn clip.

    Shapes:  samples [samples], mono; features [feature frames, mel_bands]; reference [1, 32, 8, 8].
    """

    samples: Waveform
    sample_rate: int
    features: Tensor
    reference: Tensor
    drawn: Clip
    mouth: Box

    @property
    def windows(self) -> int:
        """How many windows `generate_clip` samples one after the other."""
        overlap = CONFIG.frames // CONFIG.latent_frames
        beyond = max(0, len(self.drawn.frames) - CONFIG.frames)
        return 1 + -(-beyond // (CONFIG.frames - overlap))


@dataclass(frozen=True, slots=True)
class TimedRun:
    """The frames [frames, 3, 64, 64] of a run, and what its windows' denoising loops took together.

    Units:  seconds of wall-clock time; cpu_seconds of all threads, which other programs disturb less.
    """

    frames: Tensor
    seconds: float
    cpu_seconds: float


def prepare(portrait: Portrait, audio: Path, seed: int) -> Scene:
    """The scene of a WAV file and a face that the model was not trained on.

    Raises:  PortraitError when the file is no readable speech.
    """
    samples, sample_rate = read_wave(audio)
    seconds = len(samples) / sample_rate
    if seconds < _LEAST_SECONDS:
        raise PortraitError(
            f"{audio} is empty: {seconds:.2f} s of sound; at least {_LEAST_SECONDS} s are needed"
        )
    features = audio_features(samples, sample_rate)
    frames = max(1, -(-len(features) // CONFIG.features_per_frame))
    drawn = draw_clip(HELD_OUT_IDENTITIES + seed, features, 0, frames)
    silence = torch.full((1, CONFIG.mel_bands), -1.0)
    closed = draw_clip(HELD_OUT_IDENTITIES + seed, silence, 0, frames)
    with torch.no_grad():
        reference = portrait.autoencoder.encode_image(drawn.reference[None])
    box = mouth_box(closed.mouth)
    return Scene(samples.mean(axis=1), sample_rate, features, reference, drawn, box)


def compiled_for(
    portrait: Portrait, scene: Scene, policy: Policy, settings: Settings
) -> synccache.CachedModel:
    """The compiled model, with the person marked where the drawn clip has one in any frame."""
    person = torch.nn.functional.adaptive_avg_pool2d(
        scene.drawn.person.amax(0)[None], CONFIG.latent_size
    )
    return synccache.compile(
        portrait.model,
        policy=policy,
        mem_budget=settings.mem_budget,
        cache_ratio=settings.cache_ratio,
        masks={"person": person.expand(CONFIG.latent_frames, -1, -1)},
    )


@torch.no_grad()
def warm_up(model: Denoiser, scene: Scene, *, begin: Callable[[], None] = lambda: None) -> None:
    """One forward for each kind of call of a run; a compiled model records and plans them.

    `begin` is called before each denoising run that is begun here.
    """
    audio = feature_windows(scene.features, 0)[None]
    latents = torch.randn(
        (1, CONFIG.latent_channels, CONFIG.latent_frames, CONFIG.latent_size, CONFIG.latent_size),
        generator=torch.Generator().manual_seed(0),
    )
    noise_level = torch.ones(1)
    motions = [None, scene.reference] if scene.windows > 1 else [None]
    for motion in motions:
        begin()
        for heard in (audio, null_audio(audio)):
            model(latents, noise_level, heard, scene.reference, motion)


def generate(
    model: Denoiser,
    portrait: Portrait,
    scene: Scene,
    settings: Settings,
    *,
    on_step: Advance,
    on_window_end: Advance = lambda: None,
) -> TimedRun:
    """The clip of a scene; every window is timed from its start to its last step, decoding is not."""
    seconds = cpu_seconds = 0.0
    started = (0.0, 0.0)

    def begin(window: int, windows: int) -> None:
        nonlocal started
        started = (time.perf_counter(), time.process_time())

    def after_step(step: int, latents: Tensor) -> None:
        nonlocal seconds, cpu_seconds
        if step == settings.steps - 1:
            seconds += time.perf_counter() - started[0]
            cpu_seconds += time.process_time() - started[1]
            on_window_end()
        on_step()

    frames = generate_clip(
        model,
        portrait.autoencoder,
        scene.features,
        scene.reference,
        steps=settings.steps,
        guidance=settings.guidance,
        seed=settings.seed,
        on_step=after_step,
        on_window=begin,
    )
    return TimedRun(frames, seconds, cpu_seconds)
