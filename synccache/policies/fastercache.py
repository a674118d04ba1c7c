"""FasterCache: predict the second guidance branch from the first, and every other attention from the past.

Probe:   none: on four of five steps within a window of timesteps the second branch of a step is predicted;
         on these, every other step extrapolates attention in the branch that runs.
Error:   the second branch is the first plus their last difference, its low and high frequencies grown by a
         tenth a step; a skipped attention is F_1 + weight (F_1 - F_2) under the present gate, forecasts
         among the last two outputs F_2, F_1.
Source:  FasterCache, ICLR 2025, arXiv 2410.19355; diffusers 0.42 hooks/faster_cache.py (windows open).
         The model must be called once for each guidance branch. For distilled guidance, called once a
         step, give branch_window=attention_window and a branch_interval that no run reaches.
"""

from synccache.policies.dsl import (
    Fixed,
    FromSibling,
    Policy,
    Rule,
    Selector,
    between,
    branches,
    every,
    modules,
    network,
    step,
    timestep,
    values,
)


def fastercache(
    *,
    attention: Selector = branches.attention,
    attention_interval: int = 2,
    branch_interval: int = 5,
    weight: float = 0.5,
    attention_window: tuple[float, float] = (-1, 681),
    branch_window: tuple[float, float] = (-1, 641),
) -> Policy:
    alone = between(timestep, *branch_window) & (step >= 1) & ~every(step, branch_interval)
    extrapolating = between(timestep, *attention_window) & ~every(step, attention_interval)
    past = Rule(modules(attention), extrapolating & alone, Fixed((-weight, 1 + weight)))
    return Policy("fastercache", (past, Rule(values(network), alone, FromSibling())))
