"""``SkipRegion``: a region that is computed and held, or replaced by what is held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synccache.fx.held import Held
from synccache.fx.predict import predict, weighted_sum
from synccache.fx.runtime import BranchState, Call
from synccache.planner.storage import AS_COMPUTED, Place, Storage
from synccache.policies.dsl import Predictor


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held of one run of a region.

    Attributes:
        start: place of the run's start among the region's inputs; None: the end itself is held.
        copy_start: the body writes to the memory that it starts from.
        copy_end: the held end's memory is written to later, by the graph or by the caller.
        dtype: of the end.
    """

    start: int | None
    copy_start: bool
    copy_end: bool
    dtype: torch.dtype


class SkipRegion(nn.Module):
    """Computes a region and refreshes what is held of it, or puts what is held in its place.

    ``forward(call, skip, *inputs)``; the first inputs are the starts of runs. Returns the runs' ends:
    one tensor, or a tuple.
    """

    def __init__(
        self, body: nn.Module, index: int, predictor: Predictor, holds: tuple[Holding, ...], *,
        tensors: int, flops: int, visual_flops: int, seconds: float, storage: Storage = AS_COMPUTED,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body, self.index, self.predictor, self.storage = body, index, predictor, storage
        self.holds, self.tensors = holds, tensors
        self.flops, self.visual_flops, self.seconds = flops, visual_flops, seconds

    def forward(self, call: Call, skip: bool, *inputs: Any) -> Any:
        if skip:
            return self._skip(call, inputs)
        starts = [
            None if hold.start is None
            else inputs[hold.start].clone() if hold.copy_start else inputs[hold.start]
            for hold in self.holds
        ]  # fmt: skip
        out = self.body(*inputs)
        if call.meter is not None:
            return out  # nothing will be skipped
        ends = (out,) if len(self.holds) == 1 else out
        keep, recent, step = self.tensors, self.predictor.recent, call.trajectory.step
        for i, (hold, start, end) in enumerate(zip(self.holds, starts, ends)):
            held = call.state.held.setdefault((self.index, i), Held(self.storage))
            held.make_room(keep, recent=recent)  # free before the new one is made
            made = end - start if start is not None else end.clone() if hold.copy_end else end
            held.push(step, made, keep, recent=recent)
        return out

    def _count(self, call: Call) -> None:
        call.skipped = True
        call.state.visual_flops_skipped += self.visual_flops
        call.state.flops_saved += self.flops
        call.state.seconds_saved += self.seconds

    def _skip(self, call: Call, inputs: tuple[Any, ...]) -> Any:
        state, step = call.state, call.trajectory.step
        self._count(call)
        self._prefetch_next(state)
        ends = []
        for i, hold in enumerate(self.holds):
            found = self._predicted(call, state.held[self.index, i], step)
            if hold.start is not None:
                end = inputs[hold.start] + found
                ends.append(end if end.dtype == hold.dtype else end.to(hold.dtype))
            else:
                ends.append(found.clone() if hold.copy_end else found)
        return ends[0] if len(ends) == 1 else tuple(ends)

    def _predicted(self, call: Call, held: Held, step: int) -> Tensor:
        if call.again is not None:
            weights = call.again.payback.weights(tuple(held.steps), call.again.step)
            return weighted_sum(held.tensors(), weights)
        ratio = call.ratios.get(self.index)
        found = predict(
            self.predictor, held.steps, held.tensors(), step, forecasts=held.forecasts, ratio=ratio
        )
        if self.predictor.recent:
            held.push(step, found, self.tensors, recent=self.predictor.recent, forecast=True)
        return found

    def _prefetch_next(self, state: BranchState) -> None:
        """Begins to copy what the next region on the host holds, while this one's is used."""
        if not state.on_host():
            return
        later = (held for key, held in state.held.items() if key[0] > self.index)
        following = next((h for h in later if h.storage.place is Place.HOST), None)
        if following is not None:
            following.prefetch()
