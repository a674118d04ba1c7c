"""What the demo found out: two clips from the same noise, and the figures that compare them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Clip", "Comparison", "Quality", "Settings", "Work", "report"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for, in the words of the command line."""

    audio: Path | None = None  # None: the bundled speech
    policy: str = "asymmetric"
    threshold: float | None = None  # None: the policy's own
    mem_budget: str | None = None
    cache_ratio: float | None = None
    steps: int = 40
    guidance: float = 3.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded clip.

    Shapes:  frames [frames, height, width, 3]; mouth [frames], how far the mouth is open, in pixels of area.
    """

    frames: npt.NDArray[np.uint8]
    mouth: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """What the two runs cost.

    `decisions` has one entry per window of the clip: guidance branch -> C computed, S skipped.
    Units:  seconds of wall-clock time for all denoising loops, without capture, plan and decoding;
            cpu_seconds are those of all threads together.
    """

    uncached_seconds: float
    compiled_seconds: float
    uncached_cpu_seconds: float
    compiled_cpu_seconds: float
    capture_seconds: float
    plan_seconds: float
    executed_fraction: float
    bytes_held: int
    decisions: tuple[dict[str, str], ...]

    @property
    def ratio(self) -> float:
        """How many times faster the compiled loop was."""
        return self.uncached_seconds / self.compiled_seconds

    @property
    def cpu_ratio(self) -> float:
        """The same in CPU time, which other programs on the machine disturb less."""
        return self.uncached_cpu_seconds / self.compiled_cpu_seconds


@dataclass(frozen=True, slots=True)
class Quality:
    """The compiled clip against the uncached one; correlations are Pearson's r.

    Units:  PSNR in dB, infinite where the frames are identical; mouth_area_error as a fraction.
    """

    psnr: dict[str, float]
    audio_uncached: float
    audio_compiled: float
    between: float
    mouth_area_error: float
    identical: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything the files and the table are made from.

    Shapes:  opening [frames] in [0, 1], what the audio asks of the mouth; samples [samples], mono.
    """

    settings: Settings
    uncached: Clip
    compiled: Clip
    opening: npt.NDArray[np.float64]
    samples: npt.NDArray[np.float32]
    sample_rate: int
    frame_rate: int
    work: Work
    quality: Quality
    plan_text: str
    plan_json: str


def report(comparison: Comparison, versions: dict[str, str | int]) -> dict[str, Any]:
    """The figures as plain JSON values; an infinite PSNR (identical frames) and an undefined r are null."""
    work, quality = comparison.work, comparison.quality
    frames, height, width, _ = comparison.uncached.frames.shape
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions,
        "settings": {
            **asdict(comparison.settings),
            "audio": str(comparison.settings.audio or "bundled"),
        },
        "clip": {
            "frames": frames,
            "height": height,
            "width": width,
            "frame_rate": comparison.frame_rate,
        },
        "seconds": {
            "uncached": work.uncached_seconds,
            "compiled": work.compiled_seconds,
            "ratio": work.ratio,
            "uncached_cpu": work.uncached_cpu_seconds,
            "compiled_cpu": work.compiled_cpu_seconds,
            "cpu_ratio": work.cpu_ratio,
            "capture": work.capture_seconds,
            "plan": work.plan_seconds,
        },
        "executed_fraction": work.executed_fraction,
        "decisions_per_window": list(work.decisions),
        "bytes_held": work.bytes_held,
        "quality": {
            "bit_identical_frames": quality.identical,
            "psnr_db": {region: _finite(value) for region, value in quality.psnr.items()},
            "mouth_correlation": {
                "audio_and_uncached": _finite(quality.audio_uncached),
                "audio_and_compiled": _finite(quality.audio_compiled),
                "uncached_and_compiled": _finite(quality.between),
            },
            "mouth_area_error": _finite(quality.mouth_area_error),
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
