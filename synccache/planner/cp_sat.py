"""The chain partition by OR-Tools CP-SAT, with a choice of storage for every residual.

For a plain chain `partition` is faster and needs no solver; this module says what a chain cannot:
each residual may be kept as it is, in fewer bits, or off the device, each at a price. It also
checks the dynamic program from the outside.

Nothing imports this module unless asked to: OR-Tools takes a while to load.

Integers: bytes are divided by their greatest common divisor, so they stay exact; costs are rounded as
`solver` says, so the cost of n segments is off by at most n / 2 * 1e-9 of the largest cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd

from ortools.sat.python import cp_model

from synccache.errors import PlanError
from synccache.planner.dynamic_program import Partition, checked_limit, partition_at
from synccache.planner.problem import ChainProblem
from synccache.planner.quantities import checked_amount, checked_count, checked_text, format_bytes
from synccache.planner.solver import Proof, Solved, cost_scale, deadline, solve

_BYTES_PER_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A way to keep a residual, and its price.

    Units:  device_share: device bytes for each byte of the residual as computed, in [0, 1];
            drift added for each region kept so; seconds_per_gb on each skipped forward, for each
            10**9 bytes of the residual as computed (conversion, or transfer from the host).
    """

    name: str
    device_share: float
    drift: float = 0.0
    seconds_per_gb: float = 0.0

    def __post_init__(self) -> None:
        checked_text(self.name, "name of a storage")
        checked_amount(self.drift, f"drift of storage {self.name!r}")
        checked_amount(self.seconds_per_gb, f"seconds_per_gb of storage {self.name!r}")
        if checked_amount(self.device_share, f"device_share of {self.name!r}") > 1:
            raise PlanError(f"device_share of {self.name!r} must be at most 1")

    def device_bytes(self, size: int) -> int:
        """Bytes on the device for a residual of `size` bytes, rounded up."""
        return ceil(size * self.device_share)

    def seconds(self, size: int) -> float:
        """Seconds lost on one skipped forward for a residual of `size` bytes."""
        return self.seconds_per_gb * size / _BYTES_PER_GB


AS_COMPUTED = Storage(name="as computed", device_share=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPartition:
    """A partition, how each of its residuals is stored, and how good that is.

    Units:  device_bytes of all guidance branches and the whole history, after storage;
            drift with the storages' own; seconds_lost on one skipped forward.
    """

    partition: Partition
    storages: tuple[Storage, ...]
    device_bytes: int
    drift: float
    seconds_lost: float
    solved: Solved


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
    for each absorbed audio branch, plus `seconds_price` for each second that storage loses. With
    the default storage this is the order of `dynamic_program.partition`, whose last wish, fewer
    bytes at equal cost, is not asked of the solver.

    At the time limit the best found is returned and says so; then even the number of segments may
    be below what fits.

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
    arcs = _arcs(problem, storages, absorbed_price, seconds_price)
    counted = Proof.OPTIMAL
    if max_bytes is not None and not exactly:
        chain = _chain(problem, arcs, max_bytes)
        chain.model.add(chain.size <= count)
        chain.model.maximize(chain.size)
        most = solve(chain.model, until, share=_SHARE_FOR_COUNTING)
        if most is None:
            raise _nothing_fits(count, max_bytes, storages, exactly=exactly)
        count, counted = most.value(chain.size), most.solved.proof
    chain = _chain(problem, arcs, max_bytes)
    chain.model.add(chain.size == count)
    scale = cost_scale(arc.cost for arc in arcs)
    costs = [round(arc.cost * scale) for arc in arcs]
    chain.model.minimize(cp_model.LinearExpr.weighted_sum(chain.taken, costs))
    best = solve(chain.model, until, scale=scale)
    if best is None:
        raise _nothing_fits(count, max_bytes, storages, exactly=exactly)
    solved = best.solved if counted is Proof.OPTIMAL else replace(best.solved, proof=counted)
    chosen = [arc for arc, taken in zip(arcs, chain.taken, strict=True) if best.value(taken)]
    return _stored(problem, chosen, solved)


_SHARE_FOR_COUNTING = 0.5
"""Of the time limit, for finding how many segments fit; the rest is for the least cost."""


@dataclass(frozen=True, slots=True)
class _Arc:
    """A segment kept in one storage; bytes of all branches and the whole history."""

    first: int
    end: int
    storage: Storage
    device_bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class _Chain:
    """A CP-SAT model whose arcs taken form a path over all gaps."""

    model: cp_model.CpModel
    taken: tuple[cp_model.IntVar, ...]
    size: cp_model.LinearExprT


def _arcs(
    problem: ChainProblem,
    storages: Sequence[Storage],
    absorbed_price: float,
    seconds_price: float,
) -> tuple[_Arc, ...]:
    nodes = range(len(problem.gaps) + 1)
    return tuple(
        _Arc(
            first,
            end,
            storage,
            storage.device_bytes(problem.residual_bytes(first, end)),
            problem.segment_drift(first, end)
            + absorbed_price * problem.absorbed_count(first, end)
            + storage.drift
            + seconds_price * _seconds_lost(problem, first, end, storage),
        )
        for first in nodes
        for end in nodes[first + 1 :]
        if problem.is_segment(first, end)
        for storage in storages
    )


def _chain(problem: ChainProblem, arcs: Sequence[_Arc], max_bytes: int | None) -> _Chain:
    model = cp_model.CpModel()
    taken = tuple(model.new_bool_var(f"{arc.first}-{arc.end} {arc.storage.name}") for arc in arcs)
    for node in range(len(problem.gaps) + 1):
        leaving = sum(x for arc, x in zip(arcs, taken, strict=True) if arc.first == node)
        coming = sum(x for arc, x in zip(arcs, taken, strict=True) if arc.end == node)
        if node == 0:
            model.add(leaving == 1)
        elif node == len(problem.gaps):
            model.add(coming == 1)
        else:
            model.add(leaving == coming)
    if max_bytes is not None:
        unit = gcd(*(arc.device_bytes for arc in arcs)) or 1
        held = sum(arc.device_bytes // unit * x for arc, x in zip(arcs, taken, strict=True))
        model.add(held <= max_bytes // unit)
    return _Chain(model, taken, sum(taken))


def _seconds_lost(problem: ChainProblem, first: int, end: int, storage: Storage) -> float:
    """On one skipped forward of one guidance branch."""
    return storage.seconds(problem.held_bytes(first, end) * problem.tensors_per_segment)


def _stored(problem: ChainProblem, chosen: Sequence[_Arc], solved: Solved) -> StoredPartition:
    plain = partition_at(problem, (0, *(arc.end for arc in chosen)))
    return StoredPartition(
        partition=plain,
        storages=tuple(arc.storage for arc in chosen),
        device_bytes=sum(arc.device_bytes for arc in chosen),
        drift=plain.drift + sum(arc.storage.drift for arc in chosen),
        seconds_lost=sum(_seconds_lost(problem, arc.first, arc.end, arc.storage) for arc in chosen),
        solved=solved,
    )


def _nothing_fits(
    count: int, max_bytes: int | None, storages: Sequence[Storage], *, exactly: bool
) -> PlanError:
    assert max_bytes is not None, "a chain without a limit in bytes always has a partition"
    names = ", ".join(storage.name for storage in storages)
    limit = "exactly" if exactly else "at most"
    return PlanError(
        f"no partition into {limit} {count} segments fits {max_bytes} bytes "
        f"({format_bytes(max_bytes)}) with storage {names}",
        hint="Allow more bytes; fewest_residual_bytes says how many at least.",
    )
