"""Whether two conditions are never true together, by what is written in them.

(step < 10) & ~every(step, 2)    and    (step >= 10) & ~every(step, 3)        disjoint: by the step
moved < 0.1, where at is true    and    moved < 0.2, where at is not          disjoint: at, ~at
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from synccache.policies.conditions import And, Between, Compare, Condition, Not, Steps
from synccache.policies.counters import Counter

_INVERSE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


def disjoint(a: Condition, b: Condition) -> bool:
    """True where it can be proved: a counter in two ranges that do not meet, a condition and its
    opposite, or two step masks without a common S. False says nothing."""
    left, right = list(_conjuncts(a)), list(_conjuncts(b))
    if any(Not(p) in right for p in left) or any(Not(q) in left for q in right):
        return True
    if any(
        _no_common_step(p, q) for p in left if isinstance(p, Steps)
        for q in right if isinstance(q, Steps)
    ):  # fmt: skip
        return True
    mine, others = ([r for r in map(_range, side) if r is not None] for side in (left, right))
    return any(_apart(p, q) for p in mine for q in others)


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, And):
        yield from _conjuncts(condition.left)
        yield from _conjuncts(condition.right)
    else:
        yield condition


@dataclass(frozen=True, slots=True)
class _Range:
    """Values of a counter on which a condition holds; ``open`` ends are left out."""

    counter: str
    low: float
    high: float
    low_open: bool
    high_open: bool


def _range(condition: Condition) -> _Range | None:
    inverted = isinstance(condition, Not)
    inner = condition.of if isinstance(condition, Not) else condition
    if isinstance(inner, Between) and isinstance(inner.of, Counter) and not inverted:
        return _Range(inner.of.name, inner.low, inner.high, True, True)
    if not isinstance(inner, Compare) or not isinstance(inner.left, Counter):
        return None
    if isinstance(inner.limit, bool) or not isinstance(inner.limit, (int, float)):
        return None  # a threshold that changes with the step
    operator = _INVERSE[inner.operator] if inverted else inner.operator
    limit = float(inner.limit)
    if operator in ("<", "<="):
        return _Range(inner.left.name, -inf, limit, False, operator == "<")
    return _Range(inner.left.name, limit, inf, operator == ">", False)


def _apart(a: _Range, b: _Range) -> bool:
    if a.counter != b.counter:
        return False
    return _below(a, b) or _below(b, a)


def _below(a: _Range, b: _Range) -> bool:
    return a.high < b.low or a.high == b.low and (a.high_open or b.low_open)


def _no_common_step(a: Steps, b: Steps) -> bool:
    count = max(len(a.letters), len(b.letters))
    pairs = zip(*(m.letters + m.letters[-1] * (count - len(m.letters)) for m in (a, b)))
    return ("S", "S") not in pairs


__all__ = ["disjoint"]
