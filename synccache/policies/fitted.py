"""Words of planned schedules: constants for every skipped step, and paying errors back.

    Fitted(((1, (0,), (1.0,)), (3, (0, 2), (-0.4, 1.4))))     step 3 = 1.4 r_2 - 0.4 r_0
    Payback(strength=0.5, degree=2)

They come out of the planner (``policies.planned``); nothing in them is measured while sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number
from synccache.policies.conditions import Steps
from synccache.policies.predictors import Linear, Predictor

MAX_DEGREE = 3  # of the interpolation: it holds one tensor more than its degree

# a skipped step, the computed steps that it is made of, oldest first, and their weights
Mix = tuple[int, tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Fitted(Predictor):
    """For every skipped step its own constant weights on the last computed steps, oldest first.

    Where other steps were computed than the plan says (a guidance branch that begins late computes
    once before it can skip), a skipped step lies on the line through the last two, as with
    ``Linear``. Holds as many tensors a run as the longest row of weights.
    """

    mixes: tuple[Mix, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.mixes, tuple) or not self.mixes:
            raise PolicyError(
                f"Fitted(...) takes a tuple of (step, anchors, weights), got {self.mixes!r}."
            )
        mixes = tuple(_checked(mix) for mix in self.mixes)
        steps = [step for step, _, _ in mixes]
        if steps != sorted(set(steps)):
            raise PolicyError(f"Fitted(...) lists every skipped step once, in order, got {steps}.")
        object.__setattr__(self, "mixes", mixes)

    @property
    def history(self) -> int:
        return max(len(anchors) for _, anchors, _ in self.mixes)

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        for step, planned, weights in self.mixes:
            if step == at and anchors[-len(planned) :] == planned:
                return (*(0.0,) * (len(anchors) - len(planned)), *weights)
        used = anchors[-2:]
        return (*(0.0,) * (len(anchors) - len(used)), *Linear().weights(used, at))


def _checked(mix: Mix) -> Mix:
    if (
        not isinstance(mix, tuple)
        or len(mix) != 3
        or not all(isinstance(m, tuple) for m in mix[1:])
    ):
        raise PolicyError(f"Fitted(...) takes (step, anchors, weights), got {mix!r}.")
    step = plain_integer(mix[0], "a step of Fitted(...)")
    anchors = tuple(plain_integer(a, f"an anchor of step {step}") for a in mix[1])
    weights = tuple(plain_number(w, f"a weight of step {step}") for w in mix[2])
    if not anchors or len(anchors) != len(weights):
        raise PolicyError(f"step {step} has {len(anchors)} anchors and {len(weights)} weights.")
    if list(anchors) != sorted(set(anchors)) or anchors[0] < 0 or anchors[-1] >= step:
        raise PolicyError(
            f"the anchors of step {step} must be earlier steps, oldest first: {anchors}."
        )
    if abs(sum(weights) - 1.0) > 1e-6:
        raise PolicyError(
            f"the weights of step {step} must sum to 1, got {sum(weights):g}.",
            hint="Otherwise features that do not change would be predicted wrong.",
        )
    return step, anchors, weights


@dataclass(frozen=True, slots=True)
class Payback:
    """What skipped steps got wrong is given back in the output of the next computed step.

    When step b is computed, the skipped steps since the last computed one are made again, with
    residuals interpolated through b and the computed steps before it instead of extrapolated, and
    ``strength * sum over t of  dsigma_t (v_interpolated - v_predicted) / dsigma_b`` is added to the
    output of b. ``strength`` 0 pays nothing; ``degree`` is that of the interpolation.
    Holds degree + 1 tensors a run, and the sample and output of every skipped step of a gap.
    """

    strength: float = 0.5
    degree: int = 2

    def __post_init__(self) -> None:
        strength = plain_number(self.strength, "Payback(strength=...)", low=0.0, high=1.0)
        object.__setattr__(self, "strength", strength)
        degree = plain_integer(self.degree, "Payback(degree=...)")
        if not 1 <= degree <= MAX_DEGREE:
            raise PolicyError(f"Payback(degree=...) must lie in [1, {MAX_DEGREE}], got {degree}.")

    @property
    def history(self) -> int:
        """How many tensors are held for each run."""
        return self.degree + 1 if self.strength else 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        """Of the polynomial through the last ``degree + 1`` of the anchors, oldest first."""
        used = anchors[-self.degree - 1 :]
        weights = [0.0] * (len(anchors) - len(used))
        for a in used:
            weight = 1.0
            for b in used:
                weight *= (at - b) / (a - b) if a != b else 1.0
            weights.append(weight)
        return tuple(weights)


class Planned(Protocol):
    """What a plan of computed steps has to say; the planner's ``StepPlan`` does."""

    @property
    def letters(self) -> str: ...
    @property
    def timesteps(self) -> tuple[float, ...]: ...
    @property
    def coefficients(self) -> tuple[Mix, ...]: ...
    @property
    def strength(self) -> float: ...
    @property
    def degree(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """A plan of computed steps written down by hand, for ``policies.planned``."""

    letters: str
    timesteps: tuple[float, ...]
    coefficients: tuple[Mix, ...]
    strength: float = 0.0
    degree: int = 2


def longest_gap(steps: Steps) -> int:
    """The most steps in a row that a schedule skips before it computes again."""
    runs = [(letter, len(list(run))) for letter, run in groupby(steps.letters)]
    return max((length for letter, length in runs[:-1] if letter == "S"), default=0)


def check_payback(payback: Payback, rules: tuple[object, ...], where: str) -> None:
    """Raises PolicyError where errors cannot be paid back."""
    expect(payback, Payback, f"{where}: payback", "E.g. Payback(strength=0.5).")
    if len(rules) != 1:
        raise PolicyError(f"payback needs exactly one rule, not {len(rules)}.", where=where)
    when, reuse = getattr(rules[0], "when"), getattr(rules[0], "reuse")  # noqa: B009 - any rule
    if not isinstance(when, Steps):
        raise PolicyError(
            "payback needs a schedule that is known: a condition that is Steps(...) alone.",
            where=where, hint="Plan one: synccache.plan_steps.",
        )  # fmt: skip
    if reuse.recent:
        raise PolicyError(
            f"payback cannot interpolate between forecasts, which {reuse!r} holds.", where=where
        )
