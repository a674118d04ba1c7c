"""What a portrait is drawn with: soft-edged shapes, colours, and the coordinates of a moving head.

A shape is a distance in half picture widths, negative inside. Its coverage ramps over one pixel: the anti-aliasing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from synccache.portrait.identity import Colour, Identity, Pose

__all__ = [
    "MOUTH_OPENING",
    "Canvas",
    "MouthShape",
    "Scene",
    "darker",
    "ellipse",
    "mixed",
    "ramp",
    "spot",
]

MOUTH_OPENING = 0.25  # distance between the lips of a fully open mouth


@dataclass(frozen=True, slots=True)
class MouthShape:
    """What the speech drives, each [frames] in [0, 1]: opening, width (0 round, 1 spread) and loudness."""

    opening: Tensor
    width: Tensor
    energy: Tensor


class Canvas:
    """The picture so far: three colour planes, and the soft edge of one pixel."""

    def __init__(self, backdrop: Tensor, frames: int, pixel: float) -> None:
        self.planes = backdrop.expand(frames, -1, -1, -1).clone()
        self.pixel = pixel

    def cover(self, distance: Tensor, softness: float = 0.0) -> Tensor:
        """How much of every pixel a shape covers."""
        return (0.5 - distance / (self.pixel + softness)).clamp(0.0, 1.0)

    def paint(self, coverage: Tensor, colour: Colour | Tensor) -> None:
        """Lay a colour (one, or [frames, 3, height, width]) over the covered pixels."""
        if not isinstance(colour, Tensor):
            colour = torch.tensor(colour).view(1, 3, 1, 1)
        self.planes += (colour - self.planes) * coverage[:, None]


def darker(colour: Colour, factor: float) -> Colour:
    """The colour times a factor."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with a share of the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def ellipse(u: Tensor, v: Tensor, width: float | Tensor, height: float | Tensor) -> Tensor:
    """Approximate distance to an ellipse around the origin: exact on the edge, smooth elsewhere."""
    k0 = torch.sqrt((u / width) ** 2 + (v / height) ** 2 + 1e-9)
    k1 = torch.sqrt((u / (width * width)) ** 2 + (v / (height * height)) ** 2 + 1e-9)
    return k0 * (k0 - 1.0) / k1


def spot(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    """A soft spot, 1 in the middle."""
    return torch.exp(-((u / width) ** 2) - (v / height) ** 2)


def ramp(low: float, high: float, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    s = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


class Scene:
    """Coordinates of the head (u, v) and of its features (p, q: shifted more, because they stand out)."""

    def __init__(
        self, identity: Identity, pose: Pose, mouth: MouthShape, x: Tensor, y: Tensor
    ) -> None:
        def column(value: Tensor) -> Tensor:
            return value.view(-1, 1, 1)

        self.x, self.y = x, y
        self.opening = column(mouth.opening)
        self.spread = column(mouth.width)
        self.energy = column(mouth.energy)
        self.lids = column(pose.lids)
        self.gaze = column(pose.gaze)
        turn = column(pose.turn)
        cosine, sine = torch.cos(column(pose.roll)), torch.sin(column(pose.roll))
        pivot = 0.75
        dx, dy = x - column(pose.x), y - column(pose.y) - pivot
        self.u = cosine * dx + sine * dy
        self.v = -sine * dx + cosine * dy + pivot
        self.p = self.u - 0.055 * turn
        self.q = self.v
        self.turn = turn
        self.sway = column(pose.x) * 0.35
        self.jaw_drop = 0.55 * MOUTH_OPENING * self.opening
        down = ramp(-0.1, 0.8, self.v)
        half_width = identity.face_width * (1.0 - identity.jaw * down)
        bottom = (self.v > 0).float()
        height = identity.face_height * (1.0 - 0.04 * bottom) + bottom * self.jaw_drop * 0.6
        self.face = ellipse(self.u, self.v, half_width, height)
        k = ((self.u - 0.03 * turn) / half_width) ** 2 + (self.v / height) ** 2
        depth = torch.sqrt((1.05 - k).clamp(0.02, 1.0))
        shade = (
            0.62
            + 0.42 * depth
            + 0.16 * identity.light * self.u / identity.face_width
            - 0.07 * self.v
        )
        self.skin_shade = shade.clamp(0.45, 1.12)

    def skin(self, identity: Identity, factor: float = 1.0) -> Tensor:
        """Shaded skin [frames, 3, height, width]: shadows are redder than light."""
        base = torch.tensor(identity.skin).view(1, 3, 1, 1)
        shade = self.skin_shade[:, None] * factor
        return base * shade ** torch.tensor((0.75, 1.05, 1.15)).view(1, 3, 1, 1)
