"""The held-out evaluation clips: voices, sentences and people that training never saw."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synccache.portrait.audio import Waveform, audio_features, read_wave
from synccache.portrait.config import CONFIG, PortraitError
from synccache.portrait.data import HELD_OUT_IDENTITIES, draw_clip
from synccache.portrait.load import load_autoencoder
from synccache.portrait.measures import Box
from synccache.portrait.training_data import token_mask

__all__ = ["HELD_OUT_COUNT", "SPEECH", "HeldOutClip", "held_out_clips", "mouth_box"]

SPEECH = Path(__file__).parent / "speech"
HELD_OUT_COUNT = 16
_FIRST_FRAME = (
    CONFIG.context_features // CONFIG.features_per_frame
)  # the shipped files begin with the context
_BOX_MARGIN = (
    3,
    7,
    4,
    4,
)  # pixels above, below, left and right of the closed mouth: it opens downwards, the head sways


@dataclass(frozen=True, slots=True)
class HeldOutClip:
    """One evaluation clip.

    Shapes:  audio [window_features, mel_bands]; waveform [samples] at `sample_rate` Hz; reference [3, 64, 64];
    reference_latent [32, 8, 8]; frames [16, 3, 64, 64], the real ones; opening [16], what drove the mouth;
    person_tokens [8, 8, 8] in [0, 1] (frame, row, column); person [16, 64, 64]; mouth_box (top, bottom, left, right).
    """

    name: str
    audio: Tensor
    waveform: Waveform
    sample_rate: int
    reference: Tensor
    reference_latent: Tensor
    frames: Tensor
    opening: Tensor
    person_tokens: Tensor
    person: Tensor
    mouth_box: Box


def held_out_clips(n: int = HELD_OUT_COUNT) -> tuple[HeldOutClip, ...]:
    """The first `n` evaluation clips, the same in every call.

    Raises: PortraitError when `n` is not in 1..16.
    """
    if not 1 <= n <= HELD_OUT_COUNT:
        raise PortraitError(f"held_out_clips: there are {HELD_OUT_COUNT} clips, asked for {n}")
    autoencoder = load_autoencoder()
    result = []
    for index in range(n):
        name = f"held_out_{index:02d}"
        samples, rate = read_wave(SPEECH / f"{name}.wav")
        clip = draw_clip(HELD_OUT_IDENTITIES + index, audio_features(samples, rate), _FIRST_FRAME)
        closed = draw_clip(HELD_OUT_IDENTITIES + index, torch.full((1, CONFIG.mel_bands), -1.0), 0)
        with torch.no_grad():
            latent = autoencoder.encode_image(clip.reference[None])[0]
        result.append(
            HeldOutClip(
                name=name,
                audio=clip.audio,
                waveform=samples[:, 0],
                sample_rate=rate,
                reference=clip.reference,
                reference_latent=latent,
                frames=clip.frames,
                opening=clip.opening,
                person_tokens=token_mask(clip.person[None])[0],
                person=clip.person,
                mouth_box=mouth_box(closed.mouth),
            )
        )
    return tuple(result)


def mouth_box(mouth: Tensor) -> Box:
    """A box around the closed mouth wherever it goes in the frames [frames, 64, 64], with margins."""
    rows, columns = (
        (mouth.amax((0, 2)) > 0.5).nonzero()[:, 0],
        (mouth.amax((0, 1)) > 0.5).nonzero()[:, 0],
    )
    above, below, left, right = _BOX_MARGIN
    size = CONFIG.image_size
    return (
        max(0, int(rows[0]) - above),
        min(size, int(rows[-1]) + 1 + below),
        max(0, int(columns[0]) - left),
        min(size, int(columns[-1]) + 1 + right),
    )
