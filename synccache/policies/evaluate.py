"""What signals and conditions are worth on a step, from the numbers measured on it. No torch.

    now = Now(counters, measured, memory)
    now.holds(rule.when)        # True, False, or None: undefined
    now.finish(lasting(rule.when), skipped=True)  # what the memory keeps for the next step

The memory belongs to one rule on one guidance branch. The same code decides in a running gate, unrolls
a static rule into its mask, and proves that a policy can never skip in a run of so many steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from synccache.errors import StateError
from synccache.policies import conditions as c
from synccache.policies import counters as n
from synccache.policies import signals as s

Number = float | None  # None: undefined

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@dataclass(slots=True)
class Memory:
    """What the signals of one rule remember from step to step, on one guidance branch."""

    sums: dict[c.Signal, float] = field(default_factory=dict)
    products: dict[c.Signal, float] = field(default_factory=dict)
    before: dict[c.Signal, Number] = field(default_factory=dict)  # what lagged(...) reads


@dataclass(slots=True)
class Now:
    """One decision: the numbers of a step, and what they make of each signal."""

    counters: Mapping[str, Number]
    measured: Mapping[c.Signal, Number]
    memory: Memory
    values: dict[int, Number] = field(default_factory=dict)  # by identity: hashing goes deep
    products: dict[c.Signal, float] = field(default_factory=dict)

    def value(self, signal: c.Signal) -> Number:
        """The value of a signal on this step; None where it is undefined."""
        key = id(signal)
        if key not in self.values:
            known = isinstance(signal, s.MEASURED)
            value = self.measured.get(signal) if known else _VALUE[type(signal)](self, signal)
            self.values[key] = None if value is not None and math.isnan(value) else value
        return self.values[key]

    def holds(self, condition: c.Condition) -> bool | None:
        """Whether a condition is true, false, or undefined (None) on this step."""
        return _HOLDS[type(condition)](self, condition)

    def finish(self, lasting: Iterable[c.Signal], *, skipped: bool) -> None:
        """Keeps in the memory what the next step needs of the ``lasting`` signals of the condition."""
        for part in lasting:
            if isinstance(part, s.Lagged):
                self.memory.before[part.of] = self.value(part.of)
            elif isinstance(part, (s.Accumulated, s.Deviation)):
                self._keep(part, skipped)

    def _keep(self, of: s.Accumulated | s.Deviation, skipped: bool) -> None:
        value, memory = self.value(of), self.memory
        if isinstance(of, s.Accumulated) and of.reset is s.NEVER:
            memory.sums[of] = memory.sums.get(of, 0.0) if value is None else value
        elif not skipped:
            memory.sums[of], memory.products[of] = 0.0, 1.0
        elif value is not None:
            memory.sums[of] = value
            memory.products[of] = self.products.get(of, 1.0)


def lasting(condition: c.Condition) -> tuple[c.Signal, ...]:
    """The signals of a condition that remember something from step to step."""
    kinds = (s.Lagged, s.Accumulated, s.Deviation)
    found = [part for part in s.parts(condition) if isinstance(part, kinds)]
    return tuple(p for p in found if not (isinstance(p, s.Lagged) and s.late(p.of)))


# ---- signals


def _counter(now: Now, of: n.Counter) -> Number:
    if of.name in ("steps", "steps_left") and now.counters["steps"] is None:
        raise StateError(
            "the policy asks for the number of steps, which is not known.",
            hint="Call compiled.begin(steps=...) before the first step; later runs keep the number.",
        )
    return now.counters[of.name]


def _steps(now: Now) -> float:
    number = _counter(now, n.steps)
    assert number is not None
    return number


def _limit(now: Now, side: float | c.Signal) -> Number:
    return now.value(side) if isinstance(side, c.Signal) else side


def _arithmetic(now: Now, of: c.Arithmetic) -> Number:
    left, right = _limit(now, of.left), _limit(now, of.right)
    if left is None or right is None:
        return None
    if of.operator == "/":
        return left / right if right else None
    return {"+": operator.add, "-": operator.sub, "*": operator.mul}[of.operator](left, right)


def _polynomial(now: Now, of: s.Polynomial) -> Number:
    x = now.value(of.of)
    if x is None:
        return None
    value = 0.0
    for coefficient in of.coefficients:
        value = value * x + coefficient
    return value


def _accumulated(now: Now, of: s.Accumulated) -> Number:
    total = now.memory.sums.get(of, 0.0)
    if of.counting is not None and now.holds(of.counting) is not True:
        return total
    value = now.value(of.of)
    return None if value is None else total + value


def _deviation(now: Now, of: s.Deviation) -> Number:
    ratio = now.value(of.of)
    if ratio is None:
        return None
    product = now.memory.products.get(of, 1.0) * ratio
    now.products[of] = product
    return now.memory.sums.get(of, 0.0) + abs(1.0 - product)


def _lagged(now: Now, of: s.Lagged) -> Number:
    late = s.late(of.of)
    value = now.measured.get(of.of) if late else now.memory.before.get(of.of)
    return of.otherwise if value is None or math.isnan(value) else value


def _table(now: Now, of: n.Table) -> Number:
    step = now.counters["step"]
    assert step is not None
    return table_value(of.values, int(step), int(_steps(now)))


def table_value(values: tuple[float, ...], step: int, steps: int) -> float:
    """Entry of a table for ``step`` of ``steps``: the nearest when it is stretched over the run."""
    if steps == 1:
        return values[0]
    index = round(min(step, steps - 1) * (len(values) - 1) / (steps - 1))
    return values[index]


def _decay(now: Now, of: n.Decay) -> Number:
    step = now.counters["step"]
    assert step is not None
    return max(of.base * of.rate ** (step / _steps(now)), of.floor)


def _share(now: Now, of: n.Share) -> Number:
    return int(_steps(now) * of.of + (0.5 if of.rounding is n.NEAREST else 0.0))


def _choice(now: Now, of: s.Choice) -> Number:
    return _limit(now, of.then if now.holds(of.condition) is True else of.otherwise)


def _absolute(now: Now, of: c.Absolute) -> Number:
    value = now.value(of.of)
    return None if value is None else abs(value)


_VALUE: dict[type, Callable[[Now, Any], Number]] = {
    n.Counter: _counter,
    c.Arithmetic: _arithmetic,
    c.Absolute: _absolute,
    s.Polynomial: _polynomial,
    s.Accumulated: _accumulated,
    s.Deviation: _deviation,
    s.Lagged: _lagged,
    n.Table: _table,
    n.Decay: _decay,
    n.Share: _share,
    s.Choice: _choice,
}

# ---- conditions


def _compare(now: Now, of: c.Compare) -> bool | None:
    left, right = now.value(of.left), _limit(now, of.limit)
    return None if left is None or right is None else _COMPARE[of.operator](left, right)


def _between(now: Now, of: c.Between) -> bool | None:
    value = now.value(of.of)
    return None if value is None else of.low < value < of.high


def _every(now: Now, of: c.Every) -> bool | None:
    value = now.value(of.of)
    return None if value is None else (int(value) - of.offset) % of.n == 0


def _letters(now: Now, of: c.Steps) -> bool | None:
    step = now.counters["step"]
    assert step is not None
    return of.letters[min(int(step), len(of.letters) - 1)] == "S"


def _and(now: Now, of: c.And) -> bool | None:
    left, right = now.holds(of.left), now.holds(of.right)
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _or(now: Now, of: c.Or) -> bool | None:
    left, right = now.holds(of.left), now.holds(of.right)
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def _not(now: Now, of: c.Not) -> bool | None:
    value = now.holds(of.of)
    return None if value is None else not value


_HOLDS: dict[type, Callable[[Now, Any], bool | None]] = {
    c.Compare: _compare,
    c.Between: _between,
    c.Every: _every,
    c.Steps: _letters,
    c.And: _and,
    c.Or: _or,
    c.Not: _not,
}
