"""Draws a talking portrait from signed distances: smooth shading, soft edges, exact masks.

Everything is drawn back to front on [frames, height, width] fields, see `canvas`. The numbers in the drawing functions
are the drawing: positions and sizes in half picture widths, chosen by eye.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from synccache.portrait.backdrop import draw_backdrop
from synccache.portrait.canvas import (
    MOUTH_OPENING,
    Canvas,
    MouthShape,
    Scene,
    darker,
    ellipse,
    mixed,
    ramp,
    spot,
)
from synccache.portrait.config import CONFIG
from synccache.portrait.hair import draw_back_hair, draw_front_hair
from synccache.portrait.identity import Clothes, Identity, Pose

__all__ = ["Drawing", "draw_portrait"]

_MOUTH_Y = 0.45


@dataclass(frozen=True, slots=True)
class Drawing:
    """Frames [frames, 3, size, size] in [0, 1] with their exact masks [frames, size, size] in [0, 1]."""

    frames: Tensor
    person: Tensor
    mouth: Tensor


def draw_portrait(
    identity: Identity, pose: Pose, mouth: MouthShape, supersample: int = 1
) -> Drawing:
    """All frames of a clip.

    Shapes:  pose and mouth [frames]; the result as `Drawing` says, at CONFIG.image_size.
    """
    size = CONFIG.image_size * supersample
    line = (torch.arange(size) + 0.5) / size * 2.0 - 1.0
    y, x = torch.meshgrid(line, line, indexing="ij")
    frames = len(mouth.opening)
    canvas = Canvas(draw_backdrop(identity, x, y), frames, 2.0 / size)
    scene = Scene(identity, pose, mouth, x[None], y[None])
    person = draw_back_hair(canvas, scene, identity)
    person = torch.maximum(person, _draw_body(canvas, scene, identity))
    person = torch.maximum(person, _draw_head(canvas, scene, identity))
    _draw_features(canvas, scene, identity)
    lips = _draw_mouth(canvas, scene, identity)
    person = torch.maximum(person, draw_front_hair(canvas, scene, identity))
    _draw_glasses(canvas, scene, identity)

    def shrink(field: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(field, supersample)

    return Drawing(shrink(canvas.planes).clamp(0.0, 1.0), shrink(person), shrink(lips))


def _draw_body(canvas: Canvas, scene: Scene, identity: Identity) -> Tensor:
    """Neck and clothes; their coverage."""
    u, v, x, y = scene.u, scene.v, scene.x - scene.sway, scene.y
    neck = canvas.cover(
        torch.maximum((x - 0.4 * (scene.x - u)).abs() - 0.25 - 0.25 * ramp(0.78, 1.05, y), 0.3 - y),
        0.01,
    )
    shadow = 1.0 - 0.38 * torch.exp(-(((v - 0.80) / 0.16) ** 2))
    canvas.paint(neck, scene.skin(identity, 0.84) * shadow[:, None])
    person = neck
    shoulders = ellipse(x, y - 1.32, 0.98, 0.52)
    neckline = (
        (0.22 - (y - 0.78) * 0.8 - x.abs()) * 0.7
        if identity.clothes is Clothes.V_NECK
        else -ellipse(x, y - 0.74, 0.30, 0.20)
    )
    cloth = canvas.cover(torch.maximum(shoulders, neckline), 0.01)
    folds = (
        0.90
        + 0.05 * torch.sin(x * 9.0 + y * 5.0)
        + 0.14 * identity.light * x
        - 0.22 * (y - 0.95).clamp_min(0)
    )
    colour = torch.tensor(identity.clothes_colour).view(1, 3, 1, 1) * folds[:, None]
    if identity.clothes is Clothes.STRIPES:
        stripe = (torch.sin((y + 0.15 * x * x) * 34.0) * 3.0).clamp(0.0, 1.0)
        colour = (
            colour
            + (torch.tensor(identity.collar_colour).view(1, 3, 1, 1) * folds[:, None] - colour)
            * stripe[:, None]
        )
    canvas.paint(cloth, colour)
    canvas.paint(
        cloth * torch.exp(-(((neckline + 0.02) / 0.03) ** 2)) * 0.6,
        darker(identity.clothes_colour, 0.6),
    )
    if identity.clothes is Clothes.COLLAR:
        flap = torch.maximum(
            (x.abs() - 0.24).abs() - 0.085 + (y - 0.92) * 0.35, (y - 0.93).abs() - 0.11
        )
        collar = canvas.cover(flap + 0.25 * (x.abs() - 0.24), 0.01)
        canvas.paint(collar, mixed(identity.collar_colour, (1.0, 1.0, 1.0), 0.35))
        person = torch.maximum(person, collar)
    return torch.maximum(person, cloth)


def _draw_head(canvas: Canvas, scene: Scene, identity: Identity) -> Tensor:
    """Ears and the bare face; their coverage."""
    u, v = scene.u, scene.v
    person = torch.zeros_like(scene.face)
    for side in (-1.0, 1.0):
        ear_u = u - side * (identity.face_width - 0.005) + 0.02 * scene.turn
        ear = canvas.cover(ellipse(ear_u, v - 0.02, 0.085, 0.15), 0.01)
        canvas.paint(ear, scene.skin(identity, 0.95))
        canvas.paint(
            ear * spot(ear_u, v - 0.02, 0.04, 0.09) * 0.45,
            mixed(identity.skin, (0.45, 0.12, 0.08), 0.55),
        )
        if identity.earrings:
            ring = canvas.cover(ellipse(ear_u - side * 0.01, v - 0.20, 0.032, 0.036))
            canvas.paint(ring, (0.95, 0.84, 0.50))
        person = torch.maximum(person, ear)
    face = canvas.cover(scene.face, 0.01)
    skin = scene.skin(identity)
    canvas.paint(face, skin)
    blush = (
        spot(scene.p + 0.33, scene.q - 0.20, 0.15, 0.12)
        + spot(scene.p - 0.33, scene.q - 0.20, 0.15, 0.12)
    ) * face
    canvas.paint(
        blush * 0.22, (identity.skin[0] * 0.95, identity.skin[1] * 0.55, identity.skin[2] * 0.55)
    )
    glow = spot(scene.p + 0.12 * identity.light, scene.q + 0.38, 0.30, 0.16) * face
    canvas.paint(glow * 0.16, (1.0, 0.97, 0.92))
    if identity.stubble > 0.0:
        low = ramp(0.14, 0.36, v + 0.55 * (u.abs() - 0.30).clamp_min(0.0)) * face
        canvas.paint(low * identity.stubble, mixed(identity.hair_colour, identity.skin, 0.25))
    return torch.maximum(person, face)


def _draw_features(canvas: Canvas, scene: Scene, identity: Identity) -> None:
    """Eyes, brows and nose."""
    for side in (-1.0, 1.0):
        _draw_eye(canvas, scene, identity, side)
    p, q = scene.p - 0.02 * scene.turn, scene.q
    width = identity.nose_width
    shadow_side = -1.0 if identity.light > 0 else 1.0
    deep = mixed(identity.skin, (0.40, 0.12, 0.06), 0.5)
    bridge = ramp(-0.12, 0.05, q) * (1.0 - ramp(0.14, 0.24, q))
    canvas.paint(
        0.30
        * bridge
        * torch.exp(-(((p - shadow_side * (0.045 + 0.12 * (q + 0.1).clamp_min(0))) / 0.035) ** 2)),
        deep,
    )
    canvas.paint(
        0.30 * bridge * torch.exp(-(((p + shadow_side * 0.012) / 0.035) ** 2)), (1.0, 0.96, 0.90)
    )
    canvas.paint(0.38 * spot(p, q - 0.245, width * 1.15, 0.035), deep)
    canvas.paint(0.35 * spot(p + shadow_side * 0.012, q - 0.165, 0.045, 0.05), (1.0, 0.97, 0.93))
    for side in (-1.0, 1.0):
        canvas.paint(
            0.75 * spot(p - side * width * 0.55, q - 0.232, 0.028, 0.018), darker(deep, 0.55)
        )


def _draw_eye(canvas: Canvas, scene: Scene, identity: Identity, side: float) -> None:
    size = identity.eye_size
    p = scene.p - side * identity.eye_distance
    q = scene.q - identity.eye_height - 0.012 * side * p / size
    s = (1.0 - (p / size) ** 2).clamp_min(0.0)
    outside = p.abs() - size
    crease = mixed(identity.skin, (0.35, 0.14, 0.08), 0.5)
    upper = -(0.62 * size * scene.lids - 0.22 * size * (1.0 - scene.lids)) * s**0.8
    lower = 0.42 * size * s**0.9
    canvas.paint(0.35 * spot(p, q + 0.02, size * 1.25, size * 0.95), crease)
    inside = canvas.cover(torch.maximum(torch.maximum(upper - q, q - lower), outside), 0.005)
    white = (0.97 - 0.28 * torch.exp(-(((q - upper) / (0.30 * size)) ** 2)))[
        :, None
    ] * torch.tensor((0.98, 0.98, 1.0)).view(1, 3, 1, 1)
    canvas.paint(inside, white)
    iris_p, iris_q = p - 0.30 * size * scene.gaze, q + 0.06 * size
    canvas.paint(
        inside * canvas.cover(ellipse(iris_p, iris_q, 0.50 * size, 0.52 * size), 0.01),
        darker(identity.iris, 0.75),
    )
    canvas.paint(
        inside
        * canvas.cover(ellipse(iris_p, iris_q - 0.05 * size, 0.36 * size, 0.34 * size), 0.03),
        identity.iris,
    )
    canvas.paint(
        inside * canvas.cover(ellipse(iris_p, iris_q, 0.23 * size, 0.23 * size), 0.005),
        (0.03, 0.03, 0.04),
    )
    canvas.paint(
        inside
        * canvas.cover(
            ellipse(iris_p + 0.16 * size, iris_q + 0.18 * size, 0.12 * size, 0.12 * size)
        ),
        (1.0, 1.0, 1.0),
    )
    edge = mixed(darker(identity.hair_colour, 0.35), (0.06, 0.03, 0.03), 0.6)
    lash = canvas.cover((q - upper + 0.006).abs() - 0.017 - 0.006 * s, 0.01) * canvas.cover(
        outside - 0.02, 0.02
    )
    canvas.paint(lash * 0.92, edge)
    rim = canvas.cover((q - lower).abs() - 0.006, 0.01) * canvas.cover(outside, 0.03)
    canvas.paint(rim * 0.35, edge)
    fold = canvas.cover((q - upper + 0.055).abs() - 0.006, 0.02) * canvas.cover(
        outside + 0.01, 0.04
    )
    canvas.paint(fold * 0.35, darker(crease, 0.8))
    brow_q = scene.q - identity.eye_height + 1.62 * size + 0.02 * scene.energy
    out = p * side / size
    arch = brow_q + identity.brow_arch * (1.0 - 0.75 * (out - 0.05) ** 2)
    thick = identity.brow_thickness * (1.0 - 0.45 * ((out + 0.4) / 1.8).clamp(0.0, 1.0))
    brow = canvas.cover(arch.abs() - thick, 0.02) * canvas.cover(p.abs() - size * 1.22, 0.06)
    canvas.paint(brow * 0.85, mixed(darker(identity.hair_colour, 0.72), (0.2, 0.12, 0.08), 0.25))


def _draw_mouth(canvas: Canvas, scene: Scene, identity: Identity) -> Tensor:
    """Lips, the dark inside, teeth and tongue; the coverage of lips and inside."""
    half = identity.mouth_width * (0.72 + 0.38 * scene.spread)
    p = scene.p
    q = scene.q - _MOUTH_Y
    along = (p / half).clamp(-1.0, 1.0)
    s = 1.0 - along**2
    middle = q + identity.smile * (along**2 - 0.35) * 1.4
    gap = MOUTH_OPENING * scene.opening
    up, down = 0.32 * gap * s**0.75, 0.68 * gap * s**0.75
    thick = identity.lip_thickness * (1.0 - 0.18 * scene.opening)
    bow = 1.0 - 0.24 * torch.exp(-((along / 0.20) ** 2))
    top = -up - thick * 0.90 * bow * s**0.55
    bottom = down + thick * 1.25 * s**0.6
    ends = p.abs() - half
    lips = canvas.cover(torch.maximum(torch.maximum(top - middle, middle - bottom), ends), 0.008)
    canvas.paint(
        0.28 * spot(p, q - 0.68 * gap - thick * 1.25 - 0.055, 0.16, 0.035),
        mixed(identity.skin, (0.35, 0.10, 0.06), 0.5),
    )
    tone = torch.tensor(identity.lips).view(1, 3, 1, 1)
    curve = (
        0.90
        + 0.22
        * torch.exp(-(((middle - down - thick * 0.5) / (thick * 0.5)) ** 2) - (along / 0.55) ** 2)
        - 0.16 * (middle < 0).float()
    )[:, None]
    canvas.paint(lips, tone * curve)
    inner = torch.maximum(torch.maximum(-up - middle, middle - down), ends + 0.02)
    inside = canvas.cover(inner, 0.004) * (scene.opening * 12.0).clamp(0.0, 1.0)
    canvas.paint(inside, (0.14, 0.03, 0.035))
    tongue = canvas.cover(ellipse(p, middle - down - 0.045, half * 0.62, 0.08 + 0.0 * p), 0.03)
    canvas.paint(inside * tongue * ramp(0.35, 0.75, scene.opening) * 0.55, (0.52, 0.20, 0.20))
    if identity.teeth > 0.0:
        row = canvas.cover(middle + up - identity.teeth * gap, 0.008) * canvas.cover(
            ends + 0.07, 0.03
        )
        canvas.paint(inside * row * ramp(0.25, 0.5, scene.opening), (0.93, 0.91, 0.87))
    line = canvas.cover((middle - 0.5 * (down - up)).abs() - 0.008, 0.008) * canvas.cover(
        ends, 0.03
    )
    canvas.paint(
        line * 0.7 * (1.0 - scene.opening * 10.0).clamp(0.0, 1.0), darker(identity.lips, 0.45)
    )
    return torch.maximum(lips, inside)


def _draw_glasses(canvas: Canvas, scene: Scene, identity: Identity) -> None:
    if not identity.glasses:
        return
    q = scene.q - identity.eye_height - 0.01
    frame = torch.full_like(scene.p, 1.0)
    for side in (-1.0, 1.0):
        rim = (ellipse(scene.p - side * identity.eye_distance, q, 0.20, 0.165)).abs() - 0.013
        frame = torch.minimum(frame, rim)
    bridge = torch.maximum((q + 0.03).abs() - 0.012, scene.p.abs() - (identity.eye_distance - 0.19))
    temples = torch.maximum(
        (q + 0.04).abs() - 0.012,
        torch.maximum(
            identity.eye_distance + 0.19 - scene.p.abs(), scene.u.abs() - identity.face_width
        ),
    )
    canvas.paint(
        canvas.cover(torch.minimum(frame, torch.minimum(bridge, temples)), 0.005),
        (0.12, 0.10, 0.12),
    )
