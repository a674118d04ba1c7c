"""First-Block Cache: run block 0; while its residual stays where it was, skip the rest.

Probe:   residual of block 0, output minus input, against its value on the last computed step.
Error:   a skipped step adds the last computed residual of blocks 1..N. No warm-up and no limit on
         the number of skips: the distance to the last computed step is all that bounds the error.
Source:  chengzeyi/ParaAttention, "First Block Cache"; diffusers 0.42 hooks/first_block_cache.py, which
         computes when the change is greater than the threshold, default 0.05, each guidance branch apart.
"""

from synccache.policies.dsl import LAST_COMPUTED, Policy, Rule, blocks, relative_l1, residual


def first_block_cache(threshold: float = 0.05) -> Policy:
    moved = relative_l1(residual(blocks[0]), since=LAST_COMPUTED)
    return Policy("first_block_cache", (Rule(skip=blocks[1:], when=moved <= threshold),))
