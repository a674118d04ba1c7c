"""FORA: compute every n-th step, reuse what every attention and MLP made on the others.

Probe:   none: a fixed interval counted from the last step backwards; compiles to a step mask.
Error:   a skipped step adds each branch's last output under its present gate; norms, attention and
         MLPs do not run.
Source:  FORA, arXiv 2407.01425; prathebaselva/FORA src/models.py (the step index counts down from
         steps - 1; 0 and multiples of the interval compute, and so does the first step). The number
         of steps is needed: compiled.begin(steps=...).
"""

from synccache.policies.dsl import Hold, Policy, Rule, branches, every, modules, step, steps_left


def fora(interval: int = 3) -> Policy:
    when = (step >= 1) & ~every(steps_left, interval)
    return Policy("fora", (Rule(modules(branches), when, Hold()),))
