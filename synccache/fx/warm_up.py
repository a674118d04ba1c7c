"""Drift without a calibration run: measured while the first trajectory warms up.

The steps on which the policy cannot skip compute everything anyway. On these the graph is run with
every region apart and nothing held; ``WarmUpMeter`` compares, on a strided sample of the numbers at
each region border, what the predictor in use would have put there. Then the plan is made again.

Memory: at most MEMORY_SHARE of one hidden state for each border, for one guidance branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor

from synccache.fx.match import RuleMatch
from synccache.fx.progress import Counters
from synccache.fx.runtime import Trajectory
from synccache.planner.problem import Table
from synccache.policies.dsl import Predictor
from synccache.policies.evaluate import Memory, Now

MEMORY_SHARE = 0.02
_SIDES = 2  # a border is the end of one region and the start of the next
_AHEAD = 1.5  # the next step may fall this much further in noise than the last one did


@dataclass(frozen=True, slots=True)
class MeasuredDrift:
    """Tables as in ``ChainProblem.drift``, and what they were measured on.

    ``own`` with the policy's predictor, ``hold`` with reuse of the last computed residual; both are
    sums over ``steps`` steps.
    """

    regions: tuple[str, ...]
    shape: tuple[int, ...]
    steps: int
    own: Table[float]
    hold: Table[float]


@dataclass(slots=True)
class WarmUpMeter:
    """Sums of relative errors, by segment. ``past`` holds samples of the last steps, newest last."""

    regions: int
    predictor: Predictor
    watching: bool = True  # False while another guidance branch than the leader runs
    steps: int = 0
    past: list[dict[tuple[str, int], list[Tensor]]] = field(default_factory=list)
    now: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    sums: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    @property
    def history(self) -> int:
        """How many past steps a prediction is made from."""
        return self.predictor.anchors

    @property
    def stride(self) -> int:
        """Every how many numbers one is kept: past steps and the present one share the memory."""
        return ceil(_SIDES * (self.history + 1) / MEMORY_SHARE) + 1

    def see(self, side: str, region: int, value: Tensor) -> None:
        """A stream's value where a region begins ("start") or ends ("end")."""
        if self.watching:
            self.now.setdefault((side, region), []).append(_sample(value.detach(), self.stride))

    def finish_call(self, branch: object) -> None:
        """Compares with what the steps before predict; one device sync."""
        if not self.watching:
            return
        now, self.now = self.now, {}
        past = self.past[-self.history :]
        if len(past) == self.history:
            self._compare(now, past)
        self.past = [*past, now][-self.history :]

    def _compare(
        self,
        now: dict[tuple[str, int], list[Tensor]],
        past: Sequence[dict[tuple[str, int], list[Tensor]]],
    ) -> None:
        weights = self.predictor.weights(tuple(range(self.history)), self.history)
        keys = [(i, j) for i in range(self.regions) for j in range(i + 1, self.regions + 1)]
        errors = []
        for first, end in keys:
            new = _residuals(now, first, end)
            old = [_residuals(step, first, end) for step in past]
            size = _size(old[-1])
            own = [sum(w * step[i] for w, step in zip(weights, old)) for i in range(len(new))]
            errors.append(_size([a - b for a, b in zip(new, own)]) / size)
            errors.append(_size([a - b for a, b in zip(new, old[-1])]) / size)
        found = torch.stack(errors).tolist()
        for key, own, hold in zip(keys, found[::2], found[1::2]):
            before = self.sums.get(key, (0.0, 0.0))
            self.sums[key] = before[0] + own, before[1] + hold
        self.steps += 1

    def bytes_held(self) -> int:
        """Bytes of all samples."""
        samples = [t for step in (*self.past, self.now) for ts in step.values() for t in ts]
        return sum(t.untyped_storage().nbytes() for t in samples)

    def measured(self, regions: tuple[str, ...], shape: tuple[int, ...]) -> MeasuredDrift:
        """The sums as tables."""
        nodes = range(self.regions + 1)
        own, hold = (
            tuple(tuple(self.sums.get((i, j), (0.0, 0.0))[which] for j in nodes) for i in nodes)
            for which in (0, 1)
        )
        return MeasuredDrift(regions, shape, self.steps, own, hold)


def _sample(value: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th number, in reading order, in memory of its own.

    The stride is odd and channels are an even number, so that all channels and tokens come in turn.
    """
    if value.is_contiguous():
        return value.reshape(-1)[::stride].clone()
    at = torch.arange(0, value.numel(), stride, device=value.device)
    return value[torch.unravel_index(at, value.shape)]


def _residuals(step: dict[tuple[str, int], list[Tensor]], first: int, end: int) -> list[Tensor]:
    pairs = zip(step["start", first], step["end", end - 1])
    return [end.float() - start.float() for start, end in pairs if start.shape == end.shape]


def _size(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.abs().sum() for t in tensors]).sum()


def is_warm_up(matches: Sequence[RuleMatch], trajectory: Trajectory) -> bool:
    """Whether no rule can skip anything on this step, nor, as far as can be told, on the next.

    Only what needs no measurement is asked: counters and the noise level. The next step is included
    because on the last step of the warm-up the regions of the plan have to be computed and held.
    """
    return all(
        Now(Counters(trajectory, ahead=ahead, falls=ahead * _AHEAD), {}, Memory()).holds(
            found.rule.when
        )
        is False
        for found in matches
        for ahead in (0, 1)
    )
