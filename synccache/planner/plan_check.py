"""Whether a plan follows from a problem: every figure derived again, by other means.

The planner fills one table from the last gap backwards; here the recursion runs forwards from the
first, from the problem's own tables, and nothing of the planner's choice is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING

from synccache.planner.arcs import fewest_bytes
from synccache.planner.problem import ChainProblem, DriftSource, segments_for_ratio
from synccache.planner.solved import Proof
from synccache.planner.storage import AS_COMPUTED, Form, Place, Storage

if TYPE_CHECKING:
    from synccache.planner.plan import Plan, PlannedRegion

_TOLERANCE = 1e-9
"""Relative, for sums of drifts and seconds taken in another order."""


_Figure = tuple[str, object, object]
"""Name, what the plan says, what the problem says."""


def mismatches(
    plan: Plan,
    problem: ChainProblem,
    figures: Callable[[Plan, ChainProblem], Iterator[_Figure]] | None = None,
) -> tuple[str, ...]:
    """What in the plan does not follow from the problem, as short facts; empty if all does.

    `figures` are those to compare: all of them, or `use_figures`.
    """
    covered = plan.cuts[-1]
    if covered != len(problem.gaps):
        return (f"regions cover {covered} gaps, the problem has {len(problem.gaps)}",)
    return tuple(
        f"{name} is {found!r}, not {expected!r}"
        for name, found, expected in (figures or _figures)(plan, problem)
        if not _agree(found, expected)
    )


def use_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    """What must agree for a plan made elsewhere to run here: borders, bytes held, predictors."""
    kept = tuple(problem.lives[node - 1].name for node in plan.cuts[1:-1])
    yield "kept_lives", plan.kept_lives, kept
    for region, (first, end) in zip(plan.regions, pairwise(plan.cuts), strict=True):
        label = f"regions[{region.index}]"
        form = plan.storage_of(region).form
        held = problem.held_bytes(first, end, form) * region.tensors
        labels = dict.fromkeys(gap.labels for gap in problem.gaps[first:end])
        yield f"{label}.labels", region.labels, ", ".join(labels)
        yield f"{label}.held_bytes", region.held_bytes, held
        yield f"{label}.predictor", *_predictor(region, problem)


def _figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    yield from _region_figures(plan, problem)
    yield from _memory_figures(plan, problem)
    yield "drift_source", plan.drift_source.value, problem.drift_source.value
    yield "seconds_source", plan.seconds_source, problem.seconds_source
    yield "live_total", plan.live_total, problem.live_total
    kept = tuple(problem.lives[node - 1].name for node in plan.cuts[1:-1])
    yield "kept_lives", plan.kept_lives, kept
    yield from _limit_figures(plan, problem)
    yield from _frontier_figures(plan, problem)


def _region_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    measured = problem.drift_source is not DriftSource.ASSUMED
    for region, (first, end) in zip(plan.regions, pairwise(plan.cuts), strict=True):
        label = f"regions[{region.index}]"
        inside = problem.lives[first : end - 1]
        storage = plan.storage_of(region)
        held = problem.held_bytes(first, end, storage.form) * region.tensors
        plain = problem.merged_bytes[first][end] * region.tensors
        lost = storage.seconds_per_gb * plain / 10**9
        dtype = problem.dtype if storage.form is Form.AS_COMPUTED else storage.form.value
        seconds = [gap.seconds for gap in problem.gaps[first:end]]
        seconds += [live.seconds for live in inside]
        names = dict.fromkeys(gap.name for gap in (problem.gaps[first], problem.gaps[end - 1]))
        labels = dict.fromkeys(gap.labels for gap in problem.gaps[first:end])
        drift = _drift(region, storage, problem, first, end) if measured else None
        fixed = [live.name for live in inside if not live.absorbable]
        yield f"{label} absorbs what it may not", fixed, []
        yield f"{label}.name", region.name, " to ".join(names)
        yield f"{label}.labels", region.labels, ", ".join(labels)
        yield f"{label}.held_bytes", region.held_bytes, held
        yield f"{label}.dtype", region.dtype, dtype
        yield f"{label}.place", region.place, storage.place
        yield f"{label}.predictor", *_predictor(region, problem)
        yield f"{label}.seconds_lost", region.seconds_lost, lost
        yield f"{label}.drift", region.drift, drift
        yield f"{label}.seconds_saved", region.seconds_saved, math.fsum(seconds)
        yield f"{label}.absorbed", region.absorbed, tuple(live.name for live in inside)
        count = sum(live.count for live in inside)
        yield f"{label}.absorbed_count", region.absorbed_count, count


def _predictor(region: PlannedRegion, problem: ChainProblem) -> tuple[object, object]:
    """(what the region says, what the problem offers): the policy's own, or one of lower order."""
    offered = {problem.predictor: problem.tensors_per_segment}
    offered.update((lower.predictor, lower.tensors) for lower in problem.lower_orders)
    found = (region.predictor, region.tensors)
    return found, found if found in offered.items() else tuple(offered.items())


def _drift(
    region: PlannedRegion, storage: Storage, problem: ChainProblem, first: int, end: int
) -> float | None:
    lower = {order.predictor: order.drift for order in problem.lower_orders}
    table = lower.get(region.predictor, problem.drift)
    added = storage.drift * problem.drift_steps
    return None if table is None else table[first][end] + added


def _memory_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    branches = problem.guidance_branches
    on_device = on_host = staged = 0
    for region, (first, end) in zip(plan.regions, pairwise(plan.cuts), strict=True):
        storage = plan.storage_of(region)
        held = problem.held_bytes(first, end, storage.form) * region.tensors
        on_device += held * {Place.DEVICE: branches, Place.TURNS: 1, Place.HOST: 0}[storage.place]
        on_host += held * branches if storage.place is not Place.DEVICE else 0
        staged = max(staged, 2 * held if storage.place is Place.HOST else 0)
    expected = {
        "weights_bytes": problem.weights_bytes,
        "activation_bytes": problem.activation_bytes,
        "residual_bytes": on_device,
        "staging_bytes": staged,
        "host_bytes": on_host,
        "invariant_bytes": problem.fixed_bytes_per_branch * branches,
        "shared_bytes": problem.shared_bytes,
        "guidance_branches": branches,
    }
    for name, value in expected.items():
        yield f"memory.{name}", getattr(plan.memory, name), value


def _limit_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    """As many regions as the limits allow, and the least drift for that many.

    Where a budget is set and residuals differ in size or there is a choice of keeping them, the least
    drift that fits may lie above the least drift there is; only then is it not demanded here. A
    solver stopped at its time limit promises neither.
    """
    if plan.solved.proof is not Proof.OPTIMAL:
        return
    count = len(plan.regions)
    yield "number of regions", count, _most_regions(plan, problem)
    if plan.budget_bytes is None or problem.is_of_one_size and not _has_choices(plan, problem):
        drift = math.fsum(problem.segment_drift(i, j) for i, j in pairwise(plan.cuts))
        yield "drift of the cuts", drift, _least_by_count(problem, problem.segment_drift)[count]


def _has_choices(plan: Plan, problem: ChainProblem) -> bool:
    return len(plan.storages) > 1 or bool(problem.lower_orders)


def _most_regions(plan: Plan, problem: ChainProblem) -> int:
    limit = len(problem.gaps)
    if plan.cache_ratio is not None:
        limit = segments_for_ratio(problem, plan.cache_ratio)
    if plan.budget_bytes is None:
        return limit
    room = plan.budget_bytes - problem.bytes_without_residuals
    if _has_choices(plan, problem) or plan.storages != (AS_COMPUTED,):
        possible = fewest_bytes(problem, plan.storages)
        return max((k for k, size in possible.items() if k <= limit and size <= room), default=0)
    fewest = _least_by_count(problem, problem.residual_bytes)
    return max((count for count in range(limit + 1) if fewest[count] <= room), default=0)


def _frontier_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    counts = tuple(row.segments for row in plan.frontier)
    yield "frontier", counts, tuple(range(problem.fewest_segments or 1, len(problem.gaps) + 1))
    fixed = problem.invariant_bytes + problem.shared_bytes
    least = _least_by_count(problem, problem.segment_drift)
    for row in plan.frontier:
        label = f"frontier[{row.segments}]"
        yield f"{label} ends at gap", row.cuts[-1], len(problem.gaps)
        chosen = tuple(pairwise(row.cuts))
        held = sum(problem.residual_bytes(i, j) for i, j in chosen)
        absorbed = sum(problem.absorbed_count(i, j) for i, j in chosen)
        drift = math.fsum(problem.segment_drift(i, j) for i, j in chosen)
        measured = problem.drift_source is not DriftSource.ASSUMED
        yield f"{label}.cache_bytes", row.cache_bytes, fixed + held
        yield f"{label}.absorbed_count", row.absorbed_count, absorbed
        yield f"{label}.drift", row.drift, least[row.segments] if measured else None
        yield f"{label}.cuts' drift", drift, least[row.segments]


def _least_by_count(problem: ChainProblem, amount: Callable[[int, int], float]) -> dict[int, float]:
    """The least sum of `amount` over k segments that cover all gaps, for every k.

    F[k][j] = min over i < j of F[k-1][i] + amount(i, j), read at j = E.
    """
    nodes = range(len(problem.gaps) + 1)
    amounts = [
        [amount(i, j) if problem.is_segment(i, j) else math.inf for i in range(j)] for j in nodes
    ]
    row = [0.0] + [math.inf] * len(problem.gaps)
    least = {0: row[-1]}
    for count in nodes[1:]:
        row = [min(map(add, row, amounts[j]), default=math.inf) for j in nodes]
        least[count] = row[-1]
    return least


def _agree(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return found == expected
