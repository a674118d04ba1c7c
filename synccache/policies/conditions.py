"""Conditions: on which steps to skip. A signal compared with a number is one; they join and invert.

    (accumulated(moved) <= 0.1) & (step >= 2) & ~Steps("CCCS")

Conditions have three values. A signal without a reference (the first step of a guidance branch) is
undefined, and so is a comparison with it. ``&`` with a false side is false, ``|`` with a true side is
true, whatever the other side; everything else with an undefined part is undefined. A condition that
is undefined in the end means: compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number

COMPARISONS = ("<", "<=", ">", ">=")
OPERATIONS = ("+", "-", "*", "/")


class Signal:
    """A number known once a step; comparing it with a number or a signal makes a condition."""

    __slots__ = ()

    def __lt__(self, limit: float | Signal) -> Compare:
        return Compare(self, "<", limit)

    def __le__(self, limit: float | Signal) -> Compare:
        return Compare(self, "<=", limit)

    def __gt__(self, limit: float | Signal) -> Compare:
        return Compare(self, ">", limit)

    def __ge__(self, limit: float | Signal) -> Compare:
        return Compare(self, ">=", limit)

    def __add__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(self, "+", other)

    def __radd__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(other, "+", self)

    def __sub__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(self, "-", other)

    def __rsub__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(other, "-", self)

    def __mul__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(self, "*", other)

    def __rmul__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(other, "*", self)

    def __truediv__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(self, "/", other)

    def __rtruediv__(self, other: float | Signal) -> Arithmetic:
        return Arithmetic(other, "/", self)

    def __abs__(self) -> Absolute:
        return Absolute(self)

    def __bool__(self) -> bool:
        raise PolicyError("a signal has no truth value.", hint="Compare it with a number first.")

    def _not_a_condition(self, other: object = None) -> NoReturn:
        raise PolicyError(
            "&, | and ~ join conditions, and a signal alone is none.",
            hint="Put each comparison in parentheses: (moved <= 0.05) & (step >= 2).",
        )

    # `moved <= 0.05 & step >= 2` is `moved <= (0.05 & step) >= 2` to Python
    __and__ = __rand__ = __or__ = __ror__ = __invert__ = _not_a_condition


@dataclass(frozen=True, slots=True)
class Arithmetic(Signal):
    """``left operator right`` of signals and numbers; undefined where a side is, or divided by 0."""

    left: float | Signal
    operator: str
    right: float | Signal

    def __post_init__(self) -> None:
        if self.operator not in OPERATIONS:
            raise PolicyError(
                f"signals are not joined with {self.operator!r}.",
                hint=f"Use {', '.join(OPERATIONS)}.",
            )
        for name in ("left", "right"):
            value = getattr(self, name)
            if not isinstance(value, Signal):
                value = plain_number(value, f"the {name} side of {self.operator}")
                object.__setattr__(self, name, value)
        if not isinstance(self.left, Signal) and not isinstance(self.right, Signal):
            raise PolicyError(f"{self.left} {self.operator} {self.right} is a number, no signal.")


@dataclass(frozen=True, slots=True)
class Absolute(Signal):
    """The signal without its sign. Written ``abs(signal)``."""

    of: Signal

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what abs(...) takes")


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
    """``left operator limit``; the limit is a number of 0 or more, or a signal of the same step.

    Undefined where a side is; a measurement that gives NaN (0/0) is undefined as well.
    """

    left: Signal
    operator: str
    limit: float | Signal

    def __post_init__(self) -> None:
        expect(self.left, Signal, "the left side of a comparison")
        if self.operator not in COMPARISONS:
            raise PolicyError(
                f"no comparison is written {self.operator!r}.",
                hint=f"Use {', '.join(COMPARISONS)}.",
            )
        if not isinstance(self.limit, Signal):
            what = f"the limit in `{type(self.left).__name__} {self.operator} ...`"
            object.__setattr__(self, "limit", plain_number(self.limit, what, low=0.0))


@dataclass(frozen=True, slots=True)
class Between(Condition):
    """``low < of < high``, strict on both sides. Written ``between(timestep, 100, 800)``."""

    of: Signal
    low: float
    high: float

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what between(...) takes")
        low = plain_number(self.low, "the lower end of between(...)")
        high = plain_number(self.high, "the upper end of between(...)")
        if low >= high:
            raise PolicyError(f"between({low:g}, {high:g}) is empty.", hint="Put the lower first.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)


def between(of: Signal, low: float, high: float) -> Between:
    """True where the signal lies between the two numbers and equals neither."""
    return Between(of, low, high)


@dataclass(frozen=True, slots=True)
class Every(Condition):
    """True where ``(of - offset)`` is a multiple of ``n``. Written ``every(step, 3)``."""

    of: Signal
    n: int
    offset: int = 0

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what every(...) counts")
        if getattr(self.of, "name", None) not in WHOLE:
            raise PolicyError(
                f"every(...) counts whole numbers, got {self.of!r}.",
                hint=f"Use {', '.join(WHOLE)}.",
            )
        n = plain_integer(self.n, "the n of every(...)")
        if n < 1:
            raise PolicyError(f"the n of every(...) must be 1 or more, got {n}.")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "offset", plain_integer(self.offset, "the offset of every(...)"))


WHOLE = ("step", "skips", "skipped", "steps_left")  # the counters that every(...) can count


def every(of: Signal, n: int, offset: int = 0) -> Every:
    """True on every n-th value of a counter: offset, offset + n, offset + 2 n, ..."""
    return Every(of, n, offset)


@dataclass(frozen=True, slots=True)
class Steps(Condition):
    """True on the steps whose letter is S; the last letter holds for all later steps.

    ``timesteps``, one a letter as the model is given them, make it the mask of a trajectory that was
    planned: a run of other timesteps, or of more steps, is refused.
    """

    letters: str
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.letters, str) or not self.letters or set(self.letters) - set("CS"):
            raise PolicyError(f"a step mask is a text of C and S, got {self.letters!r}.")
        if not isinstance(self.timesteps, tuple):
            raise PolicyError(f"the timesteps of a mask must be a tuple, got {self.timesteps!r}.")
        if self.timesteps and len(self.timesteps) != len(self.letters):
            raise PolicyError(
                f"a planned mask takes one timestep for each of {len(self.letters)} letters, got "
                f"{len(self.timesteps)}."
            )
        numbers = tuple(plain_number(t, "a timestep of a mask") for t in self.timesteps)
        object.__setattr__(self, "timesteps", numbers)


@dataclass(frozen=True, slots=True)
class And(Condition):
    """True where both are, false where one is."""

    left: Condition
    right: Condition

    def __post_init__(self) -> None:
        expect(self.left, Condition, "the left side of &", "Compare a signal with <, <=, > or >=.")
        expect(self.right, Condition, "the right side of &", "Put each comparison in parentheses.")


@dataclass(frozen=True, slots=True)
class Or(Condition):
    """True where at least one is, false where both are."""

    left: Condition
    right: Condition

    def __post_init__(self) -> None:
        expect(self.left, Condition, "the left side of |", "Compare a signal with <, <=, > or >=.")
        expect(self.right, Condition, "the right side of |", "Put each comparison in parentheses.")


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """True where ``of`` is false."""

    of: Condition

    def __post_init__(self) -> None:
        expect(self.of, Condition, "what ~ inverts")
