"""Conditions: on which steps to skip. A signal compared with a number is one; they join and invert.

(accumulated(moved) <= 0.1) & (step >= 2) & ~Steps("CCCS")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_number

COMPARISONS = ("<", "<=", ">", ">=")


class Signal:
    """A number known once a step; comparing it with a number makes a condition."""

    __slots__ = ()

    def __lt__(self, limit: float) -> Compare:
        return Compare(self, "<", limit)

    def __le__(self, limit: float) -> Compare:
        return Compare(self, "<=", limit)

    def __gt__(self, limit: float) -> Compare:
        return Compare(self, ">", limit)

    def __ge__(self, limit: float) -> Compare:
        return Compare(self, ">=", limit)

    def __bool__(self) -> bool:
        raise PolicyError("a signal has no truth value.", hint="Compare it with a number first.")

    def _not_a_condition(self, other: object = None) -> NoReturn:
        raise PolicyError(
            "&, | and ~ join conditions, and a signal alone is none.",
            hint="Put each comparison in parentheses: (moved <= 0.05) & (step >= 2).",
        )

    # `moved <= 0.05 & step >= 2` is `moved <= (0.05 & step) >= 2` to Python
    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _not_a_condition


class Condition:
    """True on the steps to skip; ``&``, ``|`` and ``~`` join conditions."""

    __slots__ = ()

    def __and__(self, other: Condition) -> And:
        return And(self, other)

    def __or__(self, other: Condition) -> Or:
        return Or(self, other)

    def __invert__(self) -> Not:
        return Not(self)

    def __bool__(self) -> bool:
        raise PolicyError(
            "a condition has no truth value while the policy is written.",
            hint="Write & for and, | for or, ~ for not, and put each comparison in parentheses; "
            "a <= x <= b is (x >= a) & (x <= b).",
        )


@dataclass(frozen=True, slots=True)
class Compare(Condition):
    """``left operator limit``."""

    left: Signal
    operator: str
    limit: float

    def __post_init__(self) -> None:
        expect(self.left, Signal, "the left side of a comparison")
        if self.operator not in COMPARISONS:
            raise PolicyError(
                f"no comparison is written {self.operator!r}.",
                hint=f"Use {', '.join(COMPARISONS)}.",
            )
        what = f"the limit in `{type(self.left).__name__} {self.operator} ...`"
        object.__setattr__(self, "limit", plain_number(self.limit, what, low=0.0))


@dataclass(frozen=True, slots=True)
class Steps(Condition):
    """True on the steps whose letter is S; the last letter holds for all later steps."""

    letters: str

    def __post_init__(self) -> None:
        if not isinstance(self.letters, str) or not self.letters or set(self.letters) - set("CS"):
            raise PolicyError(f"a step mask is a text of C and S, got {self.letters!r}.")


@dataclass(frozen=True, slots=True)
class And(Condition):
    """True where both are."""

    left: Condition
    right: Condition

    def __post_init__(self) -> None:
        expect(self.left, Condition, "the left side of &", "Compare a signal with <, <=, > or >=.")
        expect(self.right, Condition, "the right side of &", "Put each comparison in parentheses.")


@dataclass(frozen=True, slots=True)
class Or(Condition):
    """True where at least one is."""

    left: Condition
    right: Condition

    def __post_init__(self) -> None:
        expect(self.left, Condition, "the left side of |", "Compare a signal with <, <=, > or >=.")
        expect(self.right, Condition, "the right side of |", "Put each comparison in parentheses.")


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """True where ``of`` is not."""

    of: Condition

    def __post_init__(self) -> None:
        expect(self.of, Condition, "what ~ inverts")
