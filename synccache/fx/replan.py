"""A compiled form planned anew: for more guidance branches, or with the drift that was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from synccache.fx.planning import border_shape
from synccache.fx.runtime import Call
from synccache.fx.variant import Variant
from synccache.fx.warm_up import WarmUpMeter, is_warm_up
from synccache.fx.windows import branches_held

if TYPE_CHECKING:
    from synccache.fx.cached_model import CachedModel


def replanned(compiled: CachedModel, call: Call, variant: Variant) -> Variant:
    """The variant for as many guidance branches as there are now, and with drift as it is known."""
    window = compiled._window.get()
    branches = branches_held(call, window)
    if branches > variant.guidance_branches:
        variant = planned_again(compiled, call, variant, branches)
    if window is not None:
        return variant  # windows that move see no drift of one place: the plan rests on the assumed
    return warmed_up(compiled, call, variant)


def warmed_up(compiled: CachedModel, call: Call, variant: Variant) -> Variant:
    """At the first call of a step: begins or ends measuring drift; at the end plans again."""
    run = call.trajectory
    if variant.warm_up is not None and run.calls_this_step == 1:
        warm = variant.warm_up
        if not is_warm_up(variant.matches, run):
            variant = _planned_with(compiled, variant, run.warm_up)
            run.end_warm_up(warm.emitted.module, variant.emitted.module)
        elif run.warm_up is None:
            run.warm_up = WarmUpMeter(len(warm.layout.regions), warm.predictor)
    if run.warm_up is not None:
        run.warm_up.watching = call.key == run.leader
    return variant


def _planned_with(compiled: CachedModel, variant: Variant, meter: WarmUpMeter | None) -> Variant:
    """The variant that rests on what was measured, if anything was."""
    if meter is None or not meter.steps:
        fresh = replace(variant, warm_up=None)
    else:
        warm = variant.warm_up
        assert warm is not None
        labels = tuple(region.label for region in warm.layout.regions)
        drift = meter.measured(labels, border_shape(warm.layout))
        compiled.__dict__["_request"] = replace(compiled._request, drift=drift)
        fresh = compiled._build(variant.captured, variant.guidance_branches)
    compiled._variants.replace(variant, fresh)
    return fresh


def planned_again(compiled: CachedModel, call: Call, variant: Variant, branches: int) -> Variant:
    """The variant for more guidance branches: caches multiply, so the plan may change.

    Windows of a clip count as branches; which inputs they share is not asked.
    """
    states = call.trajectory.branches.values()
    inputs = [state.inputs for state in states] if branches == len(states) else []
    compiled.__dict__["_request"] = replace(compiled._request, sharing=_sharing(inputs))
    fresh = compiled._build(variant.captured, branches)
    if variant.plan is None or fresh.plan is None or variant.plan.choices == fresh.plan.choices:
        fresh = variant.with_plan_of(fresh)
    compiled._variants.replace(variant, fresh)
    return fresh


def _sharing(branches: list[tuple[TensorWeakRef, ...]]) -> tuple[tuple[int, ...], ...]:
    """For each branch and input tensor, the first branch that was given the same tensor."""
    found = [[reference() for reference in inputs] for inputs in branches]
    return tuple(
        tuple(
            next(
                (b for b in range(branch) if tensor is not None and _at(found[b], i) is tensor),
                branch,
            )
            for i, tensor in enumerate(inputs)
        )
        for branch, inputs in enumerate(found)
    )


def _at(tensors: list[Tensor | None], index: int) -> Tensor | None:
    return tensors[index] if index < len(tensors) else None
