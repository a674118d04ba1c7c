"""Hair: seven styles, with strands and a band of gloss."""

import torch
from torch import Tensor

from synccache.portrait.canvas import Canvas, Scene, darker, ellipse, mixed, ramp
from synccache.portrait.identity import Hair, Identity

__all__ = ["draw_back_hair", "draw_front_hair"]


def _strands(scene: Scene, identity: Identity, across: Tensor, along: Tensor) -> Tensor:
    """Hair colour [frames, 3, height, width] with strands and one band of gloss."""
    phase = float(identity.texture_seed % 7)
    wave = 0.5 * torch.sin(across * 23.0 + 2.0 * torch.sin(along * 5.0 + phase)) + 0.5 * torch.sin(
        across * 41.0 + phase
    )
    gloss = torch.exp(-(((along + 0.62 - 0.1 * identity.light) / 0.16) ** 2))
    base = torch.tensor(identity.hair_colour).view(1, 3, 1, 1)
    shade = (0.86 + 0.10 * wave + 0.12 * identity.light * scene.u)[:, None]
    return base * shade + (0.20 * gloss * (0.75 + 0.25 * wave))[:, None] * (0.35 + 0.65 * base)


def draw_back_hair(canvas: Canvas, scene: Scene, identity: Identity) -> Tensor:
    """The hair behind the head; its coverage."""
    u, v = scene.u, scene.v
    person = torch.zeros_like(scene.face)
    if identity.hair in (Hair.LONG, Hair.BOB):
        length = 1.05 if identity.hair is Hair.LONG else 0.55
        flare = 0.72 + 0.06 * ramp(-0.2, 0.7, v)
        top = ellipse(u, v + 0.08, flare, 0.90)
        fall = torch.maximum(u.abs() - flare, torch.maximum(-v - 0.1, v - length))
        fall = torch.maximum(fall, (u.abs() + v - length - 0.62) * 0.7)
        back = canvas.cover(
            torch.minimum(top.where(v < 0.3, torch.full_like(top, 1.0)), fall), 0.02
        )
        canvas.paint(back, _strands(scene, identity, u, v) * 0.72)
        person = torch.maximum(person, back)
    if identity.hair is Hair.BUN:
        bun = canvas.cover(ellipse(u, v + 0.86, 0.24, 0.17), 0.02)
        canvas.paint(bun, _strands(scene, identity, u * 1.6, v + 0.25) * 0.9)
        person = torch.maximum(person, bun)
    return person


def draw_front_hair(canvas: Canvas, scene: Scene, identity: Identity) -> Tensor:
    """The hair on the skull; its coverage."""
    u, v = scene.u, scene.v
    grow = {Hair.BUZZ: 0.02, Hair.SHORT: 0.07, Hair.SIDE: 0.10, Hair.CURLY: 0.14}.get(
        identity.hair, 0.08
    )
    skull = ellipse(
        u, v + 0.02 + 0.3 * grow, identity.face_width + grow, identity.face_height + grow
    )
    bumps = 0.0 * u
    if identity.hair is Hair.CURLY:
        bumps = 0.030 * torch.sin(torch.atan2(u, -v - 0.05) * 19.0 + 1.0) + 0.012 * torch.sin(
            u * 37.0
        ) * torch.sin(v * 33.0)
        skull = skull + bumps
    hairline = {
        Hair.SHORT: -0.44 + 0.45 * u**2 + 0.02 * torch.sin(u * 24.0),
        Hair.SIDE: -0.46 + 0.28 * (u + 0.22).abs() ** 1.2 + 0.05 * torch.sin(u * 7.0 + 1.2),
        Hair.LONG: -0.56 + 0.85 * (u.abs() ** 1.5) + 1.2 * (u.abs() - 0.40).clamp_min(0.0),
        Hair.BOB: -0.31 + 0.10 * u**2 + 0.015 * torch.sin(u * 31.0),
        Hair.CURLY: -0.44 + 0.30 * u**2 + 0.04 * torch.sin(u * 17.0),
        Hair.BUN: -0.50 + 0.50 * u**2,
        Hair.BUZZ: -0.48 + 0.62 * u**2,
    }[identity.hair]
    sideburn = {Hair.LONG: 0.85, Hair.BOB: 0.50, Hair.CURLY: 0.10, Hair.BUN: 0.0}.get(
        identity.hair, 0.04
    )
    cap = torch.maximum(skull, v - hairline)
    if identity.hair in (Hair.LONG, Hair.BOB):
        edge = identity.face_width - 0.085 + 0.05 * ramp(0.2, 0.9, v)
        lock = torch.maximum(
            (u.abs() - edge - 0.10).abs() - 0.10, torch.maximum(v - sideburn, -0.45 - v)
        )
        lock = torch.maximum(
            lock, torch.where(v < 0.0, ellipse(u, v + 0.08, 0.72, 0.90), u.abs() - 0.73)
        )
        lock = torch.maximum(lock, (u.abs() + v - sideburn - 0.62) * 0.7)
        cap = torch.minimum(cap, lock)
    else:
        lock = torch.maximum(
            torch.maximum(skull, identity.face_width - 0.10 - u.abs()), v - sideburn
        )
        cap = torch.minimum(cap, lock + 0.004)
    hair = canvas.cover(cap, 0.02)
    if identity.hair is Hair.BUZZ:
        hair = hair * 0.72
    shade = torch.exp(-(((cap - 0.03) / 0.05) ** 2)) * canvas.cover(scene.face) * (cap > 0)
    canvas.paint(shade * 0.22, mixed(darker(identity.skin, 0.45), identity.hair_colour, 0.4))
    angle = (
        torch.atan2(u, 0.25 - v)
        if identity.hair is not Hair.SIDE
        else torch.atan2(u + 0.3, 0.6 - v)
    )
    strand = torch.where(v < -0.1, angle, u * 1.1)
    canvas.paint(hair, _strands(scene, identity, strand, v) + (bumps * 2.5)[:, None])
    return hair
