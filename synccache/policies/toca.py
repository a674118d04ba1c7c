"""ToCa: compute every n-th step; in between, run MLPs for a tenth of the tokens and reuse the rest.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   a skipped step adds each branch's last output under its present gate, renewed for the tokens that
         score highest. Attention is reused for all tokens here; ToCa runs it for the chosen ones too.
Source:  ToCa, ICLR 2025, arXiv 2410.05317; its modes in Shenyi-Z/TaylorSeer and Cache4Diffusion (5, first 1
         and random tokens on HunyuanVideo, first 3 on FLUX; ratio 0.10; staleness weight 0.25).
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


def toca(
    interval: int = 5, *, score: Score = RANDOM, ratio: float = 0.1, first: int = 1, seed: int = 0
) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    tokens = top_tokens(score, ratio=ratio, seed=seed)
    return Policy("toca", (Rule(modules(branches), when, Hold(), tokens),))
