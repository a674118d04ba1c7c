"""Pyramid attention broadcast: each kind of attention reuses its own output for a while.

Probe:   none: an interval for each kind of attention, within a window of timesteps.
Error:   a skipped step adds the attention's last output under its present gate; MLPs run.
Source:  PAB, ICLR 2025, arXiv 2408.12588; diffusers 0.42 hooks/pyramid_attention_broadcast.py (the window
         is open, (100, 850) on CogVideoX; spatial 2, temporal 4, cross 6 on Open-Sora; 2, 3, 6 on Latte).
"""

from synccache.policies.dsl import (
    Hold,
    Policy,
    Rule,
    Selector,
    between,
    branches,
    every,
    modules,
    step,
    timestep,
)

RANGES = ((branches.attention, 2),)


def pab(
    ranges: tuple[tuple[Selector, int], ...] = RANGES, *, window: tuple[float, float] = (100, 850)
) -> Policy:
    inside = between(timestep, *window)
    rules = (Rule(modules(s), inside & ~every(step, n), Hold()) for s, n in ranges)
    return Policy("pab", tuple(rules))
