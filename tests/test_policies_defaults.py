"""Called without arguments, a method is what was published: its thresholds, intervals and orders.

Numbers: caching-policy reference, sections 1, 2 and 3; the released code where a paper says otherwise.
"""

import inspect
import math
from typing import Any

import pytest

from synccache import policies
from synccache.policies.catalogue import EXAMPLES
from synccache.policies.dsl import (
    DOWN,
    EACH_BRANCH,
    FIRST_BRANCH,
    RANDOM,
    TOKEN_FFT,
    Hold,
    Leader,
    Steps,
    blocks,
    branches,
    modulated,
)
from synccache.policies.tables import MAGCACHE, TEACACHE

PUBLISHED: dict[str, dict[str, Any]] = {
    # HunyuanVideo's fast threshold, its polynomial; the first and the last step are computed
    "teacache": {
        "threshold": 0.15, "polynomial": TEACACHE["HunyuanVideo"], "probe": modulated(blocks[0]),
        "first": 1, "last": 1,
    },
    "magcache": {
        "threshold": 0.24, "ratios": MAGCACHE["HunyuanVideo 720p"], "max_skips": 6,
        "retention": 0.2, "rounding": DOWN, "operator": "<=",
    },
    "easycache": {"threshold": 0.025, "warmup": 5, "last": 1},
    "dicache": {
        "threshold": 0.1, "depth": 1, "retention": 0.2, "last": 0, "high": 1.5, "operator": "<=",
        "minus": 0.0,
    },
    "first_block_cache": {"threshold": 0.05},
    "dbcache": {
        "threshold": 0.08, "front": 8, "back": 0, "warmup": 8, "warmup_interval": 1,
        "mask": Steps("S"), "max_skips": math.inf, "max_skipped": math.inf, "budget": math.inf,
        "weight": None, "reuse": Hold(), "leader": EACH_BRANCH,
    },
    "seacache": {
        "threshold": 0.25, "power": 3.0, "levels": 1000.0, "max_skips": 2, "first": 1, "last": 1,
        "reuse": Hold(),
    },
    "avatar_schedule": {},
    "fora": {"interval": 3},  # the worked example's; the paper names no default
    "taylorseer": {"interval": 5, "order": 1, "first": 1},
    "taylorseer_lite": {"interval": 5, "order": 2, "first": 3},
    "hicache": {"interval": 6, "order": 3, "scale": 0.5, "first": 3},
    "freqca": {
        "interval": 6, "order": 2, "scale": 0.71, "cutoff": 0.1, "transform": TOKEN_FFT, "first": 3,
    },
    # cnt <= 5: six steps
    "confidence_taylor": {
        "threshold": 0.36, "probe_order": 3, "order": 1, "warmup": 6, "last": 1,
    },
    "speca": {
        "threshold": 1.0, "rate": 0.1, "floor": 0.1, "shortest": 4, "longest": 12, "order": 1,
        "first": 1,
    },
    "clusca": {
        "interval": 5, "order": 1, "first": 3, "clusters": 16, "spread": 0.005, "seed": 0,
    },
    "delta_dit": {"interval": 2, "boundary": 10},  # ours: none were published
    "blockdance": {"depth": 14, "interval": 4, "highest": 900.0, "lowest": 100.0},
    "pab": {"ranges": ((branches.attention, 2),), "window": (100, 850)},
    "fastercache": {
        "attention": branches.attention, "attention_interval": 2, "branch_interval": 5,
        "weight": 0.5, "attention_window": (-1, 681), "branch_window": (-1, 641),
    },
    "toca": {"interval": 5, "score": RANDOM, "ratio": 0.1, "first": 1, "seed": 0},
    "duca": {"interval": 5, "score": RANDOM, "ratio": 0.1, "first": 1, "seed": 0},
    "omnicache": {"max_skips": 2, "reuse": Hold()},  # ours: only the abstract was at hand
    # omega = 2; threshold and warm-up are ours
    "asymmetric": {
        "threshold": 0.085, "inside": 2.0, "warmup": 1, "max_skips": math.inf, "reuse": Hold(),
    },
    "step_mask": {"skip": branches, "reuse": Hold()},
    "planned": {"skip": branches},
    "exact": {},
}  # fmt: skip

LEADERS: dict[str, Leader] = {  # where one guidance branch decides for the others
    "asymmetric": FIRST_BRANCH,
    "confidence_taylor": FIRST_BRANCH,
    "easycache": FIRST_BRANCH,
    "seacache": FIRST_BRANCH,
    "speca": FIRST_BRANCH,
}


def defaults(method: str) -> dict[str, Any]:
    parameters = inspect.signature(policies.LIBRARY[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("method", policies.__all__)
def test_a_methods_defaults_are_the_published_ones(method: str) -> None:
    assert defaults(method) == PUBLISHED[method]


@pytest.mark.parametrize("method", policies.__all__)
def test_one_guidance_branch_decides_where_it_does_in_the_released_code(method: str) -> None:
    policy = policies.LIBRARY[method](*EXAMPLES.get(method, ()))

    assert policy.leader is LEADERS.get(method, EACH_BRANCH)
