"""DBCache: First-Block Cache with a deeper probe, a step mask, budgets, and blocks that always run.

Probe:   residual of blocks 0..front-1, against its value on the last computed step.
Error:   a skipped step adds the last computed residual of the blocks between, or a calibrator's forecast
         of it (Taylor, Foca); the last ``back`` blocks run on the result and correct it.
Source:  vipshop/cache-dit 1.5.3, caching/cache_contexts/cache_manager.py (can_cache, similarity), its
         defaults F8B0, 0.08 (strictly below), 8 warm-up steps, each guidance branch apart
         (leader=FIRST_BRANCH is its cfg_diff_compute_separate=False). mask=masks.scm("fast", 28) are its
         SCM masks; budget is the sum of all changes looked at. Left out: a threshold of 1 that always
         skips.
"""

from synccache.policies.dsl import (
    EACH_BRANCH,
    LAST_COMPUTED,
    NEVER,
    Condition,
    Hold,
    Leader,
    Policy,
    Predictor,
    Rule,
    Steps,
    Weight,
    accumulated,
    blocks,
    every,
    inf,
    lagged,
    relative_l1,
    residual,
    skipped,
    skips,
    step,
)


def dbcache(
    threshold: float = 0.08,
    *,
    front: int = 8,
    back: int = 0,
    warmup: int = 8,
    warmup_interval: int = 1,
    mask: Condition = Steps("S"),  # noqa: B008 - frozen
    max_skips: float = inf,
    max_skipped: float = inf,
    budget: float = inf,
    weight: Weight | tuple[Weight, ...] | None = None,
    reuse: Predictor = Hold(),  # noqa: B008 - frozen
    leader: Leader = EACH_BRANCH,
) -> Policy:
    warm = (step < warmup) & every(step, warmup_interval)
    may = ~warm & mask & (skipped < max_skipped) & (skips < max_skips)
    moved = relative_l1(residual(blocks[:front]), since=LAST_COMPUTED, weight=weight)
    spent = lagged(accumulated(moved, reset=NEVER, counting=may), otherwise=0.0)
    when = may & (spent < budget) & (moved < threshold)
    return Policy("dbcache", (Rule(blocks[front : -back or None], when, reuse),), leader)
