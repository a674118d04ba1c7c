"""Who is in the picture: the random appearance of a person and the random pose of a clip.

Units: lengths in half picture widths (the picture spans -1 to 1), y points down, angles in radians, colours in [0, 1].
"""

import math
import random
from dataclasses import dataclass
from enum import Enum

import torch

__all__ = [
    "Backdrop",
    "Clothes",
    "Hair",
    "Identity",
    "Pose",
    "neutral_pose",
    "random_identity",
    "random_pose",
]

Colour = tuple[float, float, float]


class Hair(Enum):
    SHORT = "short"
    SIDE = "side parting"
    LONG = "long"
    BOB = "bob with fringe"
    CURLY = "curly"
    BUN = "bun"
    BUZZ = "buzz cut"


class Clothes(Enum):
    ROUND = "round neck"
    COLLAR = "collar"
    V_NECK = "v-neck"
    STRIPES = "stripes"


class Backdrop(Enum):
    LIGHTS = "soft lights"
    CURTAIN = "curtain"
    SHELF = "shelf"
    CLOUDS = "clouds"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything about a person and a room that does not move."""

    skin: Colour
    hair_colour: Colour
    iris: Colour
    lips: Colour
    clothes_colour: Colour
    collar_colour: Colour
    hair: Hair
    clothes: Clothes
    backdrop: Backdrop
    wall: Colour
    accent: Colour
    texture_seed: int
    face_width: float
    face_height: float
    jaw: float
    eye_distance: float
    eye_size: float
    eye_height: float
    brow_arch: float
    brow_thickness: float
    nose_width: float
    mouth_width: float
    lip_thickness: float
    smile: float
    teeth: float
    stubble: float
    glasses: bool
    earrings: bool
    light: float


@dataclass(frozen=True, slots=True)
class Pose:
    """The head's position over time, and the blinks.

    Shapes:  all [frames].  x, y shift; roll in radians; turn in [-1, 1] (the face turns to its left or right);
    lids in [0, 1], 1 is an open eye; gaze in [-1, 1].
    """

    x: torch.Tensor
    y: torch.Tensor
    roll: torch.Tensor
    turn: torch.Tensor
    lids: torch.Tensor
    gaze: torch.Tensor


_SKINS = (
    (0.98, 0.84, 0.74),
    (0.95, 0.78, 0.66),
    (0.90, 0.72, 0.58),
    (0.83, 0.63, 0.48),
    (0.74, 0.53, 0.39),
    (0.63, 0.43, 0.31),
    (0.54, 0.36, 0.26),
)
_HAIRS = (
    (0.10, 0.08, 0.08),
    (0.22, 0.14, 0.10),
    (0.38, 0.24, 0.15),
    (0.55, 0.36, 0.20),
    (0.80, 0.62, 0.36),
    (0.62, 0.28, 0.14),
    (0.62, 0.62, 0.64),
    (0.17, 0.12, 0.16),
)
_IRISES = (
    (0.32, 0.20, 0.12),
    (0.25, 0.45, 0.65),
    (0.28, 0.48, 0.34),
    (0.45, 0.38, 0.22),
    (0.40, 0.46, 0.52),
)
_CLOTHES = (
    (0.16, 0.28, 0.48),
    (0.62, 0.18, 0.20),
    (0.20, 0.42, 0.36),
    (0.86, 0.84, 0.80),
    (0.24, 0.24, 0.28),
    (0.80, 0.58, 0.22),
    (0.50, 0.34, 0.56),
    (0.35, 0.52, 0.70),
)
_WALLS = (
    (0.45, 0.58, 0.66),
    (0.70, 0.62, 0.52),
    (0.38, 0.46, 0.42),
    (0.62, 0.52, 0.60),
    (0.80, 0.78, 0.72),
    (0.28, 0.32, 0.42),
    (0.72, 0.50, 0.42),
    (0.50, 0.62, 0.54),
)


def _near(chooser: random.Random, colour: Colour, spread: float) -> Colour:
    """The colour a little brighter or darker, and each channel a little off."""
    bright = 1.0 + chooser.uniform(-spread, spread)
    red, green, blue = (
        min(0.99, max(0.02, c * bright + chooser.uniform(-spread, spread) * 0.25)) for c in colour
    )
    return red, green, blue


def random_identity(seed: int) -> Identity:
    """A person and a room; the same seed gives the same ones."""
    chooser = random.Random(seed * 7919 + 11)
    skin = _near(chooser, chooser.choice(_SKINS), 0.05)
    red = chooser.uniform(0.0, 1.0)
    lips: Colour = (
        min(0.95, skin[0] * 0.86),
        skin[1] * (0.62 - 0.16 * red),
        skin[2] * (0.66 - 0.14 * red),
    )
    hair = chooser.choice(list(Hair))
    womanly = hair in (Hair.LONG, Hair.BOB, Hair.BUN)
    clothes_colour = _near(chooser, chooser.choice(_CLOTHES), 0.12)
    return Identity(
        skin=skin,
        hair_colour=_near(chooser, chooser.choice(_HAIRS), 0.12),
        iris=_near(chooser, chooser.choice(_IRISES), 0.1),
        lips=lips,
        clothes_colour=clothes_colour,
        collar_colour=_near(chooser, chooser.choice(_CLOTHES), 0.1),
        hair=hair,
        clothes=chooser.choice(list(Clothes)),
        backdrop=chooser.choice(list(Backdrop)),
        wall=_near(chooser, chooser.choice(_WALLS), 0.15),
        accent=_near(chooser, chooser.choice(_WALLS), 0.3),
        texture_seed=chooser.randrange(1 << 30),
        face_width=chooser.uniform(0.54, 0.61),
        face_height=chooser.uniform(0.74, 0.80),
        jaw=chooser.uniform(0.16, 0.30) if womanly else chooser.uniform(0.10, 0.24),
        eye_distance=chooser.uniform(0.235, 0.265),
        eye_size=chooser.uniform(0.125, 0.15),
        eye_height=chooser.uniform(-0.13, -0.08),
        brow_arch=chooser.uniform(0.02, 0.06),
        brow_thickness=chooser.uniform(0.022, 0.032) if womanly else chooser.uniform(0.03, 0.048),
        nose_width=chooser.uniform(0.075, 0.105),
        mouth_width=chooser.uniform(0.24, 0.29),
        lip_thickness=chooser.uniform(0.05, 0.075) if womanly else chooser.uniform(0.035, 0.055),
        smile=chooser.uniform(0.0, 0.05),
        teeth=chooser.choice((0.0, 0.0, 0.16, 0.22)),
        stubble=0.0 if womanly or chooser.random() < 0.6 else chooser.uniform(0.15, 0.35),
        glasses=chooser.random() < 0.14,
        earrings=womanly and chooser.random() < 0.5,
        light=chooser.uniform(-0.8, 0.8),
    )


def random_pose(seed: int, energy: torch.Tensor, frame_rate: int) -> Pose:
    """A slow sway, a nod that follows the voice, and blinks.

    Shapes:  energy [frames] in [0, 1], the smoothed loudness.
    """
    chooser = random.Random(seed * 104_729 + 5)
    seconds = torch.arange(len(energy), dtype=torch.float32) / frame_rate

    def sway(amount: float) -> torch.Tensor:
        total = torch.zeros_like(seconds)
        for share in (0.7, 0.3):
            period = chooser.uniform(1.6, 3.6) * (1.0 if share > 0.5 else 0.55)
            total = total + share * torch.sin(2 * math.pi * (seconds / period + chooser.random()))
        return amount * total

    lids = torch.ones_like(seconds)
    moment = chooser.uniform(-0.2, 1.6)
    while moment < len(energy) / frame_rate + 0.3:
        lids = torch.minimum(lids, ((seconds - moment).abs() / 0.06 - 0.75).clamp(0.0, 1.0))
        moment += chooser.uniform(1.2, 3.0)
    return Pose(
        x=sway(0.028),
        y=sway(0.010) + 0.02 * energy,
        roll=sway(0.035),
        turn=sway(0.55),
        lids=lids,
        gaze=_glance(seed) + sway(0.1),
    )


def neutral_pose(seed: int) -> Pose:
    """One frame of the person looking straight on with open eyes: how a reference picture is taken."""
    zero = torch.zeros(1)
    return Pose(x=zero, y=zero, roll=zero, turn=zero, lids=zero + 1.0, gaze=zero + _glance(seed))


def _glance(seed: int) -> float:
    """Where a person likes to look."""
    return random.Random(seed * 15_485_863 + 3).uniform(-0.3, 0.3)
