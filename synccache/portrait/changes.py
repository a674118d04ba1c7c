"""The space the transformer works in: how a clip's latents differ from those of its reference picture.

A still background is zero there, whatever it looks like, so that a small model can spend itself on what moves.
"""

from torch import Tensor

from synccache.portrait.config import CONFIG

__all__ = ["changes_of", "latents_of"]


def changes_of(latents: Tensor, reference: Tensor) -> Tensor:
    """(latents - reference) / change_scale.

    Shapes:  latents [batch, C, T, H, W] or [batch, C, H, W], reference [batch, C, H, W]; the result like latents.
    """
    return (latents - _beside(reference, latents)) / CONFIG.change_scale


def latents_of(changes: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `changes_of`."""
    return changes * CONFIG.change_scale + _beside(reference, changes)


def _beside(reference: Tensor, other: Tensor) -> Tensor:
    return reference.unsqueeze(2) if other.ndim > reference.ndim else reference
