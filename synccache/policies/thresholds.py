"""Other thresholds for a condition that is already written: ``policy.with_(threshold=0.2)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from synccache.policies.conditions import And, Compare, Condition, Not, Or, Signal
from synccache.policies.counters import Table
from synccache.policies.signals import MEASURED, parts

T = TypeVar("T")


def thresholds(condition: Condition) -> tuple[Compare, ...]:
    """The comparisons of something measured (or tabulated) with a number or signal, each once.

    A limit of infinity is none: it is how a library file leaves a limit out. Conditions inside
    signals (``choose``, ``counting=``) are not looked into.
    """
    if isinstance(condition, (And, Or)):
        return tuple(dict.fromkeys(thresholds(condition.left) + thresholds(condition.right)))
    if isinstance(condition, Not):
        return thresholds(condition.of)
    if not isinstance(condition, Compare) or condition.limit == float("inf"):
        return ()
    measured = any(isinstance(p, (*MEASURED, Table)) for p in parts(condition.left))
    return (condition,) if measured else ()


def with_threshold(condition: Condition, old: Compare, limit: float | Signal) -> Condition:
    """The condition with another limit in every comparison that equals ``old``."""
    return rebuilt(condition, lambda part: replace(part, limit=limit) if part == old else part)


def rebuilt(item: T, change: Callable[[Any], Any]) -> T:
    """A copy of a condition or signal whose parts went through ``change``, inner ones first."""
    changed = {}
    for f in fields(item):  # type: ignore[arg-type]
        value = getattr(item, f.name)
        if isinstance(value, (Condition, Signal)):
            changed[f.name] = rebuilt(value, change)
    result: T = change(replace(item, **changed) if changed else item)  # type: ignore[type-var]
    return result
