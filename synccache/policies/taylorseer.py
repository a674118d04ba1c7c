"""TaylorSeer: compute every n-th step, forecast what every attention and MLP makes on the others.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   a skipped step adds the Taylor forecast of each branch's output under its present gate.
Source:  TaylorSeer, ICCV 2025, arXiv 2503.06923; Shenyi-Z/TaylorSeer @288776d: interval 5, order 1, the
         first step computed on HunyuanVideo and Wan; 6, 1 and 3 on FLUX; 4, 4 and 2 on DiT.
         Differences begin one step before the first interval does.
"""

from synccache.policies.dsl import Policy, Rule, Taylor, branches, modules, skips, step


def taylorseer(interval: int = 5, *, order: int = 1, first: int = 1) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    reuse = Taylor(order, start=max(first - 1, 0))
    return Policy("taylorseer", (Rule(modules(branches), when, reuse),))
