"""Signals: numbers known once a step, measured on a probe or counted by the run.

    accumulated(relative_l1(output(blocks[0]), since=PREVIOUS, weight=mask("person", inside=2.0)))

What a change is measured against (``since=``) is a field, because it is the silent difference between
published methods. A signal whose reference does not exist yet (the first step of a guidance branch)
is undefined, and an undefined signal means: compute.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields, is_dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_number
from synccache.policies.conditions import Condition, Signal
from synccache.policies.selectors import Selector

MAX_INSIDE = 1e6  # a mask weight beyond this leaves nothing of the rest in float32


class Since(enum.Enum):
    """What a measurement is compared with."""

    PREVIOUS = "previous"  # the step before, computed or skipped
    LAST_COMPUTED = "last_computed"  # the last step on which the rule's branches were computed

    def __repr__(self) -> str:
        return self.name


PREVIOUS = Since.PREVIOUS
LAST_COMPUTED = Since.LAST_COMPUTED


@dataclass(frozen=True, slots=True)
class Output:
    """The stream after the last branch of ``of``; [batch, tokens, channels]."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what output(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Residual:
    """What the branches of ``of`` add together: the stream after them minus before them."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what residual(...) takes", "Select branches, e.g. blocks[0].")


Probe = Output | Residual


def output(of: Selector) -> Output:
    """The stream's value after the last branch of ``of``."""
    return Output(of)


def residual(of: Selector) -> Residual:
    """The stream after the last branch of ``of`` minus its value before the first."""
    return Residual(of)


@dataclass(frozen=True, slots=True)
class MaskWeight:
    """Token weights ``1 + (inside - 1) * m`` with the mask m in [0, 1] on the token grid.

    The mask comes from ``compile(masks={name: tensor})``; without one it is found from the tokens
    that the audio branches write to most strongly, and until those have run once it is uniform.
    """

    name: str
    inside: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PolicyError(f"mask(...) takes the mask's name, got {self.name!r}.")
        inside = plain_number(self.inside, "mask(inside=...)", low=0.0, high=MAX_INSIDE)
        object.__setattr__(self, "inside", inside)


def mask(name: str, *, inside: float) -> MaskWeight:
    """Weigh tokens inside the mask ``inside`` times as heavily as those outside."""
    return MaskWeight(name, inside)


@dataclass(frozen=True, slots=True)
class RelativeL1(Signal):
    """``sum_i w_i |p_i - q_i| / sum_i w_i |q_i|``: p the probe now, q the probe at ``since``."""

    probe: Probe
    since: Since
    weight: MaskWeight | None = None

    def __post_init__(self) -> None:
        expect(
            self.probe,
            (Output, Residual),
            "relative_l1's probe",
            "Probes are output(...) and residual(...).",
        )
        expect(self.since, Since, "relative_l1(since=...)", "Use PREVIOUS or LAST_COMPUTED.")
        if self.weight is not None:
            expect(self.weight, MaskWeight, "relative_l1(weight=...)", 'E.g. mask("person", ...).')


def relative_l1(probe: Probe, *, since: Since, weight: MaskWeight | None = None) -> RelativeL1:
    """Relative L1 change of a probe against an earlier step. Unit: none (a ratio)."""
    return RelativeL1(probe, since, weight)


@dataclass(frozen=True, slots=True)
class Polynomial(Signal):
    """``of`` through a polynomial, highest power first; not clamped, as in the released code."""

    of: Signal
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        _expect_measured(self.of, "what Polynomial(...) takes")
        if not isinstance(self.coefficients, tuple) or not self.coefficients:
            raise PolicyError(
                f"a polynomial's coefficients must be a tuple, got {self.coefficients!r}."
            )
        numbers = tuple(plain_number(c, "a polynomial's coefficient") for c in self.coefficients)
        object.__setattr__(self, "coefficients", numbers)


@dataclass(frozen=True, slots=True)
class Accumulated(Signal):
    """The sum of ``of`` since the last computed step, this step included."""

    of: Signal

    def __post_init__(self) -> None:
        _expect_measured(self.of, "what accumulated(...) takes")


def accumulated(of: Signal) -> Accumulated:
    """The sum of a signal over the steps since the last computed one; a computed step sets it to 0."""
    return Accumulated(of)


COUNTERS = {
    "step": "0 on the first step of a trajectory",
    "skips": "steps skipped in a row just before this one",
    "progress": "0 on the first step to 1 at no noise: 1 - noise / first noise",
    "noise": "this step's timestep input over the trajectory's first",
    "steps_left": "steps after this one; needs compiled.begin(steps=...)",
}


@dataclass(frozen=True, slots=True)
class Counter(Signal):
    """A number the run knows without measuring: see COUNTERS."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in COUNTERS:
            raise PolicyError(
                f"no counter is called {self.name!r}.", hint=f"Use {', '.join(COUNTERS)}."
            )


step = Counter("step")
skips = Counter("skips")
progress = Counter("progress")
noise = Counter("noise")
steps_left = Counter("steps_left")


def _expect_measured(signal: object, what: str) -> None:
    expect(signal, Signal, what)
    if isinstance(signal, Counter):
        raise PolicyError(f"{what} must be measured; {signal.name} is counted by the run.")


def measured_signals(condition: Condition) -> tuple[Signal, ...]:
    """The signals of a condition that need a tensor, in reading order, each once."""
    found: list[Signal] = []

    def walk(item: object) -> None:
        if isinstance(item, (RelativeL1, Polynomial, Accumulated)) and item not in found:
            found.append(item)
        if is_dataclass(item) and not isinstance(item, RelativeL1):
            for f in fields(item):
                walk(getattr(item, f.name))

    walk(condition)
    return tuple(found)
