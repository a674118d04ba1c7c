"""Token-wise branches by hand: the MLP is run for all tokens, and the chosen rows are taken.

Draws are the library's own (one generator for each seed, step and branch), since any draw is as good;
clusters and scores are written again.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from reference_predictors import Kept
from torch import Tensor


@dataclass
class TokenMemory:
    """What one rule remembers of tokens on one guidance branch."""

    labels: Tensor | None = None
    centroids: Tensor | None = None
    ages: dict[int, Tensor] = field(default_factory=dict)


def draws(tokens: Any, step: int, region: int, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(tokens.seed + 10_007 * step + 101 * region)
    return torch.rand(*shape, generator=generator)


def cluster(memory: TokenMemory, tokens: Any, stream: Tensor) -> None:
    """K-means by L1 distance, from where the last clusters ended; item by item, cluster by cluster."""
    points = stream.float()
    count = min(tokens.clusters, points.shape[1])
    if memory.centroids is None:
        order = torch.randperm(
            points.shape[1], generator=torch.Generator().manual_seed(tokens.seed)
        )
        memory.centroids = points[:, order[:count]].clone()
    labels = _nearest(points, memory.centroids)
    for _ in range(tokens.iterations):
        for item in range(len(points)):
            for group in range(count):
                mine = points[item][labels[item] == group]
                if len(mine):
                    memory.centroids[item, group] = mine.mean(0)
        labels = _nearest(points, memory.centroids)
    memory.labels = labels


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    return (points[:, :, None] - centroids[:, None]).abs().sum(-1).argmin(-1)


def chosen(memory: TokenMemory, tokens: Any, index: int, held: Tensor, keys: Tensor) -> Tensor:
    """The tokens to compute, [batch, count]."""
    if type(tokens).__name__ == "OnePerCluster":
        assert memory.labels is not None and memory.centroids is not None
        rows = []
        for labels, own in zip(memory.labels, keys, strict=True):
            groups = range(memory.centroids.shape[1])
            rows.append([max(_members(labels, g), key=lambda i: float(own[i])) for g in groups])
        return torch.tensor(rows)
    ages = memory.ages.get(index, torch.zeros(keys.shape, dtype=torch.int64))
    wide = held.float()
    mean = wide.mean(1, keepdim=True)
    score = {
        "RANDOM": keys,
        "NORM": wide.norm(dim=-1),
        "DISSIMILARITY": 1 - torch.cosine_similarity(wide, mean, dim=-1),
        "STALENESS": ages.float(),
    }[tokens.score.name]
    low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
    total = (score - low) / (high - low).clamp_min(1e-30) + tokens.age * ages
    found = total.topk(math.ceil(tokens.ratio * keys.shape[1]), dim=1).indices
    memory.ages[index] = (ages + 1).scatter(1, found, 0)
    return found


def _members(labels: Tensor, group: int) -> list[int]:
    """Tokens of a cluster; token 0 stands for an empty one."""
    return torch.nonzero(labels == group).flatten().tolist() or [0]


def refreshed(
    memory: TokenMemory, tokens: Any, history: list[Kept], picked: Tensor, computed: Tensor
) -> list[Kept]:
    """The history with the chosen tokens' fresh outputs in it: every value moved by the difference."""
    newest = history[-1].tensor
    moved = newest.clone()
    for item, row in enumerate(picked):
        moved[item, row] = computed[item, row]
    spread = getattr(tokens, "spread", 0.0)
    if spread:
        assert memory.labels is not None
        for item, row in enumerate(picked):
            fresh = computed[item, row[memory.labels[item]]]
            moved[item] = spread * fresh + (1 - spread) * moved[item]
    change = moved - newest
    return [replace(kept, tensor=kept.tensor + change) for kept in history]
