"""Backward differences of held tensors, as weights of these tensors."""

from __future__ import annotations

from collections.abc import Sequence


def differences(anchors: tuple[int, ...], order: int, start: int) -> list[list[float]]:
    """Row i: the weights of f_i at the newest anchor; as many rows as the history allows."""
    count = len(anchors)
    # level[j]: f_i at anchor j as weights of the tensors, None where it cannot be taken
    level: list[list[float] | None] = [[float(i == j) for i in range(count)] for j in range(count)]
    rows: list[list[float]] = []
    for _ in range(order + 1):
        if level[-1] is None:
            break
        rows.append(level[-1])
        following: list[list[float] | None] = [None]
        for j in range(1, count):
            new, old = level[j], level[j - 1]
            if new is None or old is None or anchors[j] < start:
                following.append(None)
            else:
                gap = anchors[j] - anchors[j - 1]
                following.append([(a - b) / gap for a, b in zip(new, old)])
        level = following
    return rows


def combined(
    rows: Sequence[Sequence[float]], scales: Sequence[float], count: int
) -> tuple[float, ...]:
    return tuple(sum(s * row[j] for s, row in zip(scales, rows)) for j in range(count))
