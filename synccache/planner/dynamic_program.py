"""The chain partition by dynamic programming: exact, in pure Python, milliseconds.

With S[k][i] = the least cost of cutting gaps i..E-1 into exactly k segments,

    S[0][E] = 0        S[k][i] = min over j > i of  cost(i, j) + S[k - 1][j]

so that one table answers every number of segments; the same recursion over bytes says which numbers
of segments fit a budget.

What is preferred, in this order: more segments (fewer live groups absorbed), then less cost (drift
plus `absorbed_price` for each absorbed audio branch), then fewer bytes. Since every step of that
order only gains from a larger choice, more budget or a higher ratio never worsens it.

Source:  SyncCache, arXiv 2606.30849, by the note in reference/policies.md 3.1 and 3.2(c); segments
         with bytes of their own, the limit in bytes and the price are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from operator import add

from synccache.errors import PlanError
from synccache.planner.problem import ChainProblem, assumed_drift
from synccache.planner.quantities import checked_amount, checked_count, counted, format_bytes

_ROUNDING = 1e-12
"""Relative slack when sums of the same drifts, added in another order, are compared."""

_Rows = list[list[float]]


@dataclass(frozen=True, slots=True)
class Partition:
    """A choice of segments: `cuts` are its nodes 0 = b_0 < b_1 < ... < b_n = E.

    Units:  residual_bytes of all guidance branches and the whole history; drift without unit.
    """

    cuts: tuple[int, ...]
    drift: float
    absorbed_count: int
    residual_bytes: int

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The (first, end) nodes of every segment, in execution order."""
        return tuple(pairwise(self.cuts))


def partition(
    problem: ChainProblem,
    *,
    segments: int | None = None,
    max_bytes: int | None = None,
    absorbed_price: float = 0.0,
    exactly: bool = False,
) -> Partition:
    """The best partition into at most (or `exactly`) `segments`, holding at most `max_bytes`.

    Units:   max_bytes limits the residuals alone, of all guidance branches and the whole history.
    Raises:  PlanError where nothing fits, with the smallest number of bytes that would.
    """
    count = checked_limit(problem, segments, exactly=exactly)
    checked_amount(absorbed_price, "absorbed_price")
    if max_bytes is not None:
        checked_count(max_bytes, "max_bytes")
    if not problem.gaps:
        return partition_at(problem, (0,))
    if max_bytes is None:
        costs = _segment_costs(problem, absorbed_price)
        return _cheapest(problem, costs, _least_sums(costs, count), count)
    sizes = _segment_sizes(problem)
    fewest = _least_sums(sizes, count)
    counts = (count,) if exactly else range(count, problem.fewest_segments - 1, -1)
    fitting = next((k for k in counts if fewest[k][0] <= max_bytes), 0)
    if not fitting:
        raise _nothing_fits(int(min(fewest[k][0] for k in counts)), max_bytes, count, exactly)
    return _cheapest_within(problem, fitting, fewest, max_bytes, absorbed_price)


def partitions_by_count(
    problem: ChainProblem, *, absorbed_price: float = 0.0
) -> tuple[Partition, ...]:
    """For every possible number of segments the least costly partition, bytes not limited."""
    costs = _segment_costs(problem, absorbed_price)
    sums = _least_sums(costs, len(problem.gaps))
    counts = range(problem.fewest_segments, len(problem.gaps) + 1) if problem.gaps else ()
    return tuple(_cheapest(problem, costs, sums, count) for count in counts)


def fewest_residual_bytes(problem: ChainProblem, *, segments: int | None = None) -> int:
    """The smallest number of residual bytes of any partition into at most `segments` segments."""
    count = checked_limit(problem, segments, exactly=False)
    if not problem.gaps:
        return 0
    fewest = _least_sums(_segment_sizes(problem), count)
    return int(min(fewest[k][0] for k in range(problem.fewest_segments, count + 1)))


def partition_at(problem: ChainProblem, cuts: Sequence[int]) -> Partition:
    """The partition with these cuts, priced."""
    chosen = tuple(pairwise(cuts))
    return Partition(
        cuts=tuple(cuts),
        drift=sum(problem.segment_drift(first, end) for first, end in chosen),
        absorbed_count=sum(problem.absorbed_count(first, end) for first, end in chosen),
        residual_bytes=sum(problem.residual_bytes(first, end) for first, end in chosen),
    )


def checked_limit(problem: ChainProblem, segments: int | None, *, exactly: bool) -> int:
    """The number of segments meant: all gaps where none is given, never more than there are.

    Raises:  PlanError for a number that no partition can have.
    """
    gap_count = len(problem.gaps)
    if segments is None and exactly:
        raise PlanError("exactly=True needs a number of segments")
    if segments is None:
        return gap_count
    checked_count(segments, "segments", least=min(1, gap_count))
    if segments < problem.fewest_segments:
        raise PlanError(
            f"{counted(segments, 'segment')} cannot be cut from {counted(gap_count, 'gap')}: "
            f"{problem.fewest_segments - 1} of the live groups between them may not be absorbed",
            hint=f"Ask for at least {problem.fewest_segments}.",
        )
    if exactly and segments > gap_count:
        raise PlanError(
            f"exactly {segments} segments cannot be cut from {gap_count} gaps",
            hint=f"Ask for at most {gap_count}.",
        )
    return min(segments, gap_count)


def _nothing_fits(needed: int, max_bytes: int, count: int, exactly: bool) -> PlanError:
    limit = "exactly" if exactly else "at most"
    return PlanError(
        f"the residuals may take {max_bytes} bytes ({format_bytes(max_bytes)}), but {limit} "
        f"{count} segments hold at least {needed} bytes ({format_bytes(needed)})",
        hint=f"Allow {needed} bytes." if not exactly else "Allow more bytes or fewer segments.",
    )


def _segment_costs(problem: ChainProblem, absorbed_price: float) -> _Rows:
    """cost[i][j] = drift + price of the absorbed audio branches; inf where there is no segment."""
    before = [0]
    for live in problem.lives:
        before.append(before[-1] + live.count)
    nodes = len(problem.gaps) + 1

    def cost(first: int, end: int) -> float:
        absorbed = before[end - 1] - before[first]
        drift = problem.drift[first][end] if problem.drift else assumed_drift(absorbed)
        return drift + absorbed_price * absorbed

    return [
        [cost(i, j) if problem.is_segment(i, j) else inf for j in range(nodes)]
        for i in range(nodes)
    ]


def _segment_sizes(problem: ChainProblem) -> _Rows:
    copies = problem.guidance_branches * problem.tensors_per_segment
    return [
        [size * copies if problem.is_segment(i, j) else inf for j, size in enumerate(row)]
        for i, row in enumerate(problem.merged_bytes)
    ]


def _least_sums(rows: _Rows, count: int) -> _Rows:
    """S[k][i] for k in 0..count, of the recursion at the top; inf where no cut exists.

    Entries of integer rows stay integers, so that sums of bytes are exact.
    """
    end = len(rows) - 1
    sums: _Rows = [[inf] * end + [0]]
    for k in range(1, count + 1):
        last = end - k + 2  # a segment may end at last - 1 and leave k - 1 gaps for k - 1 segments
        shorter = sums[-1]
        row = [
            min(map(add, rows[i][i + 1 : last], shorter[i + 1 : last])) for i in range(end - k + 1)
        ]
        sums.append(row + [inf] * k)
    return sums


def _cheapest(problem: ChainProblem, costs: _Rows, sums: _Rows, count: int) -> Partition:
    """Walks the table forward: at each node the first segment that reaches the least sum."""
    cuts = [0]
    for k in range(count, 0, -1):
        first = cuts[-1]
        ends = range(first + 1, len(problem.gaps) - k + 2)
        cuts.append(min(ends, key=lambda end: costs[first][end] + sums[k - 1][end]))
    return partition_at(problem, cuts)


def _cheapest_within(
    problem: ChainProblem, count: int, fewest: _Rows, max_bytes: int, absorbed_price: float
) -> Partition:
    """The least costly partition into exactly `count` segments of at most `max_bytes`."""
    costs = _segment_costs(problem, absorbed_price)
    sums = _least_sums(costs, count)
    if problem.is_of_one_size:
        return _cheapest(problem, costs, sums, count)
    cuts = _cheapest_labels(costs, sums, _segment_sizes(problem), fewest, count, max_bytes)
    return partition_at(problem, cuts)


_Label = tuple[float, float, tuple[int, ...]]
"""Cost so far, bytes so far, cuts so far: a beginning of a partition."""


def _cheapest_labels(
    costs: _Rows, sums: _Rows, sizes: _Rows, fewest: _Rows, count: int, max_bytes: int
) -> tuple[int, ...]:
    """The knapsack form: beginnings that no other beginning beats in both cost and bytes.

    A beginning is dropped as soon as its cheapest end costs more than a partition already known to
    fit, or its smallest end no longer fits. Exact; the number of beginnings kept grows with the
    number of different sizes, which is the number of different sets of streams in a gap.
    """
    node_count = len(costs)
    known = _known_cost(costs, sizes, fewest, count)
    fronts: dict[int, list[_Label]] = {0: [(0.0, 0, (0,))]}
    for left in range(count - 1, -1, -1):
        reached: dict[int, list[_Label]] = {}
        for first, labels in fronts.items():
            for end in range(first + 1, node_count - left):
                room = max_bytes - fewest[left][end] - sizes[first][end]
                afford = (known - sums[left][end]) - costs[first][end]
                reached.setdefault(end, []).extend(
                    (cost + costs[first][end], size + sizes[first][end], (*cuts, end))
                    for cost, size, cuts in labels
                    if size <= room and cost <= afford + _ROUNDING * known
                )
        fronts = {node: _undominated(labels) for node, labels in reached.items()}
    return min(fronts[node_count - 1])[2]


def _known_cost(costs: _Rows, sizes: _Rows, fewest: _Rows, count: int) -> float:
    """The cost of the partition with the fewest bytes, which is known to fit."""
    first, cost = 0, 0.0
    for left in range(count - 1, -1, -1):
        ends = range(first + 1, len(costs) - left)
        end = min(ends, key=lambda j: (sizes[first][j] + fewest[left][j], costs[first][j]))
        first, cost = end, cost + costs[first][end]
    return cost


def _undominated(labels: list[_Label]) -> list[_Label]:
    """The labels that no other label beats in both cost and bytes."""
    kept: list[_Label] = []
    for label in sorted(labels):
        if not kept or label[1] < kept[-1][1]:
            kept.append(label)
    return kept
