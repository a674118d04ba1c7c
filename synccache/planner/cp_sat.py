"""The chain partition by OR-Tools CP-SAT, with a choice of storage and predictor for every residual.

For a plain chain `partition` is faster and needs no solver; this module says what a chain cannot:
each residual may be kept as it is, in fewer bits, on the host, or on the device only while its
guidance branch runs, and a predictor may hold less history, each at a price. It also checks the
dynamic program from the outside.

Nothing imports this module unless asked to: OR-Tools takes a while to load.

Integers: bytes are divided by their greatest common divisor, so they stay exact; costs are rounded as
`solver` says, so the cost of n segments is off by at most n / 2 * 1e-9 of the largest cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from ortools.sat.python import cp_model

from synccache.errors import PlanError
from synccache.planner.arcs import Arc, arcs_of, fewest_bytes, staged_bytes
from synccache.planner.dynamic_program import Partition, checked_limit, partition_at
from synccache.planner.problem import ChainProblem
from synccache.planner.quantities import checked_amount, checked_count, format_bytes
from synccache.planner.solver import Deadline, Proof, Solved, cost_scale, deadline, solve
from synccache.planner.storage import AS_COMPUTED, STAGED, Place, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPartition:
    """A partition, how each of its residuals is kept, and how good that is.

    Units:  device_bytes of all guidance branches and the whole history, after storage; staging_bytes
            on the device for what is copied back from the host; host_bytes in main memory;
            drift with the storages' own; seconds_lost on one skipped forward.
    """

    partition: Partition
    arcs: tuple[Arc, ...]
    device_bytes: int
    staging_bytes: int
    host_bytes: int
    drift: float
    seconds_lost: float
    solved: Solved

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Of each segment in order."""
        return tuple(arc.storage for arc in self.arcs)


def partition_cp_sat(
    problem: ChainProblem,
    *,
    segments: int | None = None,
    max_bytes: int | None = None,
    absorbed_price: float = 0.0,
    exactly: bool = False,
    storages: Sequence[Storage] = (AS_COMPUTED,),
    seconds_price: float = 0.0,
    time_limit_seconds: float = 10.0,
    workers: int = 2,
) -> StoredPartition:
    """The best partition into at most (or `exactly`) `segments` on at most `max_bytes` of device.

    Preferred, in this order: more segments; then less cost, which is drift, plus `absorbed_price`
    for each absorbed audio branch, plus `seconds_price` for each second that storage loses; then
    fewer seconds lost. With the default storage this is the order of `dynamic_program.partition`,
    whose last wish, fewer bytes at equal cost, is not asked of the solver.

    How many segments fit is a recursion over bytes (`arcs.fewest_bytes`); the choice among partitions
    of that many is the solver's. At the time limit the best found is returned and says so.

    Raises:  PlanError where nothing fits, or nothing was found within the time limit.
    """
    count = checked_limit(problem, segments, exactly=exactly)
    checked_amount(absorbed_price, "absorbed_price")
    checked_amount(seconds_price, "seconds_price")
    if max_bytes is not None:
        checked_count(max_bytes, "max_bytes")
    if not storages:
        raise PlanError("storages must name at least one way to keep a residual")
    until = deadline(time_limit_seconds, workers)
    if not problem.gaps:
        return _stored(problem, (), Solved(proof=Proof.OPTIMAL, cost=0.0, bound=0.0, seconds=0.0))
    arcs = arcs_of(problem, storages)
    if max_bytes is not None and not exactly:
        fewest = fewest_bytes(problem, storages)
        fitting = [k for k, size in fewest.items() if k <= count and size <= max_bytes]
        if not fitting:
            raise _nothing_fits(count, max_bytes, storages, exactly=exactly)
        count = max(fitting)
    longest = len(problem.gaps) - count + 1  # a longer segment leaves too few gaps for the others
    arcs = tuple(arc for arc in arcs if arc.end - arc.first <= longest)
    chain = _chain(problem, arcs, max_bytes)
    chain.model.add(chain.size == count)
    costs = [
        arc.drift
        + absorbed_price * problem.absorbed_count(arc.first, arc.end)
        + seconds_price * arc.seconds_lost
        for arc in arcs
    ]
    solved, chosen = _cheapest(chain, arcs, costs, until)
    if chosen is None:
        assert max_bytes is not None, "a chain without a limit in bytes always has a partition"
        raise _nothing_fits(count, max_bytes, storages, exactly=exactly)
    return _stored(problem, chosen, solved)


_SHARE_FOR_SECONDS = 0.2
"""Of the time left, for the last wish, fewer seconds lost; the first two are settled by then."""


def _cheapest(
    chain: _Chain, arcs: Sequence[Arc], costs: Sequence[float], until: Deadline
) -> tuple[Solved, list[Arc] | None]:
    """The least cost, then the fewest seconds lost; None instead of arcs where nothing fits."""
    scale = cost_scale(costs)
    cost = cp_model.LinearExpr.weighted_sum(chain.taken, [round(c * scale) for c in costs])
    chain.model.minimize(cost)
    best = solve(chain.model, until, scale=scale)
    if best is None:
        return Solved(proof=Proof.OPTIMAL, cost=0.0, bound=0.0, seconds=0.0), None
    chosen = [arc for arc, taken in zip(arcs, chain.taken, strict=True) if best.value(taken)]
    if best.solved.proof is not Proof.OPTIMAL or not any(arc.seconds_lost for arc in chosen):
        return best.solved, chosen
    lost = cost_scale(arc.seconds_lost for arc in arcs)
    chain.model.add(cost <= best.value(cost))
    chain.model.minimize(
        cp_model.LinearExpr.weighted_sum(
            chain.taken, [round(arc.seconds_lost * lost) for arc in arcs]
        )
    )
    for arc, taken in zip(arcs, chain.taken, strict=True):
        chain.model.add_hint(taken, arc in chosen)
    quickest = solve(chain.model, until, share=_SHARE_FOR_SECONDS)
    assert quickest is not None, "the cheapest choice is one"
    chosen = [arc for arc, taken in zip(arcs, chain.taken, strict=True) if quickest.value(taken)]
    return replace(best.solved, seconds=quickest.solved.seconds), chosen


@dataclass(frozen=True, slots=True)
class _Chain:
    """A CP-SAT model whose arcs taken form a path over all gaps."""

    model: cp_model.CpModel
    taken: tuple[cp_model.IntVar, ...]
    size: cp_model.LinearExprT


def _chain(problem: ChainProblem, arcs: Sequence[Arc], max_bytes: int | None) -> _Chain:
    model = cp_model.CpModel()
    taken = tuple(model.new_bool_var(f"{arc.first}-{arc.end} {arc.storage.name}") for arc in arcs)
    leaving: dict[int, list[cp_model.IntVar]] = {}
    coming: dict[int, list[cp_model.IntVar]] = {}
    for arc, variable in zip(arcs, taken, strict=True):
        leaving.setdefault(arc.first, []).append(variable)
        coming.setdefault(arc.end, []).append(variable)
    last = len(problem.gaps)
    model.add(sum(leaving[0]) == 1)
    model.add(sum(coming[last]) == 1)
    for node in range(1, last):
        model.add(sum(leaving.get(node, [])) == sum(coming.get(node, [])))
    if max_bytes is not None:
        _limit(model, arcs, taken, max_bytes)
    return _Chain(model, taken, sum(taken))


def _limit(
    model: cp_model.CpModel, arcs: Sequence[Arc], taken: Sequence[cp_model.IntVar], max_bytes: int
) -> None:
    """What lies on the device, and what passes through it on the way back from the host, fits."""
    hosted = [
        (arc, variable)
        for arc, variable in zip(arcs, taken, strict=True)
        if arc.storage.place is Place.HOST
    ]
    staged = [STAGED * arc.one_branch_bytes for arc, _ in hosted]
    unit = gcd(*(arc.device_bytes for arc in arcs), *staged) or 1
    held = cp_model.LinearExpr.weighted_sum(taken, [arc.device_bytes // unit for arc in arcs])
    staging = model.new_int_var(0, max(staged, default=0) // unit, "staging")
    for size, (_, variable) in zip(staged, hosted, strict=True):
        model.add(staging >= size // unit * variable)
    model.add(held + staging <= max_bytes // unit)


def _stored(problem: ChainProblem, chosen: Sequence[Arc], solved: Solved) -> StoredPartition:
    plain = partition_at(problem, (0, *(arc.end for arc in chosen)))
    return StoredPartition(
        partition=plain,
        arcs=tuple(chosen),
        device_bytes=sum(arc.device_bytes for arc in chosen),
        staging_bytes=staged_bytes(chosen),
        host_bytes=sum(arc.host_bytes for arc in chosen),
        drift=sum(arc.drift for arc in chosen),
        seconds_lost=sum(arc.seconds_lost for arc in chosen),
        solved=solved,
    )


def _nothing_fits(
    count: int, max_bytes: int, storages: Sequence[Storage], *, exactly: bool
) -> PlanError:
    names = ", ".join(storage.name for storage in storages)
    limit = "exactly" if exactly else "at most"
    return PlanError(
        f"no partition into {limit} {count} segments fits {max_bytes} bytes "
        f"({format_bytes(max_bytes)}) with storage {names}",
        hint="Allow more bytes; fewest_residual_bytes says how many at least.",
    )


__all__ = ["AS_COMPUTED", "Storage", "StoredPartition", "partition_cp_sat"]
