"""Masks given by the user, brought to one weight per token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from synccache.errors import MatchError

_SPATIAL = (1, 2, 4, 8, 16, 32)
_TEMPORAL = (1, 2, 4, 8)


def token_masks(masks: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Each mask as float32 [batch or 1, tokens covered]; tokens behind those weigh nothing.

    A [frames, height, width] grid (with or without a batch in front) is area-averaged by whole
    factors onto the token grid.

    Raises:
        MatchError: values outside [0, 1], or a shape that fits no part of the stream's tokens.
    """
    return {name: _on_tokens(name, mask, tokens) for name, mask in masks.items()}


def _on_tokens(name: str, mask: Tensor, tokens: int) -> Tensor:
    if not isinstance(mask, Tensor):
        raise MatchError(f"masks[{name!r}] must be a tensor, got {type(mask).__name__}.")
    flat = mask.detach().float()
    if not bool(torch.isfinite(flat).all()) or float(flat.min()) < 0 or float(flat.max()) > 1:
        raise MatchError(
            f"masks[{name!r}] must lie in [0, 1], got {flat.min():g} to {flat.max():g}."
        )
    if flat.dim() <= 2:
        flat = flat if flat.dim() == 2 else flat.unsqueeze(0)
        if flat.shape[-1] <= tokens:
            return flat
    if flat.dim() in (3, 4):
        grid = flat if flat.dim() == 4 else flat.unsqueeze(0)
        for temporal in _TEMPORAL:
            for spatial in _SPATIAL:
                found = _pooled(grid, temporal, spatial)
                if found is not None and found[0].numel() <= tokens:
                    return found.flatten(1)
    raise MatchError(
        f"masks[{name!r}] of shape {list(mask.shape)} fits no part of the {tokens} tokens of the stream.",
        hint="Pass [tokens], [batch, tokens], or [frames, height, width] at or above token resolution.",
    )


def _pooled(grid: Tensor, temporal: int, spatial: int) -> Tensor | None:
    _, frames, height, width = grid.shape
    if frames % temporal or height % spatial or width % spatial:
        return None
    kernel = (temporal, spatial, spatial)
    return torch.nn.functional.avg_pool3d(grid.unsqueeze(1), kernel, kernel).squeeze(1)
