"""From a chain problem to a plan: the limits become a choice, the choice a record with its price."""

from __future__ import annotations

import time
from collections.abc import Sequence

from synccache.errors import PlanError
from synccache.planner.arcs import Arc, arc_of, staged_bytes
from synccache.planner.budget import check_budget
from synccache.planner.dynamic_program import Partition, partition, partitions_by_count
from synccache.planner.fingerprint import Fingerprint
from synccache.planner.plan import Alternative, Memory, Plan, PlannedRegion
from synccache.planner.problem import ChainProblem, DriftSource, segments_for_ratio
from synccache.planner.quantities import checked_count
from synccache.planner.solved import Proof, Solved
from synccache.planner.storage import AS_COMPUTED, Form, Storage


def plan_chain(
    problem: ChainProblem,
    *,
    policy: str,
    model: str,
    mem_budget: int | None = None,
    cache_ratio: float | None = None,
    storages: Sequence[Storage] = (AS_COMPUTED,),
    time_limit_seconds: float = 10.0,
    fingerprint: Fingerprint | None = None,
) -> Plan:
    """The best plan for `problem` within the limits given.

    - `cache_ratio` alone: exactly n = max(1, min(E, floor(L_a * ratio))) segments, least drift.
    - `mem_budget` alone: as many segments as fit, then least drift.
    - both: at most n segments, and they fit.
    - neither: every gap a segment of its own, no audio branch absorbed.

    The dynamic program answers alone where everything fits as computed; CP-SAT where `storages` or
    the problem's lower orders have to be chosen from. At the time limit it gives the best found.

    Units:   mem_budget in bytes, everything on the device: weights + activation peak + caches.
    Raises:  PlanError for an impossible limit, with the smallest budget that works.
    """
    try:
        least = partitions_by_count(problem)
        chosen, solved = _chosen(
            problem, mem_budget, cache_ratio, storages, time_limit_seconds, least
        )
    except PlanError as error:
        raise PlanError(error.message, where=f"{policy} on {model}", hint=error.hint) from error
    return _plan(
        problem, chosen, solved, policy=policy, model=model, mem_budget=mem_budget,
        cache_ratio=cache_ratio, storages=storages, fingerprint=fingerprint, least=least,
    )  # fmt: skip


def plan_kept(
    problem: ChainProblem,
    kept: Sequence[Storage],
    *,
    policy: str,
    model: str,
    mem_budget: int | None = None,
    fingerprint: Fingerprint | None = None,
) -> Plan:
    """The plan in which every gap is a region, kept as a schedule has chosen.

    Raises:  PlanError where that does not fit the budget.
    """
    arcs = tuple(arc_of(problem, i, i + 1, storage) for i, storage in enumerate(kept))
    drift = sum(arc.drift for arc in arcs)
    return _plan(
        problem, arcs, Solved(proof=Proof.OPTIMAL, cost=drift, bound=drift, seconds=0.0),
        policy=policy, model=model, mem_budget=mem_budget, cache_ratio=None,
        storages=tuple(dict.fromkeys(kept)) or (AS_COMPUTED,), fingerprint=fingerprint,
        least=partitions_by_count(problem),
    )  # fmt: skip


def _plan(
    problem: ChainProblem,
    chosen: tuple[Arc, ...],
    solved: Solved,
    *,
    policy: str,
    model: str,
    mem_budget: int | None,
    cache_ratio: float | None,
    storages: Sequence[Storage],
    fingerprint: Fingerprint | None,
    least: tuple[Partition, ...],
) -> Plan:
    return Plan(
        policy=policy,
        model=model,
        regions=tuple(_region(problem, index, arc) for index, arc in enumerate(chosen)),
        kept_lives=tuple(problem.lives[arc.end - 1].name for arc in chosen[:-1]),
        live_total=problem.live_total,
        memory=Memory(
            weights_bytes=problem.weights_bytes,
            activation_bytes=problem.activation_bytes,
            residual_bytes=sum(arc.device_bytes for arc in chosen),
            staging_bytes=staged_bytes(chosen),
            host_bytes=sum(arc.host_bytes for arc in chosen),
            invariant_bytes=problem.invariant_bytes,
            shared_bytes=problem.shared_bytes,
            guidance_branches=problem.guidance_branches,
        ),
        budget_bytes=mem_budget,
        cache_ratio=cache_ratio,
        drift_source=problem.drift_source,
        seconds_source=problem.seconds_source,
        frontier=_frontier(problem, least),
        storages=tuple(storages),
        solved=solved,
        fingerprint=fingerprint,
    )


def _chosen(
    problem: ChainProblem,
    mem_budget: int | None,
    cache_ratio: float | None,
    storages: Sequence[Storage],
    time_limit_seconds: float,
    least: tuple[Partition, ...],
) -> tuple[tuple[Arc, ...], Solved]:
    """`least`: for each number of segments the least costly partition, whatever its bytes."""
    started = time.perf_counter()
    count = len(problem.gaps)
    if cache_ratio is not None:
        count = segments_for_ratio(problem, cache_ratio)
    room = None
    if mem_budget is not None:
        checked_count(mem_budget, "mem_budget", least=1)
        check_budget(problem, count, mem_budget, storages)
        room = mem_budget - problem.bytes_without_residuals
    by_count = {len(row.segments): row for row in least}
    plain = by_count[count] if problem.gaps else partition(problem)
    everything_fits = room is None or plain.residual_bytes <= room
    choices = len(storages) > 1 or bool(problem.lower_orders)
    if AS_COMPUTED in storages and (everything_fits or not choices):
        if room is not None and not everything_fits and problem.is_of_one_size:
            fitting = [k for k, row in by_count.items() if k < count and row.residual_bytes <= room]
            plain = by_count[max(fitting)]
        elif not everything_fits:
            plain = partition(problem, segments=count, max_bytes=room)
        drift = plain.drift
        seconds = time.perf_counter() - started
        proven = Solved(proof=Proof.OPTIMAL, cost=drift, bound=drift, seconds=seconds)
        return tuple(arc_of(problem, i, j, AS_COMPUTED) for i, j in plain.segments), proven
    from synccache.planner.cp_sat import partition_cp_sat  # OR-Tools takes a while to load

    found = partition_cp_sat(
        problem,
        segments=count,
        exactly=room is None,
        max_bytes=room,
        storages=storages,
        time_limit_seconds=time_limit_seconds,
    )
    return found.arcs, found.solved


def _measured(problem: ChainProblem, drift: float) -> float | None:
    """Assumed drift steers the choice, but is never shown as if it had been measured."""
    return None if problem.drift_source is DriftSource.ASSUMED else drift


def _region(problem: ChainProblem, index: int, arc: Arc) -> PlannedRegion:
    gaps = problem.gaps[arc.first : arc.end]
    absorbed = problem.absorbed(arc.first, arc.end)
    ends = dict.fromkeys((gaps[0].name, gaps[-1].name))
    form = arc.storage.form
    return PlannedRegion(
        index=index,
        name=" to ".join(ends),
        first_gap=arc.first,
        last_gap=arc.end - 1,
        labels=", ".join(dict.fromkeys(gap.labels for gap in gaps)),
        held_bytes=arc.one_branch_bytes,
        dtype=problem.dtype if form is Form.AS_COMPUTED else form.value,
        storage=arc.storage.name,
        place=arc.storage.place,
        predictor=arc.predictor,
        tensors=arc.tensors,
        drift=_measured(problem, arc.drift),
        seconds_saved=problem.segment_seconds(arc.first, arc.end),
        seconds_lost=arc.seconds_lost,
        absorbed=tuple(live.name for live in absorbed),
        absorbed_count=problem.absorbed_count(arc.first, arc.end),
    )


def _frontier(problem: ChainProblem, least: tuple[Partition, ...]) -> tuple[Alternative, ...]:
    fixed = problem.invariant_bytes + problem.shared_bytes
    return tuple(
        Alternative(
            cuts=row.cuts,
            cache_bytes=fixed + row.residual_bytes,
            drift=_measured(problem, row.drift),
            absorbed_count=row.absorbed_count,
        )
        for row in least
    )
