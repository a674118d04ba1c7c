"""Which region is skipped at which step: the least predicted drift for a given share of compute.

    one row for each region, one column for each step: # computed, . skipped

    blocks.1-4   ####..#..#...#
    blocks.5-8   ###...#....#..

What one region loses depends on its own computed steps only, and all regions share one allowance of
seconds and one of bytes. So the problem falls in two, and stays exact:

1. for each region and each number k of computed steps, the least drift, by dynamic programming;
2. which k and which storage each region gets, by CP-SAT (a knapsack with two limits).

The drift is the one measured on an uncached trajectory: errors of one region do not reach the inputs
of the next in this prediction, as they do in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, gcd, inf
from operator import add

from ortools.sat.python import cp_model

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_count, decimal, format_bytes
from synccache.planner.schedule_problem import NOT_HELD, ScheduleProblem, SteppedRegion
from synccache.planner.solver import (
    Answer,
    Deadline,
    Proof,
    Solved,
    cost_scale,
    deadline,
    solve,
)
from synccache.planner.storage import AS_COMPUTED, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSchedule:
    """At which steps one region is computed, and how its residual is kept between them.

    Units:  drift summed over its skipped steps, storage included; seconds over the trajectory.
    """

    name: str
    computed_steps: tuple[int, ...]
    storage: Storage
    device_bytes: int
    staged_bytes: int
    drift: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule of all regions, what it costs, and how good that is proven to be."""

    rows: tuple[RegionSchedule, ...]
    steps: int
    seconds: float
    full_seconds: float
    solved: Solved

    @property
    def drift(self) -> float:
        """The sum over regions."""
        return sum(row.drift for row in self.rows)

    @property
    def speedup(self) -> float:
        """Full seconds for each second of this schedule."""
        return self.full_seconds / self.seconds if self.seconds > 0 else 1.0

    def letters(self, row: RegionSchedule) -> str:
        """C for each computed step of a region, S for each skipped one."""
        return _marks(row, self.steps).replace("#", "C").replace(".", "S")

    @property
    def device_bytes(self) -> int:
        """What all residuals take on the device, with copies on their way back from the host."""
        staging = max((row.staged_bytes for row in self.rows), default=0)
        return sum(row.device_bytes for row in self.rows) + staging

    @property
    def compute_fraction(self) -> float:
        """Seconds of this schedule for each second of a trajectory that skips nothing."""
        return self.seconds / self.full_seconds if self.full_seconds > 0 else 1.0

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        grid = [f"{row.name:{width}}  {_marks(row, self.steps)}" for row in self.rows]
        summary = (
            f"{self.compute_fraction:.1%} of the compute, predicted drift {self.drift:.4f}, "
            f"{format_bytes(self.device_bytes)} held"
        )
        proof = (
            f"{self.solved.proof.value} after {self.solved.seconds:.2f} s, "
            f"gap {self.solved.gap:.2%}"
        )
        return "\n".join(["# computed   . skipped", *grid, summary, proof])


def schedule(
    problem: ScheduleProblem,
    *,
    compute_fraction: float | None = None,
    max_drift: float | None = None,
    max_bytes: int | None = None,
    storages: Sequence[Storage] = (AS_COMPUTED,),
    time_limit_seconds: float = 30.0,
    workers: int = 2,
) -> Schedule:
    """The schedule of least predicted drift within `compute_fraction` of the full seconds, or the one
    of fewest seconds within `max_drift`.

    Each skipped step of a region adds the drift of its storage, and the seconds that it loses.
    At the time limit the best schedule found is returned, and its `solved` says so.

    Units:   max_bytes of device memory for all residuals together; drift summed over regions and
             skipped steps.
    Raises:  PlanError where no schedule keeps the rules, with the smallest fraction that does.
    """
    _check_asked(compute_fraction, max_drift, max_bytes, storages)
    until = deadline(time_limit_seconds, workers)
    tables = [_least_drifts(problem, region) for region in problem.regions]
    knapsack = _knapsack(problem, _choices(problem, tables, storages), max_bytes)
    drift_scale = cost_scale(choice.drift for choice in knapsack.choices)
    drifts = [round(choice.drift * drift_scale) for choice in knapsack.choices]
    drift = cp_model.LinearExpr.weighted_sum(knapsack.taken, drifts)
    if compute_fraction is not None:
        knapsack.model.add(knapsack.units <= floor(decimal(compute_fraction) * knapsack.full_units))
        knapsack.model.minimize(drift)
        answer = solve(knapsack.model, until, scale=drift_scale)
    else:
        assert max_drift is not None, "one of the two is asked for"
        rounding = len(problem.regions) / 2  # of the drifts, each by half a step at most
        knapsack.model.add(drift <= floor(max_drift * drift_scale + rounding))
        knapsack.model.minimize(knapsack.units)
        answer = solve(knapsack.model, until, scale=knapsack.scale)
        if answer is not None and answer.solved.proof is Proof.OPTIMAL:
            answer = _least_drift_at(knapsack, answer, drift, until)
    if answer is None:
        assert compute_fraction is not None, "computing everything has no drift"
        raise _no_schedule(problem, tables, storages, max_bytes, compute_fraction, until)
    rows = [
        _row(problem, choice, tables[choice.index])
        for choice, taken in zip(knapsack.choices, knapsack.taken, strict=True)
        if answer.value(taken)
    ]
    fixed = problem.steps * problem.fixed_seconds_per_step
    return Schedule(
        rows=tuple(rows),
        steps=problem.steps,
        seconds=fixed + sum(row.seconds for row in rows),
        full_seconds=problem.full_seconds,
        solved=answer.solved,
    )


def _check_asked(
    compute_fraction: float | None,
    max_drift: float | None,
    max_bytes: int | None,
    storages: Sequence[Storage],
) -> None:
    if (compute_fraction is None) == (max_drift is None):
        raise PlanError("a schedule is asked for by compute_fraction or by max_drift, one of them")
    if compute_fraction is not None and not (
        0 < checked_amount(compute_fraction, "compute_fraction") <= 1
    ):
        raise PlanError(f"compute_fraction must lie in (0, 1], not {compute_fraction!r}")
    if max_drift is not None:
        checked_amount(max_drift, "max_drift")
    if max_bytes is not None:
        checked_count(max_bytes, "max_bytes")
    if not storages:
        raise PlanError("storages must name at least one way to keep a residual")


def _least_drift_at(
    knapsack: _Knapsack, answer: Answer, drift: cp_model.LinearExprT, until: Deadline
) -> Answer:
    """Of all schedules as fast as the answer, the one of least drift; the proof stays the answer's."""
    knapsack.model.add(knapsack.units <= answer.value(knapsack.units))
    knapsack.model.minimize(drift)
    for variable in knapsack.taken:
        knapsack.model.add_hint(variable, answer.value(variable))
    found = solve(knapsack.model, until)
    assert found is not None, "the fastest schedule is one"
    return replace(found, solved=replace(answer.solved, seconds=found.solved.seconds))


_Drifts = list[list[float]]


def _skip_drifts(problem: ScheduleProblem, region: SteppedRegion) -> _Drifts:
    """skip[a][b]: the drift of computing at step a, next at step b, and skipping between them.

    inf where a rule forbids it; b = steps stands for the end of the trajectory.
    """
    rows = []
    for computed in range(problem.steps):
        row = [inf] * (computed + 1)
        drift = 0.0
        for following in range(computed + 1, problem.steps + 1):
            skipped = following - computed - 1
            if skipped and (skipped > problem.max_gap or problem.is_forced(following - 1)):
                drift = inf
            elif skipped:
                drift += region.drift[computed][following - 1]
            row.append(drift)
        rows.append(row)
    return rows


def _least_drifts(problem: ScheduleProblem, region: SteppedRegion) -> _Drifts:
    """S[k][a]: the least drift from step a on, computed there and at k - 1 later steps.

    S[1][a] = skip[a][steps]      S[k][a] = min over b > a of  skip[a][b] + S[k-1][b]
    """
    skips = _skip_drifts(problem, region)
    table = [[inf] * problem.steps, [row[problem.steps] for row in skips]]
    for _ in range(problem.steps - 1):
        fewer = table[-1]
        table.append([min(map(add, row[:-1], fewer), default=inf) for row in skips])
    return table


@dataclass(frozen=True, slots=True)
class _Choice:
    """A region computed at `count` steps and kept in one storage between them."""

    index: int
    count: int
    storage: Storage
    device_bytes: int
    staged_bytes: int
    drift: float


@dataclass(frozen=True, slots=True)
class _Knapsack:
    """A CP-SAT model that takes one choice for each region; its seconds as whole units."""

    model: cp_model.CpModel
    choices: Sequence[_Choice]
    taken: Sequence[cp_model.IntVar]
    units: cp_model.LinearExprT
    full_units: int
    scale: float


def _choices(
    problem: ScheduleProblem, tables: Sequence[_Drifts], storages: Sequence[Storage]
) -> list[_Choice]:
    found = []
    for index, (region, table) in enumerate(zip(problem.regions, tables, strict=True)):
        for count in range(1, problem.steps + 1):
            skipped = problem.steps - count
            if table[count][0] < inf:
                found += [
                    _Choice(
                        index,
                        count,
                        storage,
                        region.device_bytes(storage),
                        region.staged_bytes(storage),
                        table[count][0] + skipped * storage.drift,
                    )
                    for storage in (storages if skipped else (NOT_HELD,))
                ]
    return found


def _knapsack(
    problem: ScheduleProblem, choices: Sequence[_Choice], max_bytes: int | None
) -> _Knapsack:
    model = cp_model.CpModel()
    taken = [
        model.new_bool_var(f"{choice.index} {choice.count} {choice.storage.name}")
        for choice in choices
    ]
    by_region: dict[int, list[cp_model.IntVar]] = {}
    for choice, variable in zip(choices, taken, strict=True):
        by_region.setdefault(choice.index, []).append(variable)
    for variables in by_region.values():
        model.add_exactly_one(variables)
    if max_bytes is not None:
        staged = [choice.staged_bytes for choice in choices]
        unit = gcd(*(choice.device_bytes for choice in choices), *staged) or 1
        sizes = [choice.device_bytes // unit for choice in choices]
        held = cp_model.LinearExpr.weighted_sum(taken, sizes)
        staging = model.new_int_var(0, max(staged) // unit, "staging")
        for size, variable in zip(staged, taken, strict=True):
            if size:
                model.add(staging >= size // unit * variable)
        model.add(held + staging <= max_bytes // unit)
    scale = cost_scale(
        [problem.fixed_seconds_per_step, *(region.seconds for region in problem.regions)]
    )
    computed = [round(region.seconds * scale) for region in problem.regions]
    fixed = problem.steps * round(problem.fixed_seconds_per_step * scale)
    units = [
        choice.count * computed[choice.index]
        + (problem.steps - choice.count) * round(_seconds_lost(problem, choice) * scale)
        for choice in choices
    ]
    total = cp_model.LinearExpr.weighted_sum(taken, units) + fixed
    full = fixed + problem.steps * sum(computed)
    return _Knapsack(model, choices, taken, total, full, scale)


def _seconds_lost(problem: ScheduleProblem, choice: _Choice) -> float:
    """By storage, at one skipped step."""
    return choice.storage.seconds(problem.regions[choice.index].held_bytes)


def _row(problem: ScheduleProblem, choice: _Choice, table: _Drifts) -> RegionSchedule:
    region = problem.regions[choice.index]
    skips = _skip_drifts(problem, region)
    steps = [0]
    for left in range(choice.count - 1, 0, -1):
        row = skips[steps[-1]]
        later = range(steps[-1] + 1, problem.steps)
        steps.append(min(later, key=lambda step: row[step] + table[left][step]))
    skipped = problem.steps - choice.count
    return RegionSchedule(
        name=region.name,
        computed_steps=tuple(steps),
        storage=choice.storage,
        device_bytes=choice.device_bytes,
        staged_bytes=choice.staged_bytes,
        drift=choice.drift,
        seconds=choice.count * region.seconds + skipped * _seconds_lost(problem, choice),
    )


def _no_schedule(
    problem: ScheduleProblem,
    tables: Sequence[_Drifts],
    storages: Sequence[Storage],
    max_bytes: int | None,
    compute_fraction: float,
    until: Deadline,
) -> PlanError:
    """Computing everything always keeps the rules and holds nothing, so some fraction works."""
    knapsack = _knapsack(problem, _choices(problem, tables, storages), max_bytes)
    knapsack.model.minimize(knapsack.units)
    answer = solve(knapsack.model, until)
    assert answer is not None, "computing everything is a schedule"
    needed = answer.solved.cost / knapsack.full_units
    limit = "" if max_bytes is None else f" and {max_bytes} bytes ({format_bytes(max_bytes)})"
    return PlanError(
        f"no schedule takes {compute_fraction:.2%} of the compute: {problem.warmup_steps} warm-up "
        f"steps, {problem.last_steps} last steps, at most {problem.max_gap} skipped in a row{limit} "
        f"need {needed:.2%}, a speed-up of {1 / needed:.2f}",
        hint="Raise compute_fraction, or relax these rules.",
    )


def _marks(row: RegionSchedule, steps: int) -> str:
    computed = set(row.computed_steps)
    return "".join("#" if step in computed else "." for step in range(steps))
