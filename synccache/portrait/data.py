"""Procedural clips of talking portraits: real speech in, frames with exact masks out."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

from synccache.portrait.audio import feature_windows
from synccache.portrait.canvas import MouthShape
from synccache.portrait.config import CONFIG
from synccache.portrait.identity import Pose, neutral_pose, random_identity, random_pose
from synccache.portrait.mouth import mouth_motion
from synccache.portrait.render import draw_portrait

__all__ = ["HELD_OUT_IDENTITIES", "Clip", "ClipSet", "draw_clip", "draw_clip_set"]

HELD_OUT_IDENTITIES = 1_000_000  # identity seeds from here on are never trained on


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip, its reference frame and what drove it.

    Shapes:  frames [frames, 3, 64, 64] and reference [3, 64, 64] in [0, 1]; person and mouth [frames, 64, 64];
    audio [2 * frames + 2 * context_features, mel_bands]; opening [frames].
    """

    frames: Tensor
    reference: Tensor
    person: Tensor
    mouth: Tensor
    audio: Tensor
    opening: Tensor


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Many clips in small types: frames, person and mouth are uint8 (0-255), audio and opening are fp16."""

    frames: Tensor
    reference: Tensor
    person: Tensor
    mouth: Tensor
    audio: Tensor
    opening: Tensor


def draw_clip(
    identity_seed: int, features: Tensor, start_frame: int, frames: int = CONFIG.frames
) -> Clip:
    """The clip of one person who says what the features from `start_frame` on hold.

    Shapes:  features [feature frames, mel_bands] of a whole utterance.
    """
    identity = random_identity(identity_seed)
    audio = feature_windows(features, start_frame, frames)
    opening, width = mouth_motion(audio)
    energy = _smooth(opening)
    pose = random_pose(identity_seed, energy, CONFIG.frame_rate)
    rest = neutral_pose(identity_seed)
    pose = Pose(
        *(
            torch.cat([getattr(pose, name), getattr(rest, name)])
            for name in Pose.__dataclass_fields__
        )
    )
    closed = torch.zeros(1)
    shape = MouthShape(
        torch.cat([opening, closed]), torch.cat([width, closed + 0.5]), torch.cat([energy, closed])
    )
    drawing = draw_portrait(identity, pose, shape, supersample=1)
    return Clip(
        drawing.frames[:-1],
        drawing.frames[-1],
        drawing.person[:-1],
        drawing.mouth[:-1],
        audio,
        opening,
    )


def _smooth(opening: Tensor) -> Tensor:
    """The opening averaged over five frames."""
    padded = torch.nn.functional.pad(opening[None, None], (2, 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, 5, stride=1)[0, 0]


def _draw_some(job: tuple[Sequence[Tensor], range]) -> list[Tensor]:
    """The clips of the identities in a range, each with a random piece of a random utterance."""
    torch.set_num_threads(1)
    utterances, seeds = job
    clips = []
    for seed in seeds:
        chooser = random.Random(seed * 31 + 7)
        features = utterances[chooser.randrange(len(utterances))]
        last = max(1, len(features) // CONFIG.features_per_frame - CONFIG.frames + 2)
        clips.append(draw_clip(seed, features, chooser.randrange(-3, last)))

    def bytes_of(name: str) -> Tensor:
        return torch.stack(
            [(getattr(clip, name) * 255.0).round().to(torch.uint8) for clip in clips]
        )

    def halves_of(name: str) -> Tensor:
        return torch.stack([getattr(clip, name) for clip in clips]).half()

    return [
        bytes_of("frames"),
        bytes_of("reference"),
        bytes_of("person"),
        bytes_of("mouth"),
        halves_of("audio"),
        halves_of("opening"),
    ]


def draw_clip_set(utterances: Sequence[Tensor], seeds: range) -> ClipSet:
    """One clip per identity seed, drawn on all cores.

    Shapes:  utterances: features [feature frames, mel_bands] each.
    """
    step = 50
    jobs = [(utterances, seeds[start : start + step]) for start in range(0, len(seeds), step)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        parts = [[torch.from_numpy(a) for a in part] for part in pool.map(_draw_arrays, jobs)]
    return ClipSet(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _draw_arrays(job: tuple[Sequence[Tensor], range]) -> list[object]:
    return [tensor.numpy() for tensor in _draw_some(job)]
