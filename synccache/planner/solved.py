"""How good an answer is proven to be. Needs no solver, so that a plan can carry it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Proof(StrEnum):
    """What the solver knows about its answer."""

    OPTIMAL = "optimal"
    """No better answer exists, up to the rounding of costs."""
    TIME_LIMIT = "best found within the time limit"
    """A better answer may exist; `Solved.gap` says by how much at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """How good an answer is: its cost, a proven lower bound, and the time taken.

    Units:  seconds of wall time; cost and bound as in the objective, after the integer scaling.
    """

    proof: Proof
    cost: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """(cost - bound) / cost: 0 if proven best, at most 1."""
        return max(0.0, self.cost - self.bound) / self.cost if self.cost > 0 else 0.0
