"""SpeCa: TaylorSeer's forecasts as drafts, and the last block run exactly to see how good they are.

Probe:   mean of ratios between the last block's exact and predicted output, from the third draft in a row
         on; known only after the step, so it decides about the next one, and a bad draft is kept.
Error:   a skipped step adds the Taylor forecast of each branch's output under its present gate; at most
         `longest` drafts in a row. A computed step is always followed by a draft.
Source:  SpeCa, ACM MM 2025, arXiv 2509.11628; Shenyi-Z/Cache4Diffusion speca-hunyuan_video (1, 0.1, 4, 12,
         order 1, first 1); FLUX 7, 0.3, 2, 8, 2, 3; DiT 0.1, 0.01, 2, 5, 4, 3, floor 0.01. The number of
         steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    FIRST_BRANCH,
    Policy,
    Rule,
    Taylor,
    blocks,
    branches,
    decay,
    exact_error,
    lagged,
    modules,
    skips,
    step,
)


def speca(
    threshold: float = 1.0,
    *,
    rate: float = 0.1,
    floor: float = 0.1,
    shortest: int = 4,
    longest: int = 12,
    order: int = 1,
    first: int = 1,
) -> Policy:
    missed = lagged(exact_error(blocks[-1], after=shortest), otherwise=0.0)
    good = ~(missed > decay(threshold, rate, floor=floor))
    drafting = (step >= first) & (skips < longest) & good
    when = (step >= 1) & ((skips < 1) | drafting)
    rule = Rule(modules(branches), when, Taylor(order, start=max(first - 1, 0)))
    return Policy("speca", (rule,), leader=FIRST_BRANCH)
