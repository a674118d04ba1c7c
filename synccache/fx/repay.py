"""One call of a compiled model with payback: the emitted graph makes skipped steps again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from synccache.fx.payback import Again, check_payback, pay_back
from synccache.fx.runtime import Call
from synccache.fx.variant import Variant
from synccache.policies.dsl import Policy


def paid_back(
    policy: Policy, call: Call, variant: Variant, inputs: list[Tensor], outputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The outputs with what the skipped steps before this one got wrong given back.

    Making a step again is counted as work: its forward less the regions that it skips.
    """
    payback = policy.payback
    if payback is None or not payback.strength or call.meter is not None:
        return outputs
    trajectory = call.trajectory
    check_payback(policy, trajectory, len(outputs))

    def again(past: Again, stored: list[Tensor]) -> Tensor:
        call.state.visual_flops_skipped -= variant.visual_flops
        call.state.flops_saved -= variant.flops
        call.state.seconds_saved -= variant.seconds
        (found,) = variant.emitted.module(replace(call, again=past), *stored)
        return found

    paid = pay_back(
        call.state.owed, payback, trajectory.step, call.skipped, tuple(inputs), outputs[0],
        sigmas=trajectory.sigmas, sampler=trajectory.sampler, again=again,
    )  # fmt: skip
    trajectory.forget_dead_values()
    return (paid,)
