"""OmniCache: a reconstruction; skip the steps at which a calibrated trajectory bends least.

Probe:   none: a step mask from the curvature of a whole trajectory (synccache.fx.curvature), measured beforehand.
Error:   a skipped step adds the whole stack's last computed residual.
Source:  OmniCache, ICCV 2025, arXiv 2508.16212, of which only the abstract was at hand: that steps are
         chosen by the trajectory's geometry is the paper's. The measure of curvature, the limit of skips
         in a row and the predictor are ours. Of its filter of the noise that reuse injects there is a
         guess, reuse=Split(high=Feedback()). Do not take this for the paper's algorithm.
"""

from synccache.policies.dsl import Hold, Policy, Predictor, Rule, branches
from synccache.policies.masks import flattest


def omnicache(
    curvature: tuple[float, ...],
    count: int,
    *,
    max_skips: int = 2,
    reuse: Predictor = Hold(),  # noqa: B008 - frozen
) -> Policy:
    when = flattest(curvature, count=count, max_skips=max_skips)
    return Policy("omnicache", (Rule(branches, when, reuse),))
