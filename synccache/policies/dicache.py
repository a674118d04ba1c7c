"""DiCache: let the first blocks probe every step, skip the rest, and follow the probe between anchors.

Probe:   the stream after the first ``depth`` blocks, against the step before, summed since the last
         computed step. minus=relative_l1(entering(blocks[0]), since=PREVIOUS) is its delta_minus, with
         threshold 0.08 and retention 0: less what the stack's input itself changed.
Error:   a skipped step adds to the stack's input the residual of the whole stack, extrapolated through
         the last two computed steps as far as the probe's own residual has gone (between 1 and ``high``).
Source:  DiCache, ICLR 2026, arXiv 2508.17356; Bujiazi/DiCache @dd7f0de: HunyuanVideo (0.1, not above;
         the first 20 % computed; high 1.5). Wan: 0.08, operator="<", high=2.0. FLUX: 0.4, operator="<",
         last=1 (its window of anchors grows without end there; here it is 2 everywhere). Where two
         anchors coincide the released code divides 0 by 0; here that is plain reuse.
"""

from synccache.policies.dsl import (
    PREVIOUS,
    Compare,
    Policy,
    Rule,
    Signal,
    TwoAnchor,
    accumulated,
    blocks,
    branches,
    output,
    relative_l1,
    share,
    step,
    steps_left,
    whole,
)


def dicache(
    threshold: float = 0.1,
    *,
    depth: int = 1,
    retention: float = 0.2,
    last: int = 0,
    high: float = 1.5,
    operator: str = "<=",
    minus: Signal | float = 0.0,
) -> Policy:
    moved = abs(relative_l1(output(blocks[:depth]), since=PREVIOUS) - minus)
    small = Compare(accumulated(moved), operator, threshold)
    when = small & (step >= share(retention)) & (steps_left >= last)
    return Policy("dicache", (Rule(whole(branches), when, TwoAnchor(high=high)),))
