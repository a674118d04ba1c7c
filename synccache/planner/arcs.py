"""Every way to keep every segment of a chain: what the solver and the planner's errors choose from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synccache.planner.problem import ChainProblem, LowerOrder
from synccache.planner.storage import AS_COMPUTED, STAGED, Place, Storage

ASSUMED_LOWER_ORDER = 1.0
"""Drift of a lower order where none was measured: as one absorbed audio branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arc:
    """A segment, kept in one storage for one predictor.

    Units:  one_branch_bytes in the stored form, whole history; device_bytes and host_bytes of all
            guidance branches; drift with what storage adds; seconds_lost on one skipped forward.
    """

    first: int
    end: int
    storage: Storage
    predictor: str
    tensors: int
    one_branch_bytes: int
    device_bytes: int
    host_bytes: int
    drift: float
    seconds_lost: float


def arcs_of(problem: ChainProblem, storages: Sequence[Storage] = (AS_COMPUTED,)) -> tuple[Arc, ...]:
    """Every segment in every storage, with the policy's predictor and those of lower order."""
    nodes = range(len(problem.gaps) + 1)
    return tuple(
        arc_of(problem, first, end, storage, lower)
        for first in nodes
        for end in nodes[first + 1 :]
        if problem.is_segment(first, end)
        for storage in storages
        for lower in (None, *problem.lower_orders)
    )


def arc_of(
    problem: ChainProblem, first: int, end: int, storage: Storage, lower: LowerOrder | None = None
) -> Arc:
    """One segment, priced."""
    tensors = problem.tensors_per_segment if lower is None else lower.tensors
    one_branch = problem.held_bytes(first, end, storage.form) * tensors
    branches = problem.guidance_branches
    away = storage.place is not Place.DEVICE
    return Arc(
        first=first,
        end=end,
        storage=storage,
        predictor=problem.predictor if lower is None else lower.predictor,
        tensors=tensors,
        one_branch_bytes=one_branch,
        device_bytes=one_branch * storage.copies(branches),
        host_bytes=one_branch * branches if away else 0,
        drift=_drift(problem, first, end, lower) + storage.drift * problem.drift_steps,
        seconds_lost=storage.seconds(problem.held_bytes(first, end) * tensors),
    )


def _drift(problem: ChainProblem, first: int, end: int, lower: LowerOrder | None) -> float:
    if lower is None:
        return problem.segment_drift(first, end)
    if lower.drift is None:
        return problem.segment_drift(first, end) + ASSUMED_LOWER_ORDER
    return lower.drift[first][end]


def staged_bytes(chosen: Sequence[Arc]) -> int:
    """Device bytes for what is copied back from the host: the region in use and the next."""
    hosted = [arc.one_branch_bytes for arc in chosen if arc.storage.place is Place.HOST]
    return STAGED * max(hosted, default=0)


def fewest_bytes(
    problem: ChainProblem, storages: Sequence[Storage] = (AS_COMPUTED,)
) -> dict[int, int]:
    """Number of segments -> the fewest device bytes of any such partition, staging included.

    For each size that copies back from the host may have, the least sum over segments of those that
    fit it; a recursion over gaps, as in `dynamic_program`.
    """
    arcs = arcs_of(problem, storages)
    hosted = [arc.one_branch_bytes for arc in arcs if arc.storage.place is Place.HOST]
    found: dict[int, int] = {}
    for largest in sorted({0, *hosted}):
        allowed = [
            a for a in arcs if a.storage.place is not Place.HOST or a.one_branch_bytes <= largest
        ]
        for count, least in _least_bytes(len(problem.gaps), allowed).items():
            size = least + STAGED * largest
            found[count] = min(size, found.get(count, size))
    return found


def _least_bytes(gap_count: int, arcs: Sequence[Arc]) -> dict[int, int]:
    best: list[dict[int, int]] = [{} for _ in range(gap_count + 1)]  # node -> segments -> bytes
    best[0][0] = 0
    cheapest: dict[tuple[int, int], int] = {}
    for arc in arcs:
        key = (arc.first, arc.end)
        cheapest[key] = min(arc.device_bytes, cheapest.get(key, arc.device_bytes))
    for (first, end), size in sorted(cheapest.items()):
        for count, before in best[first].items():
            total = before + size
            best[end][count + 1] = min(total, best[end].get(count + 1, total))
    return best[gap_count]
