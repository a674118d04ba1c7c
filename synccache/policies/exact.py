"""Exact: skip nothing. What remains is the lossless part, folding and hoisting.

Probe:   none.
Error:   none; the output is the model's, bit for bit.
Source:  synccache itself: constants and values that do not change between steps are computed once.
"""

from synccache.policies.dsl import Policy


def exact() -> Policy:
    return Policy("exact")
