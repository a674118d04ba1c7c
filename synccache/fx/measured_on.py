"""Whether measured numbers may be used: on this model when it is matched, in this run step by step.

What a run does not say agrees with anything: timesteps are compared where they are known without
waiting for the device, the sampler where ``begin(sampler=...)`` said it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from synccache.errors import PlanError, StateError
from synccache.fx.payback import TOLERANCE, check_steps
from synccache.fx.planning import digest_of
from synccache.fx.request import Request
from synccache.planner.fingerprint import Fingerprint
from synccache.policies.dsl import MeasuredOn, Policy, Rule

_AGAIN = "Measure again on the loop that you sample with: synccache.calibrate(...)."


def check_model(policy: Policy, model: nn.Module, resolution: tuple[int, ...] = ()) -> None:
    """Nothing, if the policy's numbers were measured on this model; () is not known yet.

    Raises:  PlanError naming all that differs.
    """
    for found in policy.measured_on:
        there = _fingerprint(found, policy, found.resolution if resolution else ())
        here = Fingerprint(
            model=type(model).__name__, parameters=digest_of(model), resolution=resolution,
            policy=policy.name,
        )  # fmt: skip
        wrong = there.differences(here)
        if wrong:
            raise PlanError(
                f"its numbers were measured on something else: {'; '.join(wrong)}.",
                where=f"{policy.name} on {type(model).__name__}", hint=_AGAIN,
            )  # fmt: skip


def check_run(request: Request, rules: Sequence[Rule], run: Any) -> None:
    """Nothing, if this step of a trajectory is one that was planned for and measured on.

    Raises:  StateError naming all that differs.
    """
    check_steps(request.policy.name, rules, run)
    if run.calls_this_step > 1:
        return
    for what, found in _origins(request):
        wrong = _different(found, run)
        if wrong:
            raise StateError(
                f"{what} was measured in other runs: {'; '.join(wrong)}.",
                where=request.policy.name, hint=_AGAIN,
            )  # fmt: skip


def _different(found: MeasuredOn, run: Any) -> list[str]:
    step, level, steps = run.step, run.level, found.steps
    there = _run_fingerprint(found.steps, found.sampler)
    wrong = list(there.differences(_run_fingerprint(run.steps, run.said_sampler)))
    if steps is not None and not wrong and step >= steps:
        wrong.append(f"steps: {steps} there, step {step + 1} here")
    if (
        level is None
        or not isinstance(level.timestep, float)
        or not 0 <= step < len(found.timesteps)
    ):
        return wrong
    expected = found.timesteps[step]
    if abs(level.timestep - expected) > TOLERANCE * abs(found.timesteps[0]):
        wrong.append(f"timestep of step {step + 1}: {expected:g} there, {level.timestep:g} here")
    return wrong


def _origins(request: Request) -> Iterator[tuple[str, MeasuredOn]]:
    """What the numbers in use were measured on, each with its name."""
    for found in request.policy.measured_on:
        yield "the policy's table", found
    known = request.calibration
    if known is not None:
        timesteps = known.residuals.timesteps if known.residuals is not None else ()
        yield "the calibration", MeasuredOn(
            known.model, known.parameters or "unknown", known.shape, known.steps, known.sampler,
            timesteps if len(timesteps) == known.steps else (),
        )  # fmt: skip


def _fingerprint(found: MeasuredOn, policy: Policy, resolution: tuple[int, ...]) -> Fingerprint:
    return Fingerprint(
        model=found.model, parameters=found.parameters, resolution=resolution, policy=policy.name,
    )  # fmt: skip


def _run_fingerprint(steps: int | None, sampler: str) -> Fingerprint:
    """Of what a run can differ in; the model was compared when it was matched."""
    return Fingerprint(
        model="-", parameters="-", resolution=(), policy="-", sampler=sampler, steps=steps
    )
