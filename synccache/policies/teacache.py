"""TeaCache: skip the stack while what the first block is fed has hardly changed, by a fitted polynomial.

Probe:   what block 0 feeds to its attention, against the step before; the change goes through the
         model's polynomial and is summed since the last computed step. On Wan the released probe is
         time_embedding, the same on every run: pass probe=.
Error:   a skipped step adds the whole stack's last computed residual; the head runs on every step.
Source:  TeaCache, CVPR 2025, arXiv 2411.19108; ali-vilab/TeaCache @7c10efc: the HunyuanVideo script
         (0.15, strictly below; first and last step computed). Other models' polynomials and thresholds:
         tables.TEACACHE. The number of steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    PREVIOUS,
    Policy,
    Polynomial,
    Probe,
    Rule,
    accumulated,
    blocks,
    branches,
    modulated,
    relative_l1,
    step,
    steps_left,
)
from synccache.policies.tables import TEACACHE_RELEASED


def teacache(
    threshold: float = 0.15,
    *,
    polynomial: tuple[float, ...] = TEACACHE_RELEASED,
    probe: Probe = modulated(blocks[0]),  # noqa: B008 - frozen
    first: int = 1,
    last: int = 1,
) -> Policy:
    moved = Polynomial(relative_l1(probe, since=PREVIOUS), polynomial)
    when = (accumulated(moved) < threshold) & (step >= first) & (steps_left >= last)
    return Policy("teacache", (Rule(branches, when),))
