"""MagCache: skip while a published table says that the residual has hardly changed its size.

Probe:   none: the running product of the table's ratios, and the sum of its distances from 1 since the
         last computed step. The same steps on every run, so it compiles to a step mask.
Error:   a skipped step adds the whole stack's last computed residual, at its old size.
Source:  MagCache, NeurIPS 2025, arXiv 2506.09045; Zehong-Ma/MagCache @df81cb1: HunyuanVideo (0.24, not
         above; 6 skips in a row; the first 20 % computed). Wan compares strictly: operator="<".
         Tables of other models: tables.MAGCACHE; of guidance pairs the conditional branch's for both.
         The table is stretched over the run: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    DOWN,
    Compare,
    Policy,
    Rounding,
    Rule,
    Table,
    branches,
    deviation,
    share,
    skips,
    step,
)
from synccache.policies.tables import MAGCACHE_RELEASED


def magcache(
    threshold: float = 0.24,
    *,
    ratios: tuple[float, ...] = MAGCACHE_RELEASED,
    max_skips: int = 6,
    retention: float = 0.2,
    rounding: Rounding = DOWN,
    operator: str = "<=",
) -> Policy:
    small = Compare(deviation(Table(ratios)), operator, threshold)
    when = small & (skips < max_skips) & (step >= share(retention, rounding=rounding))
    return Policy("magcache", (Rule(branches, when),))
