"""Every method of the library, with settings that suit a model of a few blocks and a run of a few steps.

CASES["teacache"](0.2)      # a policy; the number is its threshold, or picks one of its settings
"""

from collections.abc import Callable, Mapping

from loops import timesteps

from synccache import policies
from synccache.policies.dsl import (
    FIRST_BRANCH,
    PREVIOUS,
    TEXT,
    Foca,
    Linear,
    Policy,
    Steps,
    Taylor,
    blocks,
    branches,
    channel_stride,
    latent,
    modulated,
    relative_l1,
    time_embedding,
    token_filter,
)
from synccache.policies.fitted import Constants

STEPS = 8
LONGER = {"avatar_schedule": 24}  # its first sixteen steps are computed
LINE = (1.0, 0.0)  # a polynomial that leaves the signal as it is
RATIOS = (1.0, 1.05, 0.98, 0.97, 0.95, 0.99, 0.9, 0.9)
CROSS = branches.attention & branches.reading(TEXT)
PLAN = Constants(
    letters="CCSSCSSC",
    timesteps=tuple(timesteps(STEPS)),
    coefficients=(
        (2, (0, 1), (-0.3, 1.3)),
        (3, (0, 1), (-1.1, 2.1)),
        (5, (1, 4), (-0.2, 1.2)),
        (6, (0, 1, 4), (0.1, -0.5, 1.4)),
    ),
)
RANGES = ((branches.attention - CROSS, 2), (CROSS, 3))


def picked(number: float, *settings: Policy) -> Policy:
    """One of the settings by a number from 0 to 2."""
    return settings[min(int(number / 2 * len(settings)), len(settings) - 1)]


def _whole(number: float, low: int, high: int) -> int:
    """A whole number from low to high by a number from 0 to 2."""
    return min(low + int(number / 2 * (high - low + 1)), high)


def _teacache(x: float) -> Policy:
    probes = [modulated(blocks[0]), time_embedding]
    return policies.teacache(x, polynomial=LINE, probe=probes[int(x * 10) % 2])


def _dbcache(x: float) -> Policy:
    return picked(
        x,
        policies.dbcache(x, front=1, warmup=2),
        policies.dbcache(x, front=1, back=1, warmup=1, max_skips=2, reuse=Taylor(1)),
        policies.dbcache(x, front=1, warmup=1, mask=Steps("CSSCSSSC"), reuse=Foca()),
        policies.dbcache(x, front=2, warmup=3, warmup_interval=2, budget=2 * x, max_skipped=4),
        policies.dbcache(x, front=1, warmup=1, weight=token_filter(0.2), leader=FIRST_BRANCH),
        policies.dbcache(x, front=1, warmup=1, weight=channel_stride(2)),
    )


def _dicache(x: float) -> Policy:
    minus = relative_l1(latent, since=PREVIOUS)
    return picked(
        x, policies.dicache(x), policies.dicache(x, high=2.0), policies.dicache(x, minus=minus)
    )


BY_STREAM: Mapping[str, Callable[[float], Policy]] = {
    "asymmetric": lambda x: policies.asymmetric(x, reuse=[Linear(), Taylor(2)][int(x * 10) % 2]),
    "avatar_schedule": lambda x: policies.avatar_schedule(),
    "blockdance": lambda x: policies.blockdance(2, interval=_whole(x, 2, 3)),
    "confidence_taylor": lambda x: policies.confidence_taylor(x, warmup=_whole(x, 2, 4)),
    "dbcache": _dbcache,
    "delta_dit": lambda x: policies.delta_dit(1, interval=_whole(x, 2, 3), boundary=4),
    "dicache": _dicache,
    "easycache": lambda x: policies.easycache(x, warmup=2),
    "fastercache": lambda x: policies.fastercache(branch_interval=_whole(x, 2, 3)),
    "first_block_cache": policies.first_block_cache,
    "fora": lambda x: policies.fora(_whole(x, 2, 3)),
    "freqca": lambda x: policies.freqca(_whole(x, 2, 3), first=_whole(x, 2, 3)),
    "hicache": lambda x: policies.hicache(2, scale=0.3 + x / 4, first=2),
    "magcache": lambda x: policies.magcache(x / 4, ratios=RATIOS, max_skips=3),
    "omnicache": lambda x: policies.omnicache(RATIOS, _whole(x, 2, 4)),
    "pab": lambda x: policies.pab(RANGES, window=(100 + 100 * x, 900)),
    "planned": lambda x: policies.planned(PLAN),
    "seacache": lambda x: policies.seacache(x, reuse=Linear()),
    "speca": lambda x: policies.speca(x, shortest=1, longest=3, order=_whole(x, 1, 2)),
    "step_mask": lambda x: policies.step_mask(["CSSCS", "CCSSSSC"][int(x)], reuse=Linear()),
    "taylorseer": lambda x: policies.taylorseer(3, order=_whole(x, 1, 2), first=2),
    "taylorseer_lite": lambda x: policies.taylorseer_lite(3, order=_whole(x, 1, 2)),
    "teacache": _teacache,
}
WITHOUT_RULES = ("exact",)
TOKENWISE: Mapping[str, Callable[[float], Policy]] = {
    "clusca": lambda x: policies.clusca(3, clusters=_whole(x, 2, 4), spread=0.1, first=2),
    "duca": lambda x: policies.duca(4, ratio=0.3),
    "toca": lambda x: policies.toca(_whole(x, 2, 4), ratio=0.3),
}
CASES = {**BY_STREAM, **TOKENWISE}
