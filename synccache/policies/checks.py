"""Checks that a policy's parts make when they are built, so that a built policy is a right one."""

from __future__ import annotations

import math
import numbers

from synccache.errors import PolicyError


def plain_number(
    value: object, what: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """``value`` as a Python int or float, so that it prints as the text that makes it.

    Raises:  PolicyError for text, truth values, tensors, NaN and numbers outside [low, high].
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise PolicyError(f"{what} must be a number, got {value!r}.")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if math.isnan(number):
        raise PolicyError(f"{what} must be a number, got {value!r}.")
    if not low <= number <= high:
        raise PolicyError(f"{what} must lie in [{low:g}, {high:g}], got {value!r}.")
    return number


def plain_numbers(values: object, what: str) -> tuple[float, ...]:
    if not isinstance(values, tuple) or not values:
        raise PolicyError(f"{what}s must be a tuple of at least one, got {values!r}.")
    return tuple(plain_number(v, what) for v in values)


def plain_integer(value: object, what: str) -> int:
    """``value`` as a Python int.

    Raises:  PolicyError for anything that is not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise PolicyError(f"{what} must be an integer, got {value!r}.")
    return int(value)


def expect(value: object, kind: type | tuple[type, ...], what: str, hint: str = "") -> None:
    """Nothing, if ``value`` is of this kind; the kind's class name is the word for it."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = " or ".join(k.__name__.lower() for k in kinds)
        article = "an" if words[0] in "aeiou" else "a"
        raise PolicyError(f"{what} must be {article} {words}, got {value!r}.", hint=hint)
