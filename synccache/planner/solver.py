"""The one place where OR-Tools runs: a model, a deadline, and what the answer is worth.

Integers: CP-SAT knows no other numbers. Amounts are scaled so that the largest is `COST_STEPS` and
then rounded, which moves each by at most half a step: 5e-10 of the largest amount.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_count
from synccache.planner.solved import Proof, Solved

COST_STEPS = 10**9
"""Whole steps that the largest amount of an objective is divided into."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when solvers may run, and on how many threads.

    Units:  ends_at on the clock of time.perf_counter().
    """

    started_at: float
    ends_at: float
    workers: int

    @property
    def seconds_used(self) -> float:
        """Since the deadline was set."""
        return time.perf_counter() - self.started_at


def deadline(time_limit_seconds: float, workers: int) -> Deadline:
    """A deadline that begins now."""
    limit = checked_amount(time_limit_seconds, "time_limit_seconds")
    checked_count(workers, "workers", least=1)
    now = time.perf_counter()
    return Deadline(now, now + limit, workers)


def cost_scale(costs: Iterable[float]) -> float:
    """Steps for each unit of cost, so that the largest of `costs` becomes COST_STEPS; 1 for zeros."""
    largest = max(costs, default=0.0)
    return COST_STEPS / largest if largest > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The best values found for the variables of a model, and how good they are."""

    solver: cp_model.CpSolver
    solved: Solved

    def value(self, expression: cp_model.LinearExprT) -> int:
        """What a variable or a linear expression is in this answer."""
        return self.solver.value(expression)


def solve(
    model: cp_model.CpModel, until: Deadline, *, scale: float = 1.0, share: float = 1.0
) -> Answer | None:
    """The best answer found before the deadline; None if it is proven that there is none.

    `scale` is how many steps of the objective make one unit of cost (`cost_scale`); `share` is the
    part of the time left that may be used.

    Raises:  PlanError where the time ran out before any answer was found.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = until.workers
    solver.parameters.random_seed = 0
    left = max(0.0, until.ends_at - time.perf_counter())
    solver.parameters.max_time_in_seconds = share * left
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    if status == cp_model.UNKNOWN:
        raise PlanError(
            f"CP-SAT found no plan in {until.seconds_used:.2f} s, and no proof that there is none",
            hint="Raise time_limit_seconds.",
        )
    assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE), solver.status_name(status)
    solved = Solved(
        proof=Proof.OPTIMAL if status == cp_model.OPTIMAL else Proof.TIME_LIMIT,
        cost=solver.objective_value / scale,
        bound=solver.best_objective_bound / scale,
        seconds=until.seconds_used,
    )
    return Answer(solver, solved)


__all__ = ["Answer", "Deadline", "Proof", "Solved", "cost_scale", "deadline", "solve"]
