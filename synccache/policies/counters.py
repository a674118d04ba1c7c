"""Signals that need no tensor: counters of the run, tables, and thresholds that change with the step.

    (step >= share(0.2)) & (skips < 3) & (steps_left > 0)

What needs the number of steps (``steps``, ``steps_left``, ``share``, ``decay``, ``Table``) needs
``compiled.begin(steps=...)`` once; without it the first step is a StateError, because a run that
silently treats its last step as any other is not the policy that was asked for.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_number, plain_numbers
from synccache.policies.conditions import Signal

COUNTERS = {
    "step": "0 on the first step of a trajectory",
    "skips": "steps skipped in a row just before this one, by this rule on this guidance branch",
    "skipped": "steps skipped so far in all, by this rule on this guidance branch",
    "progress": "0 on the first step to 1 at no noise: 1 - noise / first noise",
    "noise": "this step's timestep input over the trajectory's first",
    "timestep": "the timestep input itself, in the model's own unit",
    "steps": "how many steps the run has; needs compiled.begin(steps=...)",
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
skipped = Counter("skipped")
progress = Counter("progress")
noise = Counter("noise")
timestep = Counter("timestep")
steps = Counter("steps")
steps_left = Counter("steps_left")


@dataclass(frozen=True, slots=True)
class Table(Signal):
    """The number of this step in a table that was made for ``len(values)`` steps.

    In a run of T steps, step i uses entry ``round(i (len - 1) / (T - 1))``, a half rounded to even;
    this needs ``compiled.begin(steps=T)``.

    Source: MagCache, arXiv 2506.09045 (nearest-neighbour interpolation of its ratios).
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", plain_numbers(self.values, "a table's value"))


@dataclass(frozen=True, slots=True)
class Decay(Signal):
    """``max(base * rate ** (step / steps), floor)``; needs ``compiled.begin(steps=...)``.

    Source: SpeCa, arXiv 2509.11628 (its threshold schedule).
    """

    base: float
    rate: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("base", float("inf")), ("rate", 1.0), ("floor", float("inf"))):
            value = plain_number(getattr(self, name), f"decay({name}=...)", low=0.0, high=high)
            object.__setattr__(self, name, value)


def decay(base: float, rate: float, *, floor: float = 0.0) -> Decay:
    """A threshold that falls from ``base`` towards ``base * rate`` over the run, not below ``floor``."""
    return Decay(base, rate, floor)


class Rounding(enum.Enum):
    """How a share of the steps becomes a whole number of steps."""

    DOWN = "down"
    NEAREST = "nearest"  # int(x + 0.5)

    def __repr__(self) -> str:
        return self.name


DOWN = Rounding.DOWN
NEAREST = Rounding.NEAREST


@dataclass(frozen=True, slots=True)
class Share(Signal):
    """This share of the run's steps as a whole number; needs ``compiled.begin(steps=...)``."""

    of: float
    rounding: Rounding = DOWN

    def __post_init__(self) -> None:
        ratio = plain_number(self.of, "share(...)", low=0.0, high=1.0)
        object.__setattr__(self, "of", ratio)
        expect(self.rounding, Rounding, "share(rounding=...)", "Use DOWN or NEAREST.")


def share(of: float, *, rounding: Rounding = DOWN) -> Share:
    """``step >= share(0.2)``: not in the first fifth of the run."""
    return Share(of, rounding)
