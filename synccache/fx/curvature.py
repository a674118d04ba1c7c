"""How much a sampling trajectory bends at each step: what `policies.omnicache` chooses its steps by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from synccache.errors import StateError

MIN_POINTS = 3


def curvature(latents: Sequence[Tensor]) -> tuple[float, ...]:
    """One number a step: ``|| u_t - u_(t-1) ||`` with u_t the direction from latent t to latent t + 1.

    0 where the trajectory goes straight on, 2 where it turns back; infinite on the first and the last
    step, which have no two directions. Steps that do not move have no direction: 0 there.

    Args:
        latents: what the model was called with, step after step, alike in shape.

    Raises:  StateError for fewer than three latents, or of different shapes.
    """
    if len(latents) < MIN_POINTS or len({t.shape for t in latents}) > 1:
        raise StateError(
            f"curvature() takes {MIN_POINTS} latents or more of one shape, got {len(latents)} of "
            f"{len({t.shape for t in latents})} shapes."
        )
    moves = [b.float() - a.float() for a, b in zip(latents, latents[1:], strict=False)]
    units = [m / torch.linalg.vector_norm(m).clamp_min(torch.finfo(m.dtype).tiny) for m in moves]
    bends = [torch.linalg.vector_norm(b - a) for a, b in zip(units, units[1:], strict=False)]
    return (math.inf, *torch.stack(bends).tolist(), math.inf)
