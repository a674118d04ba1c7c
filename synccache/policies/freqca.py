"""FreqCa: keep the low spatial frequencies of the last block's output, forecast the high ones.

Probe:   none: a fixed interval after the first steps, so it compiles to a step mask.
Error:   a skipped step puts the stream after the last block in its place: the low band of the last
         computed step, and a Hermite forecast of the high band.
Source:  FreqCa, arXiv 2510.08669; Tammytcl/FreqCa, cache_functions: interval 6 (or 9), the first 3 steps
         computed, Hermite order 2 with scale 0.71, cutoff 0.1. The token FFT is its Qwen-Image form and
         takes any grid; its FLUX form is transform=GRID_DCT on square ones. Held are 3 tensors, not the 6
         of the released code: both bands are made of the same ones.
"""

from synccache.policies.dsl import (
    TOKEN_FFT,
    Hermite,
    Hold,
    Policy,
    Rule,
    Split,
    Transform,
    branches,
    skips,
    step,
    values,
)


def freqca(
    interval: int = 6,
    *,
    order: int = 2,
    scale: float = 0.71,
    cutoff: float = 0.1,
    transform: Transform = TOKEN_FFT,
    first: int = 3,
) -> Policy:
    when = (step >= first) & (skips < interval - 1)
    reuse = Split(Hold(), Hermite(order, scale), cutoff=cutoff, transform=transform)
    return Policy("freqca", (Rule(values(branches), when, reuse),))
