"""The room behind a portrait: five textured, softly lit backgrounds."""

import random

import torch
from torch import Tensor

from synccache.portrait.identity import Backdrop, Identity

__all__ = ["draw_backdrop"]


def draw_backdrop(identity: Identity, x: Tensor, y: Tensor) -> Tensor:
    """The background [1, 3, height, width] in [0, 1].

    Shapes:  x, y [height, width], coordinates in -1 to 1.
    """
    chooser = random.Random(identity.texture_seed)
    wall = torch.tensor(identity.wall).view(3, 1, 1)
    accent = torch.tensor(identity.accent).view(3, 1, 1)
    fall = 1.0 - 0.16 * (y + 0.3) - 0.12 * identity.light * x
    picture = wall * fall
    pattern = _PATTERNS[identity.backdrop](chooser, x, y)
    share, light = pattern
    picture = (
        picture
        + (accent * fall - picture) * share
        + light * torch.tensor((1.0, 0.95, 0.85)).view(3, 1, 1)
    )
    grain = torch.zeros_like(x)
    for _ in range(6):
        a, b = chooser.uniform(-16, 16), chooser.uniform(-16, 16)
        grain = grain + torch.sin(a * x + b * y + chooser.uniform(0, 6.28))
    picture = picture * (1.0 + 0.010 * grain)
    vignette = 1.0 - 0.14 * (x**2 + y**2)
    return (picture * vignette).clamp(0.0, 1.0)[None]


Pattern = tuple[Tensor, Tensor]


def _lights(chooser: random.Random, x: Tensor, y: Tensor) -> Pattern:
    share, light = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(11):
        cx, cy, radius = (
            chooser.uniform(-1, 1),
            chooser.uniform(-1, 0.6),
            chooser.uniform(0.07, 0.20),
        )
        disc = ((radius - torch.sqrt((x - cx) ** 2 + (y - cy) ** 2)) / 0.05 + 0.5).clamp(0, 1)
        share = torch.maximum(share, disc * chooser.uniform(0.3, 0.7))
        light = light + disc * chooser.uniform(0.02, 0.12)
    return share, light


def _curtain(chooser: random.Random, x: Tensor, y: Tensor) -> Pattern:
    pace, phase = chooser.uniform(9, 15), chooser.uniform(0, 6)
    fold = torch.sin(pace * x + phase + 0.5 * torch.sin(3 * x) + 0.25 * y)
    return 0.30 + 0.22 * fold, 0.05 * fold


def _shelf(chooser: random.Random, x: Tensor, y: Tensor) -> Pattern:
    share, light = torch.zeros_like(x), torch.zeros_like(x)
    board = chooser.uniform(-0.45, -0.25)
    for bottom in (board, board + 0.75):
        left = -1.05
        while left < 1.0:
            width, height = chooser.uniform(0.07, 0.15), chooser.uniform(0.28, 0.5)
            box = torch.maximum(
                (x - left - width / 2).abs() - width / 2 + 0.008,
                torch.maximum(bottom - height - y, y - bottom),
            )
            book = (0.5 - box / 0.05).clamp(0, 1)
            share = torch.maximum(share, book * chooser.uniform(0.15, 0.95))
            light = light + book * chooser.uniform(-0.14, 0.10)
            left += width
        plank = (0.5 - ((y - bottom - 0.03).abs() - 0.03) / 0.04).clamp(0, 1)
        light = light - 0.12 * plank
    return share, light


def _clouds(chooser: random.Random, x: Tensor, y: Tensor) -> Pattern:
    share, light = torch.full_like(x, 0.2), torch.zeros_like(x)
    for _ in range(9):
        cx, cy = chooser.uniform(-1.1, 1.1), chooser.uniform(-1.1, 0.8)
        wide = chooser.uniform(0.2, 0.5)
        puff = torch.exp(-(((x - cx) / wide) ** 2) - ((y - cy) / (wide * 0.6)) ** 2)
        share = share + puff * chooser.uniform(-0.2, 0.5)
        light = light + 0.05 * puff
    return share.clamp(0, 1), light


def _window(chooser: random.Random, x: Tensor, y: Tensor) -> Pattern:
    side = chooser.choice((-1.0, 1.0))
    cx, cy = side * chooser.uniform(0.6, 0.8), chooser.uniform(-0.5, -0.3)
    u, v = (x - cx).abs(), (y - cy).abs()
    pane = (0.5 - (torch.maximum(u - 0.36, v - 0.55)) / 0.06).clamp(0, 1)
    cross = (0.5 - (torch.minimum(u, v) - 0.025) / 0.04).clamp(0, 1)
    glass = pane * (1 - cross)
    return 0.25 * pane * cross, 0.34 * glass * (1.0 - 0.3 * (y - cy)) - 0.05 * pane * cross


_PATTERNS = {
    Backdrop.LIGHTS: _lights,
    Backdrop.CURTAIN: _curtain,
    Backdrop.SHELF: _shelf,
    Backdrop.CLOUDS: _clouds,
    Backdrop.WINDOW: _window,
}
