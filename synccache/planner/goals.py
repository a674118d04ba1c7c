"""Goals instead of knobs: a schedule for a speed-up or a drift, and what its neighbours would give.

measured = synccache.calibrate(model, lambda m: sample(m, ...))
print(synccache.plan_schedule(measured, target_speedup=3.0))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synccache.errors import PlanError
from synccache.planner.calibration import Calibration
from synccache.planner.plan_text import aligned
from synccache.planner.quantities import checked_amount
from synccache.planner.schedule_problem import ScheduleProblem
from synccache.planner.step_plan import StepPlan
from synccache.planner.storage import AS_COMPUTED, Storage, storages_named

_NEIGHBOURS = (0.7, 0.85, 1.15, 1.4)
"""Shares of the compute chosen, at which the frontier beside it is shown."""
_NEIGHBOUR_SECONDS = 2.0
"""Time limit for each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the frontier: seconds of the whole trajectory over those of the schedule, drift."""

    speedup: float
    compute_fraction: float
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRegionSteps:
    """What a schedule says of one region: its letters, C computed and S skipped, and its storage.

    Units:  drift summed over its skipped steps, what storage adds included.
    """

    region: str
    letters: str
    storage: Storage
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSchedule:
    """Which region is skipped at which step; made by ``plan_schedule``, run by ``compile(schedule=)``.

    Attributes:
        model, shape: what it belongs to, as in ``Calibration``; timesteps: of the steps, as the model
            is given them: a run at others is refused.
        chosen: what the schedule gives; frontier: that and its neighbours, fastest first.
        proof: what is known of its optimality, with the time that took.
    """

    model: str
    shape: tuple[int, ...]
    timesteps: tuple[float, ...]
    rows: tuple[PlannedRegionSteps, ...]
    chosen: Point
    frontier: tuple[Point, ...]
    proof: str

    def __str__(self) -> str:
        width = max((len(row.region) for row in self.rows), default=0)
        storages = {row.storage for row in self.rows if "S" in row.letters}
        grid = [
            f"{row.region:{width}}  {row.letters}"
            + (f"  {row.storage.name}" if storages != {AS_COMPUTED} and "S" in row.letters else "")
            for row in self.rows
        ]
        table = [
            (
                "->" if point == self.chosen else "",
                f"{point.speedup:.2f}",
                f"{point.compute_fraction:.1%}",
                f"{point.drift:.4f}",
            )
            for point in self.frontier
        ]
        header = ("", "speed-up", "compute", "predicted drift")
        return "\n".join([*grid, self.proof, "", *aligned(header, table, left=(0,))])


def plan_schedule(
    calibration: Calibration,
    *,
    target_speedup: float | None = None,
    compute_fraction: float | None = None,
    max_drift: float | None = None,
    max_bytes: int | None = None,
    storages: Sequence[str | Storage] = (AS_COMPUTED,),
    warmup_steps: int = 1,
    last_steps: int = 0,
    max_gap: int = 6,
    time_limit_seconds: float = 30.0,
) -> RegionSchedule:
    """Which region to skip at which step, for a speed-up, a share of the compute, or a drift.

    For `target_speedup` or `compute_fraction` the schedule of least predicted drift; for `max_drift`
    the fastest. Seconds are those of the calibrated model's operations; drift is the relative change
    |r_t - r_a| / |r_t| of what a region would reuse, summed over skipped steps and regions.

    Args:
        max_bytes: of device memory for all held residuals.
        warmup_steps, last_steps: at which everything is computed; max_gap: steps skipped in a row.
        time_limit_seconds: then the best schedule found is returned, and says so.

    Raises:
        PlanError: no schedule reaches the goal, with the figure that the rules allow; or the
            calibration has no figures by region.
    """
    problem = _problem(calibration, warmup_steps, last_steps, max_gap)
    fraction = _fraction(target_speedup, compute_fraction)
    if (fraction is None) == (max_drift is None):
        raise PlanError(
            "one of target_speedup, compute_fraction and max_drift says what is wanted."
        )
    from synccache.planner.schedule import Schedule, schedule  # OR-Tools takes a while to load

    ways = storages_named(storages)

    def solved(share: float | None, drift: float | None, limit: float) -> Schedule:
        return schedule(
            problem, compute_fraction=share, max_drift=drift, max_bytes=max_bytes, storages=ways,
            time_limit_seconds=limit,
        )  # fmt: skip

    found = solved(fraction, max_drift, time_limit_seconds)
    points = [_point(found)]
    for times in _NEIGHBOURS:
        share = times * found.compute_fraction
        if share < 1:
            try:
                points.append(_point(solved(share, None, _NEIGHBOUR_SECONDS)))
            except PlanError:  # faster than the rules allow: the frontier ends here
                continue
    known = calibration.by_region
    assert known is not None
    return RegionSchedule(
        model=calibration.model,
        shape=calibration.shape,
        timesteps=known.timesteps,
        rows=tuple(
            PlannedRegionSteps(
                region=row.name, letters=found.letters(row), storage=row.storage, drift=row.drift
            )
            for row in found.rows
        ),
        chosen=_point(found),
        frontier=tuple(sorted(dict.fromkeys(points), key=lambda point: -point.speedup)),
        proof=f"{found.solved.proof.value} after {found.solved.seconds:.2f} s, "
        f"gap {found.solved.gap:.2%}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsPoint:
    """A number of computed steps, what it gains, and the error of the best schedule of so many."""

    computed: int
    speedup: float
    predicted_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsGoal:
    """The planned steps that meet a speed-up, and their neighbours, fastest first."""

    plan: StepPlan
    chosen: StepsPoint
    frontier: tuple[StepsPoint, ...]

    def __str__(self) -> str:
        rows = [
            (
                "->" if point == self.chosen else "",
                str(point.computed),
                f"{point.speedup:.2f}",
                f"{point.predicted_error:.3g}",
            )
            for point in self.frontier
        ]
        header = ("", "computed steps", "speed-up", "predicted error")
        return "\n".join([str(self.plan), "", *aligned(header, rows, left=(0,))])


_STEPS_BESIDE = 3
"""Numbers of computed steps that are shown on either side of the choice."""


def plan_for_speedup(calibration: Calibration, target_speedup: float) -> StepsGoal:
    """The planned schedule with as many computed steps as the speed-up allows, and its neighbours.

    Skipped steps are weighted sums of the last three computed ones, fitted to the calibration; no
    payback, which needs more of the caller (`choose_schedule` compares everything by running).

    Raises:  PlanError where even one computed step is too slow, or nothing was measured for it.
    """
    known, gram = calibration.by_region, calibration.residuals
    _fraction(target_speedup, None)
    if known is None or gram is None:
        raise PlanError(
            "the calibration has no inner products of residuals.", hint="Calibrate again."
        )
    from synccache.planner.computed_steps import StepProblem, Terms, best_schedules, step_plan

    skippable = sum(known.seconds)
    full = known.fixed_seconds + skippable
    steps = gram.steps

    def speedup(computed: int) -> float:
        return full * steps / (known.fixed_seconds * steps + skippable * computed)

    fitting = [k for k in range(1, steps + 1) if speedup(k) >= target_speedup - _ROUNDING]
    if not fitting:
        raise PlanError(
            f"with 1 of {steps} steps computed the speed-up is {speedup(1):.2f}, not "
            f"{target_speedup:g}: {known.fixed_seconds / full:.1%} of a forward is never skipped.",
            hint="Ask for less, or use a policy that skips more.",
        )
    problem = StepProblem(gram=gram, terms=Terms.FITTED_3)
    most = min(steps, fitting[-1] + _STEPS_BESIDE)
    best = best_schedules(problem, most)
    points = {
        k: StepsPoint(computed=k, speedup=speedup(k), predicted_error=best[k][1])
        for k in range(max(1, fitting[-1] - _STEPS_BESIDE), most + 1)
        if k in best
    }
    chosen = max(k for k in points if k <= fitting[-1])
    plan = step_plan(
        problem, best[chosen][0], source=f"planned for {problem.terms.value}",
        model=calibration.model, error=best[chosen][1],
    )  # fmt: skip
    frontier = tuple(sorted(points.values(), key=lambda point: point.computed))
    return StepsGoal(plan=plan, chosen=points[chosen], frontier=frontier)


_ROUNDING = 1e-9


def _problem(
    calibration: Calibration, warmup_steps: int, last_steps: int, max_gap: int
) -> ScheduleProblem:
    if calibration.by_region is None:
        raise PlanError(
            "the calibration has no figures of each region, so no schedule can be planned from it.",
            hint="Calibrate again, with a policy that skips residuals.",
        )
    return calibration.by_region.problem(
        warmup_steps=warmup_steps, last_steps=last_steps, max_gap=max_gap
    )


def _fraction(target_speedup: float | None, compute_fraction: float | None) -> float | None:
    if target_speedup is None:
        return compute_fraction
    if compute_fraction is not None:
        raise PlanError("target_speedup and compute_fraction say the same; give one of them.")
    if checked_amount(target_speedup, "target_speedup") < 1:
        raise PlanError(f"target_speedup must be at least 1, not {target_speedup!r}.")
    return 1 / target_speedup


def _point(found: object) -> Point:
    from synccache.planner.schedule import Schedule

    assert isinstance(found, Schedule)
    return Point(speedup=found.speedup, compute_fraction=found.compute_fraction, drift=found.drift)
