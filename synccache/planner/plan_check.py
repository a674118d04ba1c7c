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

from synccache.planner.problem import ChainProblem, DriftSource, segments_for_ratio

if TYPE_CHECKING:
    from synccache.planner.plan import Plan

_TOLERANCE = 1e-9
"""Relative, for sums of drifts and seconds taken in another order."""


def mismatches(plan: Plan, problem: ChainProblem) -> tuple[str, ...]:
    """What in the plan does not follow from the problem, as short facts; empty if all does."""
    covered = plan.cuts[-1]
    if covered != len(problem.gaps):
        return (f"regions cover {covered} gaps, the problem has {len(problem.gaps)}",)
    return tuple(
        f"{name} is {found!r}, not {expected!r}"
        for name, found, expected in _figures(plan, problem)
        if not _agree(found, expected)
    )


_Figure = tuple[str, object, object]
"""Name, what the plan says, what the problem says."""


def _figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    yield from _region_figures(plan, problem)
    yield from _memory_figures(plan, problem)
    yield "drift_source", plan.drift_source.value, problem.drift_source.value
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
        held = problem.merged_bytes[first][end] * problem.tensors_per_segment
        seconds = [gap.seconds for gap in problem.gaps[first:end]]
        seconds += [live.seconds for live in inside]
        names = dict.fromkeys(gap.name for gap in (problem.gaps[first], problem.gaps[end - 1]))
        labels = dict.fromkeys(gap.labels for gap in problem.gaps[first:end])
        drift = problem.drift[first][end] if measured and problem.drift else None
        fixed = [live.name for live in inside if not live.absorbable]
        yield f"{label} absorbs what it may not", fixed, []
        yield f"{label}.name", region.name, " to ".join(names)
        yield f"{label}.labels", region.labels, ", ".join(labels)
        yield f"{label}.held_bytes", region.held_bytes, held
        yield f"{label}.dtype", region.dtype, problem.dtype
        yield f"{label}.place", region.place, "device"
        yield f"{label}.predictor", region.predictor, problem.predictor
        yield f"{label}.drift", region.drift, drift
        yield f"{label}.seconds_saved", region.seconds_saved, math.fsum(seconds)
        yield f"{label}.absorbed", region.absorbed, tuple(live.name for live in inside)
        count = sum(live.count for live in inside)
        yield f"{label}.absorbed_count", region.absorbed_count, count


def _memory_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    held = sum(problem.merged_bytes[first][end] for first, end in pairwise(plan.cuts))
    branches = problem.guidance_branches
    expected = {
        "weights_bytes": problem.weights_bytes,
        "activation_bytes": problem.activation_bytes,
        "residual_bytes": held * branches * problem.tensors_per_segment,
        "invariant_bytes": problem.fixed_bytes_per_branch * branches,
        "shared_bytes": problem.shared_bytes,
        "guidance_branches": branches,
    }
    for name, value in expected.items():
        yield f"memory.{name}", getattr(plan.memory, name), value


def _limit_figures(plan: Plan, problem: ChainProblem) -> Iterator[_Figure]:
    """As many regions as the limits allow, and the least drift for that many.

    Where residuals differ in size and a budget is set, the least drift that fits may lie above the
    least drift there is; only then is it not demanded here.
    """
    count = len(plan.regions)
    yield "number of regions", count, _most_regions(plan, problem)
    if plan.budget_bytes is None or problem.is_of_one_size:
        drift = math.fsum(problem.segment_drift(i, j) for i, j in pairwise(plan.cuts))
        yield "drift of the cuts", drift, _least_by_count(problem, problem.segment_drift)[count]


def _most_regions(plan: Plan, problem: ChainProblem) -> int:
    limit = len(problem.gaps)
    if plan.cache_ratio is not None:
        limit = segments_for_ratio(problem, plan.cache_ratio)
    if plan.budget_bytes is None:
        return limit
    room = plan.budget_bytes - problem.bytes_without_residuals
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
