"""SyncCache: skip the picture between the sounds; watch the person more closely than the rest.

Probe:   output of block 0 with its injected audio, weighted `inside`:1 on the person, against the
         step before, summed since the last computed step.
Error:   a skipped step adds each segment's last computed residual; audio branches that the plan did
         not absorb run on every step, on the approximated stream.
Source:  SyncCache, ECCV 2026, arXiv 2606.30849. Reconstructed where the text is silent: the weights are
         normalised, one warm-up step, and the first guidance branch of a step decides for the others.
         The threshold is ours: a third of the visual work on the portrait model (docs/benchmarks.md).
"""

from synccache.policies.dsl import (
    AUDIO,
    FIRST_BRANCH,
    PREVIOUS,
    Hold,
    Policy,
    Predictor,
    Rule,
    accumulated,
    blocks,
    branches,
    inf,
    mask,
    output,
    relative_l1,
    segments,
    skips,
    step,
)


def asymmetric(
    threshold: float = 0.085,
    *,
    inside: float = 2.0,
    warmup: int = 1,
    max_skips: float = inf,
    reuse: Predictor = Hold(),  # noqa: B008 - frozen
) -> Policy:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS, weight=mask("person", inside=inside))
    pictures = segments(branches.after(blocks[0]) - branches.reading(AUDIO))
    when = (accumulated(moved) <= threshold) & (step >= warmup) & (skips < max_skips)
    return Policy("asymmetric", (Rule(pictures, when, reuse),), leader=FIRST_BRANCH)
