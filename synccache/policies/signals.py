"""Signals: numbers known once a step, measured on a probe or counted by the run.

    accumulated(relative_l1(output(blocks[0]), since=PREVIOUS, weight=mask("person", inside=2.0)))

A measured signal is measured by the guidance branch that decides, once a step. It is undefined until
its reference exists, and an undefined signal makes a condition undefined (see conditions.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number, plain_numbers
from synccache.policies.conditions import Condition, Signal
from synccache.policies.counters import Counter
from synccache.policies.probes import (
    OLD,
    PROBES,
    RATIO_OF_MEANS,
    WEIGHTS,
    Denominator,
    Forecast,
    Given,
    Norm,
    Prediction,
    Probe,
    Since,
    TokenFilter,
    Weight,
)
from synccache.policies.selectors import Selector
from synccache.policies.sizes import PROBE_HINT, MeanSize, SizeRatio

# ---- measured


@dataclass(frozen=True, slots=True)
class RelativeL1(Signal):
    """The relative change of a probe: p now, q at ``since``, d one of the two (``denominator``).

    RATIO_OF_MEANS: ``sum_i w_i |p_i - q_i| / (sum_i w_i |d_i| + n eps)`` over all n elements, in
    float32, w the token weights (1 without a mask).
    """

    probe: Probe
    since: Since | Forecast
    weight: Weight | tuple[Weight, ...] | None = None
    norm: Norm = RATIO_OF_MEANS
    denominator: Denominator = OLD
    eps: float = 0.0

    def __post_init__(self) -> None:
        expect(self.probe, PROBES, "relative_l1's probe", PROBE_HINT)
        hint = "Use PREVIOUS, LAST_COMPUTED or forecast(...)."
        expect(self.since, (Since, Forecast), "relative_l1(since=...)", hint)
        _check_weight(self.weight, "relative_l1(weight=...)")
        expect(self.norm, Norm, "relative_l1(norm=...)", "E.g. RATIO_OF_MEANS.")
        expect(self.denominator, Denominator, "relative_l1(denominator=...)", "Use OLD or NEW.")
        eps = plain_number(self.eps, "relative_l1(eps=...)", low=0.0)
        object.__setattr__(self, "eps", eps)
        if self.norm is not RATIO_OF_MEANS and any(
            isinstance(w, TokenFilter) for w in weights_of(self)
        ):
            raise PolicyError("token_filter(...) is defined for norm=RATIO_OF_MEANS only.")


def relative_l1(
    probe: Probe,
    *,
    since: Since | Forecast,
    weight: Weight | tuple[Weight, ...] | None = None,
    norm: Norm = RATIO_OF_MEANS,
    denominator: Denominator = OLD,
    eps: float = 0.0,
) -> RelativeL1:
    """Relative L1 change of a probe against an earlier step or a forecast. Unit: none (a ratio)."""
    return RelativeL1(probe, since, weight, norm, denominator, eps)


@dataclass(frozen=True, slots=True)
class MeanChange(Signal):
    """``mean|p - q|``: p the probe now, q at ``since``; in the probe's unit."""

    probe: Probe
    since: Since | Forecast
    weight: Weight | tuple[Weight, ...] | None = None

    def __post_init__(self) -> None:
        expect(self.probe, PROBES, "mean_change's probe", PROBE_HINT)
        hint = "Use PREVIOUS, LAST_COMPUTED or forecast(...)."
        expect(self.since, (Since, Forecast), "mean_change(since=...)", hint)
        _check_weight(self.weight, "mean_change(weight=...)")


def mean_change(
    probe: Probe,
    *,
    since: Since | Forecast,
    weight: Weight | tuple[Weight, ...] | None = None,
) -> MeanChange:
    """Mean absolute change of a probe, not divided by anything."""
    return MeanChange(probe, since, weight)


@dataclass(frozen=True, slots=True)
class Gain(Signal):
    """``mean|of_a - of_b| / mean|per_a - per_b|``: a the last computed step, b the one before it.

    Learned online, at computed steps only. Undefined until two steps were computed, and where ``per``
    did not change between them.

    Source: EasyCache, arXiv 2507.02860 (its k: output change per input change).
    """

    of: Probe
    per: Probe

    def __post_init__(self) -> None:
        expect(self.of, PROBES, "what gain(...) follows", PROBE_HINT)
        expect(self.per, PROBES, "what gain(...) divides by", PROBE_HINT)


def gain(of: Probe, per: Probe) -> Gain:
    """How much ``of`` changed per change of ``per`` between the last two computed steps."""
    return Gain(of, per)


@dataclass(frozen=True, slots=True)
class ExactError(Signal):
    """The relative error of a skipped step at the branches of ``of``: p predicted, q exact.

    On a skipped step that follows ``after`` skipped steps or more, the branches of ``of`` also run on
    the predicted stream; q is the stream after them, p what the step uses instead. Known only after
    the step: ``lagged(exact_error(...))``. Undefined where it was not measured on the step before.
    The output does not change.

    Source: SpeCa, arXiv 2509.11628 (its verification of a draft).
    """

    of: Selector
    norm: Norm = Norm.MEAN_OF_RATIOS
    denominator: Denominator = Denominator.NEW
    eps: float = 1e-10
    after: int = 0

    def __post_init__(self) -> None:
        expect(
            self.of, Selector, "what exact_error(...) takes", "Select branches, e.g. blocks[-1]."
        )
        expect(self.norm, Norm, "exact_error(norm=...)", "E.g. MEAN_OF_RATIOS.")
        expect(self.denominator, Denominator, "exact_error(denominator=...)", "Use OLD or NEW.")
        eps = plain_number(self.eps, "exact_error(eps=...)", low=0.0)
        object.__setattr__(self, "eps", eps)
        after = plain_integer(self.after, "exact_error(after=...)")
        if after < 0:
            raise PolicyError(f"exact_error(after=...) must be 0 or more, got {after}.")
        object.__setattr__(self, "after", after)


def exact_error(
    of: Selector,
    *,
    norm: Norm = Norm.MEAN_OF_RATIOS,
    denominator: Denominator = Denominator.NEW,
    eps: float = 1e-10,
    after: int = 0,
) -> ExactError:
    """The error of a skipped step, seen by running a few of the skipped branches exactly."""
    return ExactError(of, norm, denominator, eps, after)


# ---- made of other signals


@dataclass(frozen=True, slots=True)
class Polynomial(Signal):
    """``of`` through a polynomial, highest power first; not clamped, as in the released code."""

    of: Signal
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what Polynomial(...) takes")
        numbers = plain_numbers(self.coefficients, "a polynomial's coefficient")
        object.__setattr__(self, "coefficients", numbers)


class Reset(enum.Enum):
    """When a sum starts again from 0."""

    ON_COMPUTE = "on_compute"  # behind every step on which the rule's branches were computed
    NEVER = "never"

    def __repr__(self) -> str:
        return self.name


ON_COMPUTE = Reset.ON_COMPUTE
NEVER = Reset.NEVER


@dataclass(frozen=True, slots=True)
class Accumulated(Signal):
    """The sum of ``of`` since the last computed step (or for ever), this step included.

    Every step adds to it, also those on which other parts of the condition forbid to skip; a computed
    step then sets it to 0, whatever made it compute (ON_COMPUTE). Where ``of`` is undefined nothing
    is added and the sum is undefined on that step. With ``counting``, only steps on which that
    condition is true add; on the others the value is the sum so far.
    """

    of: Signal
    reset: Reset = ON_COMPUTE
    counting: Condition | None = None

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what accumulated(...) takes")
        if isinstance(self.of, Counter):
            raise PolicyError(
                f"what accumulated(...) takes must be measured; {self.of.name} is counted by the run."
            )
        expect(self.reset, Reset, "accumulated(reset=...)", "Use ON_COMPUTE or NEVER.")
        if self.counting is not None:
            expect(self.counting, Condition, "accumulated(counting=...)", "Compare a signal.")


def accumulated(
    of: Signal, *, reset: Reset = ON_COMPUTE, counting: Condition | None = None
) -> Accumulated:
    """The sum of a signal over the steps since the last computed one, or over all (NEVER)."""
    return Accumulated(of, reset, counting)


@dataclass(frozen=True, slots=True)
class Deviation(Signal):
    """``sum |1 - R|`` with R the running product of ``of``, since the last computed step.

    This step included: ``R *= of; E += |1 - R|``; a computed step sets R to 1 and E to 0. Where
    ``of`` is undefined, so is E, and nothing changes.

    Source: MagCache, arXiv 2506.09045; Zehong-Ma/MagCache @df81cb1.
    """

    of: Signal

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what deviation(...) takes")


def deviation(of: Signal) -> Deviation:
    """How far the running product of a ratio has gone from 1, summed since the last computed step."""
    return Deviation(of)


@dataclass(frozen=True, slots=True)
class Lagged(Signal):
    """The value that ``of`` had on the step before, when that step was decided or after it ended.

    On the first step, and where ``of`` was undefined, it is ``otherwise``, or undefined if that is
    None. What is known only after a step (``prediction``, ``exact_error``) is read through this.
    """

    of: Signal
    otherwise: float | None = None

    def __post_init__(self) -> None:
        expect(self.of, Signal, "what lagged(...) takes")
        if self.otherwise is not None:
            value = plain_number(self.otherwise, "lagged(otherwise=...)")
            object.__setattr__(self, "otherwise", value)


def lagged(of: Signal, *, otherwise: float | None = None) -> Lagged:
    """The value of a signal on the step before."""
    return Lagged(of, otherwise)


@dataclass(frozen=True, slots=True)
class Choice(Signal):
    """``then`` where ``condition`` is true, ``otherwise`` where it is false or undefined.

    Written ``choose(condition, then, otherwise)``: two thresholds switched by a condition.
    """

    condition: Condition
    then: float | Signal
    otherwise: float | Signal

    def __post_init__(self) -> None:
        expect(
            self.condition, Condition, "what choose(...) asks", "Compare a signal with a number."
        )
        for name in ("then", "otherwise"):
            value = getattr(self, name)
            if not isinstance(value, Signal):
                object.__setattr__(self, name, plain_number(value, f"choose's {name}"))


def choose(condition: Condition, then: float | Signal, otherwise: float | Signal) -> Choice:
    """One of two numbers or signals, by a condition."""
    return Choice(condition, then, otherwise)


# ---- looking at conditions

MEASURED = (RelativeL1, MeanChange, MeanSize, SizeRatio, Gain, ExactError, Given)


def parts(item: object) -> tuple[object, ...]:
    """Everything a condition or signal is made of, itself first, in reading order, repeats included."""
    found = [item]
    for inner in _inner(item):
        found.extend(parts(inner))
    return tuple(found)


def measured_signals(condition: Condition | Signal) -> tuple[Signal, ...]:
    """The signals of a condition that need a tensor, in reading order, each once.

    None means that the condition is static: it compiles to a step mask, with no probe and no sync.
    """
    found = [p for p in parts(condition) if isinstance(p, MEASURED)]
    return tuple(dict.fromkeys(found))


def late(signal: object) -> bool:
    """Whether a measured signal is known only after the step it belongs to."""
    if isinstance(signal, ExactError):
        return True
    return isinstance(signal, (RelativeL1, MeanChange)) and isinstance(signal.probe, Prediction)


def check_late(condition: object) -> None:
    """Raises: PolicyError where a signal that is known only after the step is read in it."""
    if isinstance(condition, Lagged):
        if late(condition.of):
            return
    elif late(condition):
        raise PolicyError(
            f"{condition!r} is known only after the step that it would decide about.",
            hint="Read the value of the step before: lagged(...) directly around it.",
        )
    for inner in _inner(condition):
        check_late(inner)


def weights_of(signal: RelativeL1 | MeanChange) -> tuple[Weight, ...]:
    """The weights of a measurement, in the order in which they apply."""
    if signal.weight is None:
        return ()
    return signal.weight if isinstance(signal.weight, tuple) else (signal.weight,)


def _inner(item: object) -> list[object]:
    if isinstance(item, MEASURED):
        return []
    values = [getattr(item, f.name) for f in fields(item)]  # type: ignore[arg-type]
    return [v for v in values if isinstance(v, (Signal, Condition))]


def _check_weight(weight: object, what: str) -> None:
    for each in weight if isinstance(weight, tuple) else (weight,):
        if each is not None or isinstance(weight, tuple):
            expect(each, WEIGHTS, what, 'E.g. mask("person", inside=2.0).')
