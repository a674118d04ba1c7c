"""Delta-DiT: skip the rear blocks on early steps and the front blocks on late ones, every other step.

Probe:   none: fixed steps, so it compiles to a step mask.
Error:   a skipped step adds what the ``count`` blocks added on the last computed step.
Source:  Delta-DiT, arXiv 2406.01125. No code was released: that there is an interval, a boundary step
         and a number of blocks is the paper's; interval and boundary here are ours. ``count`` has no
         default; it may be more than half the blocks: the two ends are rules that never hold together.
"""

from synccache.policies.dsl import Policy, Rule, blocks, every, step


def delta_dit(count: int, *, interval: int = 2, boundary: int = 10) -> Policy:
    early = (step < boundary) & ~every(step, interval)
    late = (step >= boundary) & ~every(step, interval, boundary)
    return Policy("delta_dit", (Rule(blocks[:count], late), Rule(blocks[-count:], early)))
