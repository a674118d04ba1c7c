"""An MP4 file (H.264 and AAC) from pictures and sound, with PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from PIL.Image import Image

__all__ = ["write_video"]

_QUALITY = {"crf": "16", "preset": "veryfast"}  # x264: 16 is close to lossless for the eye
_SOUND_RATE = 44_100  # every player takes it
_SOUND_SAMPLES = 1024  # the frame length of AAC


def write_video(
    path: Path,
    pictures: Iterable[Image],
    frame_rate: int,
    samples: npt.NDArray[np.float32],
    sample_rate: int,
) -> None:
    """Write pictures of one even size, and mono samples in [-1, 1] as the sound under them."""
    pictures = list(pictures)
    heard = samples[: round(len(pictures) / frame_rate * sample_rate)]
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        images = container.add_stream("libx264", rate=frame_rate, options=_QUALITY)
        images.width, images.height = pictures[0].size
        images.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=_SOUND_RATE)
        sound.layout = "mono"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, frame_rate)
            container.mux(images.encode(frame))
        container.mux(images.encode(None))
        for piece in _sound_frames(heard, sample_rate):
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))


def _sound_frames(samples: npt.NDArray[np.float32], sample_rate: int) -> list[av.AudioFrame]:
    """The samples at the rate and in the lengths that the AAC encoder takes."""
    whole = np.ascontiguousarray(samples.clip(-1.0, 1.0), np.float32)
    frame = av.AudioFrame.from_ndarray(whole[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    resampler = AudioResampler("fltp", "mono", _SOUND_RATE, _SOUND_SAMPLES)
    return [*resampler.resample(frame), *resampler.resample(None)]
