"""From a chain problem to a plan: the limits become a choice, the choice a record with its price."""

from __future__ import annotations

from dataclasses import replace

from synccache.errors import PlanError
from synccache.planner.dynamic_program import (
    Partition,
    fewest_residual_bytes,
    partition,
    partitions_by_count,
)
from synccache.planner.plan import DEVICE, Alternative, Memory, Plan, PlannedRegion
from synccache.planner.problem import ChainProblem, DriftSource, segments_for_ratio
from synccache.planner.quantities import checked_count, counted, format_bytes


def plan_chain(
    problem: ChainProblem,
    *,
    policy: str,
    model: str,
    mem_budget: int | None = None,
    cache_ratio: float | None = None,
    fingerprint: str = "",
) -> Plan:
    """The best plan for `problem` within the limits given.

    - `cache_ratio` alone: exactly n = max(1, min(E, floor(L_a * ratio))) segments, least drift.
    - `mem_budget` alone: as many segments as fit, then least drift.
    - both: at most n segments, and they fit.
    - neither: every gap a segment of its own, no audio branch absorbed.

    Units:   mem_budget in bytes, everything on the device: weights + activation peak + caches.
    Raises:  PlanError for an impossible limit, with the smallest budget that works.
    """
    try:
        chosen = _chosen(problem, mem_budget, cache_ratio)
    except PlanError as error:
        raise PlanError(error.message, where=f"{policy} on {model}", hint=error.hint) from error
    return Plan(
        policy=policy,
        model=model,
        regions=_regions(problem, chosen),
        kept_lives=tuple(problem.lives[node - 1].name for node in chosen.cuts[1:-1]),
        live_total=problem.live_total,
        memory=Memory(
            weights_bytes=problem.weights_bytes,
            activation_bytes=problem.activation_bytes,
            residual_bytes=chosen.residual_bytes,
            invariant_bytes=problem.invariant_bytes,
            shared_bytes=problem.shared_bytes,
            guidance_branches=problem.guidance_branches,
        ),
        budget_bytes=mem_budget,
        cache_ratio=cache_ratio,
        drift_source=problem.drift_source,
        frontier=_frontier(problem),
        fingerprint=fingerprint,
    )


def _chosen(problem: ChainProblem, mem_budget: int | None, cache_ratio: float | None) -> Partition:
    count = len(problem.gaps)
    if cache_ratio is not None:
        count = segments_for_ratio(problem, cache_ratio)
    if mem_budget is None:
        return partition(problem, segments=count, exactly=True)
    checked_count(mem_budget, "mem_budget", least=1)
    _check_budget(problem, count, mem_budget)
    room = mem_budget - problem.bytes_without_residuals
    return partition(problem, segments=count, max_bytes=room)


def _measured(problem: ChainProblem, drift: float) -> float | None:
    """Assumed drift steers the choice, but is never shown as if it had been measured."""
    return None if problem.drift_source is DriftSource.ASSUMED else drift


def _regions(problem: ChainProblem, chosen: Partition) -> tuple[PlannedRegion, ...]:
    return tuple(
        _region(problem, index, first, end) for index, (first, end) in enumerate(chosen.segments)
    )


def _region(problem: ChainProblem, index: int, first: int, end: int) -> PlannedRegion:
    gaps = problem.gaps[first:end]
    absorbed = problem.absorbed(first, end)
    ends = dict.fromkeys((gaps[0].name, gaps[-1].name))
    return PlannedRegion(
        index=index,
        name=" to ".join(ends),
        first_gap=first,
        last_gap=end - 1,
        labels=", ".join(dict.fromkeys(gap.labels for gap in gaps)),
        held_bytes=problem.held_bytes(first, end) * problem.tensors_per_segment,
        dtype=problem.dtype,
        place=DEVICE,
        predictor=problem.predictor,
        drift=_measured(problem, problem.segment_drift(first, end)),
        seconds_saved=problem.segment_seconds(first, end),
        absorbed=tuple(live.name for live in absorbed),
        absorbed_count=problem.absorbed_count(first, end),
    )


def _frontier(problem: ChainProblem) -> tuple[Alternative, ...]:
    fixed = problem.invariant_bytes + problem.shared_bytes
    return tuple(
        Alternative(
            cuts=row.cuts,
            cache_bytes=fixed + row.residual_bytes,
            drift=_measured(problem, row.drift),
            absorbed_count=row.absorbed_count,
        )
        for row in partitions_by_count(problem)
    )


def _check_budget(problem: ChainProblem, count: int, budget: int) -> None:
    residuals = fewest_residual_bytes(problem, segments=count)
    needed = problem.bytes_without_residuals + residuals
    if needed <= budget:
        return
    parts = {
        "weights": problem.weights_bytes,
        "activations at their peak": problem.activation_bytes,
        "residuals": residuals,
        "step-invariant values": problem.invariant_bytes,
        "probe and masks": problem.shared_bytes,
    }
    taken = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    raise PlanError(
        f"the budget of {_exactly(budget)} is below the {_exactly(needed)} needed at least: {taken}"
        f" ({counted(problem.guidance_branches, 'guidance branch', 'guidance branches')}, "
        f"{counted(problem.tensors_per_segment, 'held tensor')} for each region)",
        hint=" ".join(_ways_out(problem, residuals, budget)),
    )


def _ways_out(problem: ChainProblem, residuals: int, budget: int) -> list[str]:
    """Sentences, each with its figure, of what would help; nothing that does not exist yet."""
    needed = problem.bytes_without_residuals + residuals
    ways = [f"Raise mem_budget to {needed}."]
    one_tensor = needed - residuals + residuals // problem.tensors_per_segment
    if one_tensor < needed:
        ways.append(
            f"A predictor that holds 1 tensor needs {_exactly(one_tensor)}: "
            f"{_verdict(one_tensor, budget)}."
        )
    joined = needed - residuals + fewest_residual_bytes(_all_absorbable(problem))
    if joined < needed:
        ways.append(
            "A policy that lets the planner join regions, skip=segments(...), needs "
            f"{_exactly(joined)}: {_verdict(joined, budget)}."
        )
    exact = problem.weights_bytes + problem.activation_bytes + problem.invariant_bytes
    if exact < needed:
        ways.append(
            f'policy="exact", which holds no residual, needs {_exactly(exact)}: '
            f"{_verdict(exact, budget)}."
        )
    room = budget - problem.weights_bytes
    if room <= 0:
        ways.append("The weights alone fill the budget: load them in a smaller dtype.")
    else:
        percent = 100 * room // (needed - problem.weights_bytes)
        ways.append(
            f"A smaller resolution or fewer frames: about {percent}% of the present tokens fit, "
            "if everything but the weights grows with their number."
        )
    return ways


def _all_absorbable(problem: ChainProblem) -> ChainProblem:
    lives = tuple(replace(live, absorbable=True) for live in problem.lives)
    return replace(problem, lives=lives)


def _verdict(size: int, budget: int) -> str:
    return "fits" if size <= budget else "does not fit either"


def _exactly(size: int) -> str:
    return f"{format_bytes(size)} ({size} bytes)"
