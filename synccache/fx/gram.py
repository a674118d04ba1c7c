"""Inner products of the residuals of all steps, recorded while a trajectory runs uncached.

For each guidance branch the residuals of all runs, ``after - before``, are sampled at every
``stride``-th token and kept in main memory, in float32, until their trajectory ends: steps x sampled
tokens x channels x 4 bytes for each run and branch. Then only their inner products remain.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from synccache.errors import StateError
from synccache.planner.residual_gram import ResidualGram

MOST_TOKENS = 1024  # sampled of one run, whatever the resolution


@dataclass(slots=True)
class _Sampled:
    """What one trajectory has shown so far, by guidance branch."""

    residuals: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    timesteps: list[float] = field(default_factory=list)
    owners: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class GramMeter:
    """Products summed over clips and guidance branches; filled while trajectories run uncached."""

    stride: int
    clips: int = 0
    host_bytes: int = 0  # the most that samples took
    sigmas: tuple[float, ...] = ()
    products: Tensor | None = None
    by_region: dict[int, Tensor] = field(default_factory=dict)  # the same of each region alone
    timesteps: tuple[float, ...] = ()
    _trajectory: object = None
    _now: _Sampled = field(default_factory=_Sampled)
    _starts: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _parts: list[Tensor] = field(default_factory=list)
    _owners: list[tuple[int, int]] = field(default_factory=list)  # region, numbers; of each part

    def see(self, side: str, run: tuple[int, int], value: Tensor) -> None:
        """A stream's value where a run begins ("start") or ends ("end")."""
        flat = value.detach().flatten(1, -2)
        stride = max(self.stride, -(-flat.shape[1] // MOST_TOKENS))
        sample = flat[:, ::stride].float()
        if side == "start":
            self._starts[run] = sample
            return
        part = (sample - self._starts.pop(run)).flatten()
        self._parts.append(part)
        self._owners.append((run[0], part.numel()))

    def finish_call(self, call: Any) -> None:
        """Keeps this step's sample of one guidance branch; one transfer to the host."""
        trajectory, branch = call.trajectory, call.key
        if trajectory is not self._trajectory:
            self.finish_trajectory()
            self._trajectory, self.sigmas = trajectory, trajectory.sigmas
        if not self._parts:
            return
        now = self._now
        if branch not in now.residuals:
            now.residuals[branch] = []
        if len(now.residuals[branch]) == len(now.timesteps):
            now.timesteps.append(trajectory.noise)
        now.residuals[branch].append(torch.cat(self._parts).cpu())
        now.owners, self._parts, self._owners = self._owners, [], []
        held = sum(r.nbytes for kept in now.residuals.values() for r in kept)
        self.host_bytes = max(self.host_bytes, held)

    def finish_trajectory(self) -> None:
        """Adds the products of the trajectory that has ended, and forgets its samples."""
        now, self._now = self._now, _Sampled()
        if not now.timesteps:
            return
        timesteps = tuple(now.timesteps)
        if self.timesteps and self.timesteps != timesteps:
            raise StateError(
                f"trajectory {self.clips + 1} has {len(timesteps)} steps from {timesteps[0]:g} to "
                f"{timesteps[-1]:g}, those before had {len(self.timesteps)} from "
                f"{self.timesteps[0]:g} to {self.timesteps[-1]:g}.",
                hint="Calibrate with one sampler schedule; plans for others are resampled from it.",
            )
        for branch, kept in now.residuals.items():
            if len(kept) != len(timesteps) or len({r.numel() for r in kept}) != 1:
                raise StateError(
                    f"guidance branch {branch!r} ran on {len(kept)} of {len(timesteps)} steps, or its "
                    "shapes changed, so its steps cannot be compared.",
                    hint="Calibrate at one resolution, with guidance on every step or on none.",
                )
            self._add(torch.stack(kept), now.owners)
        self.timesteps = timesteps
        self.clips += 1

    def _add(self, residuals: Tensor, owners: list[tuple[int, int]]) -> None:
        products = _products(residuals)
        self.products = products if self.products is None else self.products + products
        parts = residuals.split([numbers for _, numbers in owners], dim=1)
        for region in dict.fromkeys(region for region, _ in owners):
            own = [p for p, (owner, _) in zip(parts, owners, strict=True) if owner == region]
            products = _products(torch.cat(own, dim=1))
            before = self.by_region.get(region)
            self.by_region[region] = products if before is None else before + products

    def result(self) -> ResidualGram | None:
        """What was measured; None if no trajectory had two steps."""
        self.finish_trajectory()
        if self.products is None or len(self.timesteps) < 2:
            return None
        products = self.products / self.products.diagonal().mean()
        return ResidualGram(
            products=tuple(map(tuple, products.tolist())), timesteps=self.timesteps,
            sigmas=self.sigmas, clips=self.clips,
        )  # fmt: skip


def _products(residuals: Tensor) -> Tensor:
    """Inner products of all pairs of steps, divided by their mean square; zeros stay zeros."""
    products = (residuals @ residuals.T).double()
    return products / products.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
