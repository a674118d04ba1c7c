"""TaylorSeer Lite: compute every n-th step, forecast the last block's output on the others.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   a skipped step puts the Taylor forecast of the stream after the last block in its place.
Source:  TaylorSeer, ICCV 2025, arXiv 2503.06923; Cache4Diffusion's Lite presets: interval 5 (fast), 4 or
         3 (detailed), order 2, the first 3 steps computed; differences begin one step before that.
         Diffusers' first gap is shorter: when=(step >= 3) & ~every(step, interval, 4) there.
"""

from synccache.policies.dsl import Policy, Rule, Taylor, branches, skips, step, values


def taylorseer_lite(interval: int = 5, *, order: int = 2, first: int = 3) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    reuse = Taylor(order, start=max(first - 1, 0))
    return Policy("taylorseer_lite", (Rule(values(branches), when, reuse),))
