"""Inner products of what all skipped branches add, between the steps of an uncached trajectory.

With r_t what the skippable runs of step t add to their streams, ``products[s][t] = <r_s, r_t>`` is all
that a planner needs: the error of predicting any step from any others by a weighted sum is a
quadratic form in it. Each clip and guidance branch is divided by its mean square before they are
summed, so that none counts more than another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synccache.errors import PlanError
from synccache.planner.problem import Table
from synccache.planner.quantities import checked_count

Matrix = NDArray[np.float64]

_NEIGHBOURS = 4  # a value between steps is read from the cubic through the four nearest
_SAME = 1e-9  # relative: noise levels closer than this are one


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualGram:
    """What ``calibrate`` records of the residuals of all runs that the policy may skip.

    Units:  products [steps, steps], without unit; timesteps as the model is given them, one a step;
            sigmas: noise levels, one more than steps, or empty where the caller did not say them.
    """

    products: Table[float]
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...] = ()
    clips: int = 1

    def __post_init__(self) -> None:
        steps = len(self.products)
        if [len(row) for row in self.products] != [steps] * steps or steps < 2:
            raise PlanError("the inner products must be a square table of at least 2 steps.")
        if len(self.timesteps) != steps:
            raise PlanError(f"{len(self.timesteps)} timesteps were given for {steps} steps.")
        checked_count(self.clips, "clips", least=1)
        if self.sigmas:
            checked_sigmas(self.sigmas, steps)

    @property
    def steps(self) -> int:
        """Steps of the trajectory that was measured."""
        return len(self.products)

    def with_sigmas(self, sigmas: Sequence[float]) -> ResidualGram:
        """The same, with its noise levels said."""
        return ResidualGram(
            products=self.products, timesteps=self.timesteps,
            sigmas=tuple(map(float, sigmas)), clips=self.clips,
        )  # fmt: skip

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> ResidualGram:
        """What ``dataclasses.asdict`` made, after a round trip through JSON."""
        rows = {key: tuple(data[key]) for key in ("timesteps", "sigmas")}
        products = tuple(tuple(row) for row in data["products"])
        return cls(products=products, clips=data["clips"], **rows)

    def at(self, sigmas: Sequence[float]) -> ResidualGram:
        """What a trajectory over other noise levels would give, by cubic interpolation in sigma.

        Exact where the levels are among those measured, as with 20 of 40 steps of one shift.

        Raises:  PlanError where the measured levels are not known, or these reach outside them.
        """
        if not self.sigmas:
            raise PlanError(
                "the calibration does not know its noise levels.",
                hint="Pass sigmas=... to calibrate(), or call m.begin(sigmas=...) inside run.",
            )
        wanted = checked_sigmas(sigmas, len(sigmas) - 1)
        mixing = _mixing(self.sigmas[:-1], wanted[:-1])
        products = mixing @ np.array(self.products) @ mixing.T
        return ResidualGram(
            products=tuple(tuple(row) for row in products.tolist()),
            timesteps=tuple((mixing @ np.array(self.timesteps)).tolist()),
            sigmas=wanted, clips=self.clips,
        )  # fmt: skip


def checked_sigmas(sigmas: Sequence[float], steps: int) -> tuple[float, ...]:
    """The noise levels as a tuple, if they fall from step to step and are one more than steps.

    Raises:  PlanError that names the first level that is wrong.
    """
    levels = tuple(float(s) for s in sigmas)
    if len(levels) != steps + 1 or steps < 1:
        raise PlanError(
            f"{steps} steps need {steps + 1} noise levels, not {len(levels)}.",
            hint="Give the level of every step and the one after the last, as scheduler.sigmas does.",
        )
    for i, (now, following) in enumerate(zip(levels, levels[1:], strict=False)):
        if not (math.isfinite(now) and math.isfinite(following) and now > following >= 0.0):
            raise PlanError(
                f"noise levels must fall and stay at or above 0, but sigmas[{i}] is {now:g} and "
                f"sigmas[{i + 1}] is {following:g}."
            )
    return levels


def _mixing(known: Sequence[float], wanted: Sequence[float]) -> Matrix:
    """Rows of weights over the known levels, one row for each level wanted."""
    highest, lowest = known[0], known[-1]
    slack = _SAME * abs(highest)
    weights = np.zeros((len(wanted), len(known)))
    for row, level in enumerate(wanted):
        below = known[-2] - lowest if len(known) > 1 else 0.0
        if level > highest + slack or level < lowest - below - slack:
            raise PlanError(
                f"noise level {level:g} lies outside those measured, {highest:g} to {lowest:g}.",
                hint="Calibrate with more steps, or with the schedule that you sample with.",
            )
        nearest = sorted(range(len(known)), key=lambda i: abs(known[i] - level))[:_NEIGHBOURS]
        for i in nearest:
            others = [j for j in nearest if j != i]
            factors = [(level - known[j]) / (known[i] - known[j]) for j in others]
            weights[row, i] = math.prod(factors)
    return weights
