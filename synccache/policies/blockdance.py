"""BlockDance: once the structure stands, keep the stream after a middle block and run the deeper ones.

Probe:   none: every n-th step within a window of timesteps is computed.
Error:   a skipped step takes the stream after block ``depth - 1`` as it was on the last computed step;
         the present sample does not enter it at all.
Source:  BlockDance, CVPR 2025, arXiv 2503.15927; PaddleMIX blockdance/BlockDance_flux_forward.py:
         interval 4 over all steps, timesteps 100 to 900 of 1000, the first 14 double blocks. It also
         runs block 0 for nothing, and treats the single blocks the same way: a second rule here.
"""

from synccache.policies.dsl import Policy, Rule, blocks, every, step, timestep, values


def blockdance(
    depth: int = 14, *, interval: int = 4, highest: float = 900.0, lowest: float = 100.0
) -> Policy:
    window = (timestep >= lowest) & (timestep <= highest)
    return Policy("blockdance", (Rule(values(blocks[:depth]), window & ~every(step, interval)),))
