"""SeaCache: skip while the sample, with its noise filtered out, has hardly changed.

Probe:   the sample through a Wiener-like filter for its noise level, against the step before, each
         filtered at its own level; summed since the last computed step.
Error:   a skipped step adds the whole stack's last computed residual, or a line through two (Linear).
Source:  SeaCache, CVPR 2026, arXiv 2602.18993; diffusers 0.42 hooks/sea_cache.py, its defaults: 0.25
         (computes from there on), power 3, at most 2 skips in a row, the first and the last step
         computed, one decision a step. The noise level is the timestep over ``levels``.
         The number of steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    FIRST_BRANCH,
    PREVIOUS,
    Hold,
    Policy,
    Predictor,
    Rule,
    accumulated,
    branches,
    latent,
    relative_l1,
    skips,
    spectral,
    step,
    steps_left,
)


def seacache(
    threshold: float = 0.25,
    *,
    power: float = 3.0,
    levels: float = 1000.0,
    max_skips: float = 2,
    first: int = 1,
    last: int = 1,
    reuse: Predictor = Hold(),  # noqa: B008 - frozen
) -> Policy:
    weight = spectral(power=power, levels=levels)
    moved = accumulated(relative_l1(latent, since=PREVIOUS, weight=weight, eps=1e-16))
    when = (moved < threshold) & (skips < max_skips) & (step >= first) & (steps_left >= last)
    return Policy("seacache", (Rule(branches, when, reuse),), leader=FIRST_BRANCH)
