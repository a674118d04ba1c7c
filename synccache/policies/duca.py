"""DuCa: ToCa on every other skipped step, plain reuse on those in between.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   as ToCa on the first, third, ... skipped step in a row. On the others DuCa reuses the last block's
         value; here each branch's last output is added under its present gate, which costs little more.
Source:  DuCa, arXiv 2412.18911; its modes in Shenyi-Z/TaylorSeer and Cache4Diffusion (as ToCa).
"""

from synccache.policies.dsl import (
    RANDOM,
    Hold,
    Policy,
    Rule,
    Score,
    branches,
    modules,
    skips,
    step,
    top_tokens,
)


def duca(
    interval: int = 5, *, score: Score = RANDOM, ratio: float = 0.1, first: int = 1, seed: int = 0
) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    tokens = top_tokens(score, ratio=ratio, every=2, seed=seed)
    return Policy("duca", (Rule(modules(branches), when, Hold(), tokens),))
