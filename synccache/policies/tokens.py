"""Token choices: on a skipped step, the tokens for which MLP branches are still run.

    Rule(modules(branches), when, Taylor(1), tokens=one_per_cluster(clusters=16, spread=0.005))

The fresh outputs go into what is held: every held tensor of the branch is moved by the difference, so
that later forecasts start from them with the slopes as they were. Attention, and whatever else is no
point-wise MLP, is predicted for all tokens.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number
from synccache.policies.selectors import Selector, branches

MAX_CLUSTERS = 4096
MAX_SEED = 2**31 - 1


class Tokens:
    """A choice of tokens; see the subclasses."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class OnePerCluster(Tokens):
    """One random token of each cluster; its fresh output also moves the rest of its cluster.

    Clusters: K-means by L1 distance on the stream after ``on``, on every computed step, at most
    ``iterations`` rounds from where the last ones ended (random tokens at first). On a skipped step a
    token of each cluster is drawn anew for each branch; then all tokens of a cluster are blended,
    ``spread * fresh + (1 - spread) * held``. Draws repeat with ``seed``.
    """

    clusters: int = 16
    spread: float = 0.005
    iterations: int = 10
    seed: int = 0
    on: Selector = branches

    def __post_init__(self) -> None:
        _integer(self, "clusters", 1, MAX_CLUSTERS)
        _integer(self, "iterations", 1, 100)
        _integer(self, "seed", 0, MAX_SEED)
        spread = plain_number(self.spread, "one_per_cluster(spread=...)", low=0.0, high=1.0)
        object.__setattr__(self, "spread", spread)
        expect(self.on, Selector, "one_per_cluster(on=...)", "Select branches, e.g. blocks[:19].")


def one_per_cluster(
    clusters: int = 16, *, spread: float = 0.005, iterations: int = 10, seed: int = 0,
    on: Selector = branches,
) -> OnePerCluster:  # fmt: skip
    """One random token of each cluster of alike tokens.

    Source: ClusCa, ACM MM 2025, arXiv 2509.10312; Shenyi-Z/Cache4Diffusion clusca-flux.
    """
    return OnePerCluster(clusters, spread, iterations, seed, on)


class Score(enum.Enum):
    """What makes a token worth computing again."""

    RANDOM = "random"
    NORM = "norm"  # the size of its held output
    DISSIMILARITY = "dissimilarity"  # 1 - cosine between its held output and the mean of all
    STALENESS = "staleness"  # skipped steps since it was computed

    def __repr__(self) -> str:
        return self.name


RANDOM = Score.RANDOM
NORM = Score.NORM
DISSIMILARITY = Score.DISSIMILARITY
STALENESS = Score.STALENESS


@dataclass(frozen=True, slots=True)
class TopTokens(Tokens):
    """The ``ratio`` of the tokens that score highest, ``ceil(ratio * tokens)`` of them.

    ``score`` scaled to [0, 1] over the tokens, plus ``age`` times the skipped steps since a token was
    computed. ``every``: tokens are computed on the first skipped step in a row and on every
    ``every``-th after it; on the others all are predicted.
    """

    score: Score = Score.RANDOM
    ratio: float = 0.1
    age: float = 0.25
    every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        expect(
            self.score, Score, "top_tokens(score)", "Use RANDOM, NORM, DISSIMILARITY, STALENESS."
        )
        ratio = plain_number(self.ratio, "top_tokens(ratio=...)", low=0.0, high=1.0)
        if not ratio:
            raise PolicyError("top_tokens(ratio=0) computes no token.", hint="Leave tokens= out.")
        object.__setattr__(self, "ratio", ratio)
        object.__setattr__(self, "age", plain_number(self.age, "top_tokens(age=...)", low=0.0))
        _integer(self, "every", 1, 1000)
        _integer(self, "seed", 0, MAX_SEED)


def top_tokens(
    score: Score = Score.RANDOM, *, ratio: float = 0.1, age: float = 0.25, every: int = 1,
    seed: int = 0,
) -> TopTokens:  # fmt: skip
    """The tokens that score highest.

    Source: ToCa, ICLR 2025, arXiv 2410.05317 (random is its setting on HunyuanVideo).
    """
    return TopTokens(score, ratio, age, every, seed)


def _integer(of: object, name: str, low: int, high: int) -> None:
    word = "one_per_cluster" if isinstance(of, OnePerCluster) else "top_tokens"
    value = plain_integer(getattr(of, name), f"{word}({name}=...)")
    if not low <= value <= high:
        raise PolicyError(f"{word}({name}=...) must lie in [{low}, {high}], got {value}.")
    object.__setattr__(of, name, value)
