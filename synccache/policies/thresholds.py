"""Other thresholds for a condition that is already written: ``policy.with_(threshold=0.2)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from synccache.policies.conditions import Compare, Condition, Signal
from synccache.policies.counters import Table
from synccache.policies.signals import MEASURED, parts

T = TypeVar("T")


def thresholds(condition: Condition) -> tuple[Compare, ...]:
    """The comparisons of something measured (or tabulated) with a number or signal, each once.

    A limit of infinity is none: it is how a library file leaves a limit out.
    """
    found = []
    for part in parts(condition):
        if not isinstance(part, Compare) or part.limit == float("inf"):
            continue
        if any(isinstance(p, (*MEASURED, Table)) for p in parts(part.left)):
            found.append(part)
    return tuple(dict.fromkeys(found))


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
