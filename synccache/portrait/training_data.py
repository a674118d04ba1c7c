"""Latents, audio and token weights for training the transformer, made once from the clips and kept on disk."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from synccache.portrait.autoencoder import PortraitAutoencoder
from synccache.portrait.config import CONFIG
from synccache.portrait.data import ClipSet

__all__ = ["TrainingSet", "encode_clips", "token_mask"]

_MOUTH_WEIGHT, _PERSON_WEIGHT = 1.0, 1.0  # added to 1
_ENCODED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What the transformer trains on, in fp16.

    Shapes:  latents [n, 32, 8, 8, 8], reference [n, 32, 8, 8], audio [n, window_features, mel_bands],
    weights [n, 8, 8, 8] (per token, mean about 1 to 2).
    """

    latents: Tensor
    reference: Tensor
    audio: Tensor
    weights: Tensor


def token_mask(mask: Tensor) -> Tensor:
    """The largest value of a pixel mask [n, frames, 64, 64] on every token: [n, T, H, W]."""
    pairs = CONFIG.frames // CONFIG.latent_frames
    patch = CONFIG.image_size // CONFIG.latent_size
    return functional.max_pool3d(mask[:, None], (pairs, patch, patch))[:, 0]


@torch.no_grad()
def encode_clips(
    autoencoder: PortraitAutoencoder, clips: ClipSet, path: Path, *, mirrored: bool
) -> TrainingSet:
    """The training set of these clips, read from `path` when it is there; `mirrored` adds every clip flipped."""
    if path.exists():
        return TrainingSet(*torch.load(path))
    started = time.time()
    parts: list[list[Tensor]] = []
    for flip in (False, True) if mirrored else (False,):
        for start in range(0, len(clips.frames), _ENCODED_AT_ONCE):
            some = slice(start, start + _ENCODED_AT_ONCE)
            pictures = [
                field[some].float() / 255.0
                for field in (clips.frames, clips.reference, clips.mouth, clips.person)
            ]
            frames, reference, mouth, person = (p.flip(-1) for p in pictures) if flip else pictures
            weights = 1.0 + _MOUTH_WEIGHT * token_mask(mouth) + _PERSON_WEIGHT * token_mask(person)
            parts.append(
                [
                    autoencoder.encode(frames).half(),
                    autoencoder.encode_image(reference).half(),
                    clips.audio[some].clone(),
                    weights.half(),
                ]
            )
    result = [torch.cat(field) for field in zip(*parts, strict=True)]
    torch.save(result, path)
    print(f"encoded {len(result[0])} clips in {time.time() - started:.0f} s", flush=True)
    return TrainingSet(*result)
