"""CG-Taylor: forecast the last block's output, and trust it while the first block's is forecast well.

Probe:   the relative error of the Taylor forecast of block 0's output, over the true value.
Error:   a skipped step puts the forecast of the stream after the last block in its place; the head runs
         on every step. Nothing is summed, and skips in a row are not limited.
Source:  "Forecasting when to forecast", arXiv 2508.02240; PaddleMIX ppdiffusers, CG-Taylor: Wan (0.36,
         strictly below; orders 3 and 1; the first 6 and the last step computed; FLUX 0.13). Its Wan and
         HunyuanVideo files seem to freeze the probe's anchors after the warm-up; here, as intended, every
         computed step renews them. The number of steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    FIRST_BRANCH,
    NEW,
    Policy,
    Rule,
    Taylor,
    blocks,
    forecast,
    output,
    relative_l1,
    step,
    steps_left,
    values,
)


def confidence_taylor(
    threshold: float = 0.36,
    *,
    probe_order: int = 3,
    order: int = 1,
    warmup: int = 6,
    last: int = 1,
) -> Policy:
    expected = forecast(Taylor(probe_order))
    missed = relative_l1(output(blocks[0]), since=expected, denominator=NEW)
    when = (missed < threshold) & (step >= warmup) & (steps_left >= last)
    rule = Rule(values(blocks[1:]), when, Taylor(order))
    return Policy("confidence_taylor", (rule,), leader=FIRST_BRANCH)
