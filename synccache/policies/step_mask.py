"""Step mask: compute on C, skip on S, by a fixed text; measures nothing.

Probe:   none, so nothing is compared and no device is waited for.
Error:   a skipped step adds the last computed residual, however much has changed since.
Source:  the built-in schedules of released pipelines and cache-dit's SCM masks, reduced to their
         letters. The last letter holds for all later steps.
"""

from synccache.policies.dsl import (
    Hold,
    Policy,
    Predictor,
    Rule,
    Segments,
    Selector,
    Steps,
    branches,
)


def step_mask(
    letters: str,
    *,
    skip: Selector | Segments = branches,
    reuse: Predictor = Hold(),  # noqa: B008 - frozen
) -> Policy:
    return Policy("step_mask", (Rule(skip, Steps(letters), reuse),))
