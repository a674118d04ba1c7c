"""What a caller says of a trajectory before it begins, checked."""

from __future__ import annotations

from collections.abc import Sequence

from synccache.errors import PlanError, StateError
from synccache.fx.measured_on import check_run
from synccache.fx.progress import positive
from synccache.fx.request import Request
from synccache.fx.runtime import Trajectory
from synccache.planner.residual_gram import checked_sigmas
from synccache.planner.samplers import Sampler
from synccache.policies.prospects import check_prospects


def begun(
    request: Request,
    steps: int | None,
    branches: int | None,
    sigmas: Sequence[float] | None,
    sampler: Sampler | None,
) -> Trajectory:
    """A trajectory before its first step.

    Raises:
        StateError: for what is no number of steps, no falling row of levels of that length, or no
            sampler whose recursion is known; for so few steps that the policy could skip nothing, or
            a run other than those that its numbers were measured in.
    """
    positive(steps, "begin(steps=...)")
    positive(branches, "begin(branches=...)")
    policy = request.policy
    if sampler is not None and not isinstance(sampler, Sampler):
        raise StateError(
            f"begin(sampler=...) takes a Sampler, got {sampler!r}.",
            hint=f"Known are {', '.join(map(str, Sampler))}; plan with payback 0 for others.",
        )
    if sigmas is None:
        if steps is not None:
            check_prospects(policy, steps)
        return _checked(request, Trajectory(steps=steps, calls_a_step=branches), sampler)
    try:
        levels = checked_sigmas(sigmas, len(sigmas) - 1 if steps is None else steps)
    except PlanError as problem:
        raise StateError(problem.message, where="begin", hint=problem.hint) from problem
    check_prospects(policy, len(levels) - 1)
    run = Trajectory(steps=len(levels) - 1, calls_a_step=branches, sigmas=levels)
    return _checked(request, run, sampler)


def _checked(request: Request, run: Trajectory, sampler: Sampler | None) -> Trajectory:
    if sampler is not None:
        run.sampler, run.said_sampler = sampler, sampler.value
    check_run(request, (), run)
    return run
