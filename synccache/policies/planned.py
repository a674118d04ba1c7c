"""Planned: the computed steps, the weights of every skipped one and the payback are constants.

Probe:   none: everything was measured by a calibration, so no device is waited for.
Error:   what the planner minimised: the signed sum of prediction errors between computed steps, of
         which the payback returns a share at the next computed step.
Source:  ours; figures in docs/benchmarks.md. The ideas of linear multistep methods and of the
         corrector of UniPC (arXiv 2302.04867), inside a cached trajectory.
"""

from synccache.policies.dsl import Fitted, Payback, Policy, Rule, Skip, Steps, branches
from synccache.policies.fitted import Planned


def planned(plan: Planned, *, skip: Skip = branches) -> Policy:
    return Policy(
        "planned",
        (Rule(skip, Steps(plan.letters, plan.timesteps), Fitted(plan.coefficients)),),
        payback=Payback(plan.strength, plan.degree),
    )
