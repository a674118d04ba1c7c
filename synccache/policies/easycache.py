"""EasyCache: skip the whole network while the sample's change, times a gain learned online, is small.

Probe:   the sample's mean change against the step before, times how much the output changed per change
         of the sample between the last two computed steps, over the output's mean size; summed since the
         last computed step.
Error:   a skipped step returns the sample plus the last computed output less its sample: a velocity moved
         by a difference of latents. Nothing of the network runs, embeddings and head included.
Source:  EasyCache, arXiv 2507.02860; H-EmbodVis/EasyCache @5127804: HunyuanVideo (0.025, strictly below;
         the first 5 and the last step computed; Wan 0.05 and 10). The first guidance branch decides.
         The number of steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import (
    FIRST_BRANCH,
    PREVIOUS,
    Policy,
    Rule,
    accumulated,
    gain,
    latent,
    mean_change,
    mean_size,
    network,
    prediction,
    step,
    steps_left,
)


def easycache(threshold: float = 0.025, *, warmup: int = 5, last: int = 1) -> Policy:
    change = gain(prediction, latent) * mean_change(latent, since=PREVIOUS)
    error = accumulated(change / mean_size(prediction))
    when = (error < threshold) & (step >= warmup) & (steps_left >= last)
    return Policy("easycache", (Rule(network, when),), leader=FIRST_BRANCH)
