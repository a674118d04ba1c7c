"""Builders for `synccache plan module:callable`."""

from typing import Any

import torch
from small_models import TOKENS, talking


def tiny(frames: int = TOKENS) -> tuple[Any, ...]:
    """The small talking model as shapes, as many tokens as frames."""
    empty = torch.empty(1, frames, 4, device="meta")
    heard = torch.empty(1, 5, 6, device="meta")
    args = (empty, torch.tensor([900.0]), heard)
    return talking().to("meta"), args, {}, {"audio": ["audio"]}


def wrong() -> int:
    """Not what a builder returns."""
    return 1
