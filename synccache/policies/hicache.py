"""HiCache: TaylorSeer with scaled Hermite polynomials in place of powers.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   a skipped step adds the Hermite forecast of each branch's output under its present gate.
Source:  HiCache, ICLR 2026, arXiv 2508.16984; fenglang918/HiCache: scale 0.5 and order 3 on FLUX, 0.75
         in a DiT derivative; interval and first steps as TaylorSeer on FLUX.
"""

from synccache.policies.dsl import Hermite, Policy, Rule, branches, modules, skips, step


def hicache(interval: int = 6, *, order: int = 3, scale: float = 0.5, first: int = 3) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    reuse = Hermite(order, scale, start=max(first - 1, 0))
    return Policy("hicache", (Rule(modules(branches), when, reuse),))
