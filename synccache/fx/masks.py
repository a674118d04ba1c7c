"""Masks given by the user, brought to one weight per token."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from synccache.errors import MatchError

_PATCHES = (1, 2, 4, 8, 16, 32)  # of a sample, in height and width
_PATCHES_IN_TIME = (1, 2, 4, 8)

Grid = tuple[int, int, int]  # frames, height, width


def check_names(masks: Mapping[str, Tensor], read: Collection[str], where: str) -> None:
    """Raises MatchError where a mask that nothing reads is given instead of one that is read."""
    unread, missing = sorted(set(masks) - set(read)), sorted(set(read) - set(masks))
    if unread and missing:
        near = difflib.get_close_matches(unread[0], missing, n=1, cutoff=0) or missing
        raise MatchError(
            f"no rule of the policy reads masks[{unread[0]!r}]; it reads {', '.join(missing)}.",
            where=where, hint=f"Pass masks={{{near[0]!r}: ...}}.",
        )  # fmt: skip


def token_masks(
    masks: Mapping[str, Tensor], stream: tuple[int, int], sample: tuple[int, ...]
) -> dict[str, Tensor]:
    """Each mask as float32 [batch or 1, tokens covered]; tokens behind those weigh nothing.

    A [frames, height, width] grid (with or without a batch in front) is area-averaged by whole
    factors onto the grid of the tokens, which is the sample's own divided by its patches.

    Args:
        stream: batch and tokens of the stream that is watched.
        sample: shape of the model's sample, which knows frames, height and width of the tokens.

    Raises:
        MatchError: values outside [0, 1], or a shape that fits no part of the stream's tokens.
    """
    return {name: _on_tokens(name, mask, stream, sample) for name, mask in masks.items()}


def _on_tokens(name: str, mask: Tensor, stream: tuple[int, int], sample: tuple[int, ...]) -> Tensor:
    batch, tokens = stream
    if not isinstance(mask, Tensor):
        raise MatchError(f"masks[{name!r}] must be a tensor, got {type(mask).__name__}.")
    flat = mask.detach().float()
    if not flat.numel() or not bool(torch.isfinite(flat).all()):
        raise MatchError(f"masks[{name!r}] of shape {list(mask.shape)} must hold finite numbers.")
    if float(flat.min()) < 0 or float(flat.max()) > 1:
        raise MatchError(
            f"masks[{name!r}] must lie in [0, 1], got {flat.min():g} to {flat.max():g}."
        )
    flat = flat.unsqueeze(0) if flat.dim() in (1, 3) else flat
    if flat.dim() not in (2, 4) or flat.shape[0] not in (1, batch):
        raise _unfit(name, mask, stream, sample)
    if flat.dim() == 4:
        found = _pooled(flat, tokens, sample)
        if found is None:
            raise _unfit(name, mask, stream, sample)
        flat = found.flatten(1)
    if flat.shape[-1] > tokens:
        raise _unfit(name, mask, stream, sample)
    return flat


def _unfit(name: str, mask: Tensor, stream: tuple[int, int], sample: tuple[int, ...]) -> MatchError:
    return MatchError(
        f"masks[{name!r}] of shape {list(mask.shape)} fits no part of the {stream[1]} tokens of the "
        f"stream (batch {stream[0]}, sample {list(sample)}).",
        hint="Pass [tokens], [batch, tokens], or [frames, height, width] in whole multiples of the "
        "token grid; frames are those of the sample, not of the video.",
    )


def _pooled(mask: Tensor, tokens: int, sample: tuple[int, ...]) -> Tensor | None:
    """The mask on the first of the possible token grids that it divides into."""
    own = (mask.shape[1], mask.shape[2], mask.shape[3])
    if math.prod(own) == tokens and len(sample) < 4:
        return mask  # tokens packed by the caller: nothing says what else they could be
    for grid in _token_grids(tokens, sample):
        kernel = tuple(a // b for a, b in zip(own, grid, strict=True))
        if all(kernel) and kernel[1] == kernel[2] and _times(grid, kernel) == own:
            return torch.nn.functional.avg_pool3d(mask.unsqueeze(1), kernel, kernel).squeeze(1)
    return None


def _times(grid: Grid, by: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(grid, by, strict=True))


def _token_grids(tokens: int, sample: tuple[int, ...]) -> list[Grid]:
    """Grids that the tokens may be, the likeliest first: all of the tokens, then small patches."""
    found = list(dict.fromkeys(_divided(sample)))
    return sorted(
        (g for g in found if math.prod(g) <= tokens), key=lambda g: math.prod(g) != tokens
    )


def _divided(sample: tuple[int, ...]) -> Iterator[Grid]:
    """[batch, channels, frames, h, w] or [batch, frames, channels, h, w]; [channels, frames, h, w]
    or [batch, channels, h, w]: which it is, the number of tokens and the mask's own frames show."""
    if len(sample) not in (4, 5):
        return
    frames = (sample[2], sample[1]) if len(sample) == 5 else (sample[1], 1)
    for in_time in _PATCHES_IN_TIME:
        for patch in _PATCHES:
            for count in frames:
                if not (count % in_time or sample[-2] % patch or sample[-1] % patch):
                    yield count // in_time, sample[-2] // patch, sample[-1] // patch
