"""FasterCache: every other step extrapolates what each attention made on the two steps before.

Probe:   none: every second step within a window of timesteps.
Error:   a skipped step adds F_1 + weight (F_1 - F_2) under the present gate, F_2 and F_1 the last two outputs,
         forecasts among them; MLPs run.
Source:  FasterCache, ICLR 2025, arXiv 2410.19355; diffusers 0.42 hooks/faster_cache.py (weight 0.5, open
         window (-1, 681)). This is its attention part; there it acts only where the unconditional branch
         is skipped as well, or on guidance-distilled models.
"""

from synccache.policies.dsl import (
    Fixed,
    Policy,
    Rule,
    between,
    branches,
    every,
    modules,
    step,
    timestep,
)


def fastercache(
    interval: int = 2, *, weight: float = 0.5, window: tuple[float, float] = (-1, 681)
) -> Policy:
    when = between(timestep, *window) & ~every(step, interval)
    reuse = Fixed((-weight, 1 + weight))
    return Policy("fastercache", (Rule(modules(branches.attention), when, reuse),))
