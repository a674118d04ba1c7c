"""DBCache: First-Block Cache with a deeper probe and blocks at the end that always run.

Probe:   residual of blocks 0..front-1, against its value on the last computed step.
Error:   a skipped step adds the last computed residual of the blocks between; the last `back` blocks run
         on the result and correct it.
Source:  vipshop/cache-dit 1.5.3, caching/cache_contexts/cache_manager.py (can_cache, similarity), its
         defaults F8B0, threshold 0.08 (strictly below), 8 warm-up steps, each guidance branch apart.
         Left out: its rule that a threshold of 1 or more always skips.
"""

from synccache.policies.dsl import (
    LAST_COMPUTED,
    Policy,
    Rule,
    blocks,
    inf,
    relative_l1,
    residual,
    skips,
    step,
)


def dbcache(
    threshold: float = 0.08,
    *,
    front: int = 8,
    back: int = 0,
    warmup: int = 8,
    max_skips: float = inf,
) -> Policy:
    moved = relative_l1(residual(blocks[:front]), since=LAST_COMPUTED)
    when = (moved < threshold) & (step >= warmup) & (skips < max_skips)
    return Policy("dbcache", (Rule(skip=blocks[front : -back or None], when=when),))
