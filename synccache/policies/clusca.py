"""ClusCa: TaylorSeer, with the MLPs run for one token of each cluster of alike tokens.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask. Tokens are clustered
         by the stream after the last branch, on computed steps.
Error:   a skipped step adds the Taylor forecast of each branch's output under its present gate; in MLPs the
         fresh tokens move the forecasts of their clusters. As released, slopes are added to tokens that
         were already renewed.
Source:  ClusCa, ACM MM 2025, arXiv 2509.10312; Shenyi-Z/Cache4Diffusion clusca-flux (5, order 1, first 3,
         16 clusters, spread 0.005, at most 10 rounds); HunyuanVideo 32 clusters, 0.01; DiT interval 4.
"""

from synccache.policies.dsl import (
    Policy,
    Rule,
    Taylor,
    branches,
    modules,
    one_per_cluster,
    skips,
    step,
)


def clusca(
    interval: int = 5, *, order: int = 1, first: int = 3, clusters: int = 16, spread: float = 0.005,
    seed: int = 0,
) -> Policy:  # fmt: skip
    when = (step >= first) & (skips < interval - 1)
    reuse = Taylor(order, start=max(first - 1, 0))
    tokens = one_per_cluster(clusters, spread=spread, seed=seed)
    return Policy("clusca", (Rule(modules(branches), when, reuse, tokens),))
