"""The chain problem: numbers in, no tensors, no model, no policy.

A policy leaves *gaps* that may be skipped, in execution order, with *live* groups (audio branches)
computed on every step between them:

    node 0   gap 0   live 0   gap 1   live 1   gap 2   ...   gap E-1   node E

A *segment* (i, j) is gaps i..j-1 skipped together: one held residual, which also absorbs the live
groups i..j-2 that lie inside it. They are then no longer refreshed on skipped steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, TypeVar

from synccache.errors import PlanError
from synccache.planner.quantities import (
    checked_amount,
    checked_count,
    checked_ratio,
    checked_text,
    decimal,
)
from synccache.planner.storage import Form

Number = TypeVar("Number", int, float)
Table: TypeAlias = tuple[tuple[Number, ...], ...]


MEASURED = "measured on the recorded forward"
"""Where seconds come from, unless they are estimated; then the text names the device and its rates."""


class DriftSource(StrEnum):
    """Where the drift numbers come from; printed in every plan."""

    ASSUMED = "assumed"
    """Nothing was measured; `assumed_drift` stands in, and no drift is printed."""
    WARM_UP = "warm-up"
    """Measured on the warm-up steps of a first trajectory."""
    CALIBRATION = "calibration"
    """Measured over a whole uncached trajectory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A run of branches that may be skipped.

    Units:  seconds and flops of one forward of one guidance branch, saved when the gap is skipped;
            held_bytes of its residual alone: one guidance branch, one held tensor per stream.
    """

    name: str
    labels: str
    seconds: float
    flops: int
    held_bytes: int

    def __post_init__(self) -> None:
        checked_text(self.name, "the name of a gap")
        checked_text(self.labels, f"labels of gap {self.name!r}")
        checked_amount(self.seconds, f"seconds of gap {self.name!r}")
        checked_count(self.flops, f"flops of gap {self.name!r}")
        checked_count(self.held_bytes, f"held_bytes of gap {self.name!r}", least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A group of branches between two gaps that is computed on every step.

    Units:  count of audio branches in the group (0 for one that is live for another reason);
            seconds, flops and bytes of one forward of one guidance branch.
    """

    name: str
    count: int
    seconds: float
    flops: int
    bytes: int
    absorbable: bool = True
    """Whether the gaps on both sides may be joined; False keeps a border here in every plan."""

    def __post_init__(self) -> None:
        checked_text(self.name, "the name of a live group")
        checked_count(self.count, f"count of live group {self.name!r}")
        checked_amount(self.seconds, f"seconds of live group {self.name!r}")
        checked_count(self.flops, f"flops of live group {self.name!r}")
        checked_count(self.bytes, f"bytes of live group {self.name!r}")
        if not isinstance(self.absorbable, bool):
            raise PlanError(f"absorbable of live group {self.name!r} must be True or False")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerOrder:
    """A predictor that holds fewer tensors than the policy's own, and the drift that it has.

    Units:  drift as in ChainProblem; None where nothing was measured (then each segment counts as if
            it absorbed one more audio branch, so that the policy's own is kept where it fits).
    """

    predictor: str
    tensors: int
    drift: Table[float] | None = None

    def __post_init__(self) -> None:
        checked_text(self.predictor, "predictor of a lower order")
        checked_count(self.tensors, f"tensors of {self.predictor!r}", least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainProblem:
    """Gaps, the live groups between them, and what memory and drift each choice costs.

    `merged_bytes[i][j]` and `drift[i][j]`, for nodes 0 <= i < j <= len(gaps), belong to the segment
    of gaps i..j-1; every other entry is 0. `segment_table` builds both. For one stream the merged
    bytes are one hidden state whatever the length.

    Units:  bytes on the model's device. `merged_bytes`, like `Gap.held_bytes`, is for one guidance
            branch and one held tensor; `guidance_branches` and `tensors_per_segment` multiply it.
            Drift is a relative L1 change summed over steps, without unit.
    """

    gaps: tuple[Gap, ...]
    lives: tuple[Live, ...]
    live_total: int
    """L_a: audio branches of the whole model, also before the first gap and after the last."""
    merged_bytes: Table[int]
    weights_bytes: int
    activation_bytes: int
    guidance_branches: int
    dtype: str
    """What the held residuals are stored as, for the printed plan: "bfloat16"."""
    predictor: str
    """How a held residual is used, for the printed plan: "hold residual"."""
    tensors_per_segment: int = 1
    """History of the predictor: 1 for reuse, 2 for linear prediction, ..."""
    fixed_bytes_per_branch: int = 0
    """Kept for each guidance branch whatever the plan: hoisted step-invariant values."""
    shared_bytes: int = 0
    """Kept once, whatever the plan: probe tensors and masks."""
    drift: Table[float] | None = None
    drift_source: DriftSource = DriftSource.ASSUMED
    drift_steps: int = 1
    """Changes from step to step that the drift is summed over: storage loses as often."""
    bytes_as: tuple[tuple[Form, Table[int]], ...] = ()
    """`merged_bytes` in other forms than as computed; only forms named here can be chosen."""
    lower_orders: tuple[LowerOrder, ...] = ()
    """Predictors of less history that a plan may use where the policy's own does not fit."""
    seconds_source: str = MEASURED

    def __post_init__(self) -> None:
        _check_groups(self)
        checked_text(self.seconds_source, "seconds_source")
        checked_count(self.live_total, "live_total", least=sum(live.count for live in self.lives))
        checked_count(self.weights_bytes, "weights_bytes")
        checked_count(self.activation_bytes, "activation_bytes")
        checked_count(self.guidance_branches, "guidance_branches", least=1)
        checked_text(self.dtype, "dtype")
        checked_text(self.predictor, "predictor")
        checked_count(self.tensors_per_segment, "tensors_per_segment", least=1)
        checked_count(self.fixed_bytes_per_branch, "fixed_bytes_per_branch")
        checked_count(self.shared_bytes, "shared_bytes")
        checked_count(self.drift_steps, "drift_steps", least=1)
        _check_merged_bytes(self)
        for form, table in self.bytes_as:
            _check_shape(self, table, f"bytes_as {form.value}")
        _check_drift(self)
        for lower in self.lower_orders:
            _check_lower(self, lower)

    def held_bytes(self, first: int, end: int, form: Form = Form.AS_COMPUTED) -> int:
        """Bytes of one held tensor of segment (first, end) in a form, for one guidance branch.

        Raises:  PlanError for a form that the problem has no bytes for.
        """
        if form is Form.AS_COMPUTED:
            return self.merged_bytes[first][end]
        tables = dict(self.bytes_as)
        if form not in tables:
            raise PlanError(
                f"the problem does not say how many bytes its residuals take as {form.value}",
                hint="Give bytes_as a table for this form.",
            )
        return tables[form][first][end]

    def residual_bytes(self, first: int, end: int) -> int:
        """Bytes that choosing segment (first, end) costs: all guidance branches, whole history."""
        copies = self.guidance_branches * self.tensors_per_segment
        return self.merged_bytes[first][end] * copies

    def is_segment(self, first: int, end: int) -> bool:
        """Whether gaps first..end-1 may be skipped as one."""
        return first < end and all(live.absorbable for live in self.lives[first : end - 1])

    @property
    def is_of_one_size(self) -> bool:
        """Whether every segment holds the same number of bytes, as with a single stream."""
        return len({size for row in self.merged_bytes for size in row if size}) <= 1

    @property
    def fewest_segments(self) -> int:
        """The number of segments if everything absorbable is absorbed; 0 without gaps."""
        borders = sum(not live.absorbable for live in self.lives)
        return borders + 1 if self.gaps else 0

    def absorbed(self, first: int, end: int) -> tuple[Live, ...]:
        """The live groups inside segment (first, end), no longer refreshed if it is chosen."""
        return self.lives[first : end - 1]

    def absorbed_count(self, first: int, end: int) -> int:
        """Audio branches absorbed by segment (first, end)."""
        return sum(live.count for live in self.lives[first : end - 1])

    def segment_drift(self, first: int, end: int) -> float:
        """gamma(first, end): as measured, or `assumed_drift` if nothing was."""
        if self.drift is None:
            return assumed_drift(self.absorbed_count(first, end))
        return self.drift[first][end]

    def segment_seconds(self, first: int, end: int) -> float:
        """Seconds one skipped forward saves by segment (first, end), absorbed groups included."""
        skipped = sum(gap.seconds for gap in self.gaps[first:end])
        return skipped + sum(live.seconds for live in self.absorbed(first, end))

    @property
    def invariant_bytes(self) -> int:
        """Bytes of the step-invariant values of all guidance branches."""
        return self.fixed_bytes_per_branch * self.guidance_branches

    @property
    def bytes_without_residuals(self) -> int:
        """Everything on the device except the held residuals."""
        model = self.weights_bytes + self.activation_bytes
        return model + self.invariant_bytes + self.shared_bytes


def assumed_drift(absorbed_count: int) -> float:
    """1 + 2 + ... + n for a segment that absorbs n audio branches, where nothing was measured.

    A prior, not a finding: fewer absorbed branches are better, and so are evenly spread ones, since
    what follows an absorbed branch in the same residual goes stale with it. Counting each branch
    alike would not care whether one segment absorbs them all.

    >>> [assumed_drift(count) for count in range(4)]
    [0.0, 1.0, 3.0, 6.0]
    """
    return absorbed_count * (absorbed_count + 1) / 2


def segment_table(gap_count: int, value: Callable[[int, int], Number]) -> Table[Number]:
    """value(first, end) for every segment of `gap_count` gaps, in the layout of ChainProblem.

    >>> segment_table(2, lambda first, end: 10 * first + end)
    ((0, 1, 2), (0, 0, 12), (0, 0, 0))
    """
    nodes = range(gap_count + 1)
    return tuple(tuple(value(first, end) if first < end else 0 for end in nodes) for first in nodes)


def segments_for_ratio(problem: ChainProblem, cache_ratio: float) -> int:
    """n = max(1, min(E, floor(L_a * ratio))): how many segments a cache ratio stands for.

    At least `fewest_segments`, so 0 where there is no gap at all. The ratio is taken as the decimal
    that it prints as, so that 100 branches at 0.29 are 29 and not 28.

    Source:  SyncCache, arXiv 2606.30849, by the note in reference/policies.md 3.1; that n counts
             segments, and the limits 1 and E, are our reading (3.2c).
    """
    wanted = int(problem.live_total * decimal(checked_ratio(cache_ratio)))
    return min(len(problem.gaps), max(problem.fewest_segments, wanted))


def _check_groups(problem: ChainProblem) -> None:
    for gap in problem.gaps:
        if not isinstance(gap, Gap):
            raise PlanError(f"gaps must hold Gap objects, not {gap!r}")
    for live in problem.lives:
        if not isinstance(live, Live):
            raise PlanError(f"lives must hold Live objects, not {live!r}")
    between = max(0, len(problem.gaps) - 1)
    if len(problem.lives) != between:
        raise PlanError(
            f"{len(problem.gaps)} gaps have {between} live groups between them, "
            f"but {len(problem.lives)} were given",
            hint="Count live groups before the first gap and after the last in live_total only.",
        )


def _check_shape(problem: ChainProblem, table: Table[int] | Table[float], name: str) -> None:
    nodes = len(problem.gaps) + 1
    lengths = [len(row) for row in table]
    if lengths != [nodes] * nodes:
        raise PlanError(
            f"{name} must be {nodes} rows of {nodes} for {nodes - 1} gaps, not rows of {lengths}",
            hint="Build it with segment_table(len(gaps), ...).",
        )


def _check_merged_bytes(problem: ChainProblem) -> None:
    _check_shape(problem, problem.merged_bytes, "merged_bytes")
    for first, row in enumerate(problem.merged_bytes):
        for end, size in enumerate(row):
            name = f"merged_bytes[{first}][{end}]"
            checked_count(size, name, least=int(first < end))
            if first >= end and size:
                raise PlanError(f"{name} must be 0, since {first} to {end} is no segment")
    for index, gap in enumerate(problem.gaps):
        merged = problem.merged_bytes[index][index + 1]
        if merged != gap.held_bytes:
            raise PlanError(
                f"gap {gap.name!r} alone holds {gap.held_bytes} bytes, "
                f"but merged_bytes[{index}][{index + 1}] is {merged}"
            )


def _check_lower(problem: ChainProblem, lower: LowerOrder) -> None:
    if lower.tensors >= problem.tensors_per_segment:
        raise PlanError(
            f"{lower.predictor!r} holds {lower.tensors} tensors, not fewer than the "
            f"{problem.tensors_per_segment} of {problem.predictor!r}"
        )
    if (lower.drift is None) != (problem.drift is None):
        raise PlanError(f"drift is measured for both {lower.predictor!r} and the policy's or none")
    if lower.drift is not None:
        _check_shape(problem, lower.drift, f"drift of {lower.predictor!r}")


def _check_drift(problem: ChainProblem) -> None:
    source = problem.drift_source
    if not isinstance(source, DriftSource):
        raise PlanError(f"drift_source must be a DriftSource, not {source!r}")
    if (problem.drift is None) != (source is DriftSource.ASSUMED):
        given = "no drift" if problem.drift is None else "a drift table"
        raise PlanError(
            f"{given} was given with drift_source {source.value!r}",
            hint="Measured drift names its source; without drift the source is ASSUMED.",
        )
    if problem.drift is None:
        return
    _check_shape(problem, problem.drift, "drift")
    for first, row in enumerate(problem.drift):
        for end, drift in enumerate(row):
            checked_amount(drift, f"drift[{first}][{end}]")
            if first >= end and drift:
                raise PlanError(
                    f"drift[{first}][{end}] must be 0, since {first} to {end} is no segment"
                )
