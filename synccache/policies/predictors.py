"""Predictors: what a skipped step puts in the place of what it did not compute.

    Taylor(order=2)           Split(low=Hold(), high=Hermite(order=2, scale=0.71))

Nearly every published predictor is a weighted sum of a few held tensors with scalar weights. Each of
these says how many tensors it holds (``history``) and ``weights(anchors, at)``: one weight for each
held tensor, oldest first, where ``anchors`` are the steps that the tensors held so far belong to and
``at`` is the step to predict. Distances count steps, not noise levels. With fewer tensors than
``history`` each uses what there is; with one, all of them reuse it.

All weights of one prediction sum to 1: features that do not change are predicted exactly.

Source: section 2 of the published methods named below; docs/policies.md lists them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from math import factorial

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number
from synccache.policies.differences import combined, differences

MAX_ORDER = 8  # a forecast of higher order amplifies rounding beyond use


class Predictor:
    """A recipe for what a skipped step uses; see the subclasses."""

    __slots__ = ()

    @property
    def history(self) -> int:
        """How many tensors are held for each run, at most."""
        raise NotImplementedError

    @property
    def recent(self) -> int:
        """How many of the newest held tensors may be forecasts; 0: only computed ones are held."""
        return 0

    @property
    def anchors(self) -> int:
        """How many of the newest computed tensors are held, besides ``recent`` ones."""
        return self.history - self.recent

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        """One weight for each tensor held so far, oldest first."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Hold(Predictor):
    """What was computed last. Holds 1 tensor a run."""

    @property
    def history(self) -> int:
        return 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        return _newest(len(anchors))


@dataclass(frozen=True, slots=True)
class Linear(Predictor):
    """On the line through the last two computed steps, by true step distance. Holds 2 tensors a run.

    ``r_a + (r_a - r_b) * (t - a) / (a - b)``
    """

    @property
    def history(self) -> int:
        return 2

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        return Newton(order=1).weights(anchors, at)


@dataclass(frozen=True, slots=True)
class Taylor(Predictor):
    """Taylor polynomial at the last computed step, with backward differences as derivatives.

    At a computed step a with gap N to the one before: ``f_0 = F``, ``f_(i+1) = (f_i - old f_i) / N``;
    a skipped step k later uses ``sum_i f_i k^i / i!``. As released: the difference of orders above 1
    is not the derivative at a, and an old difference keeps its own gap. ``Newton`` is the exact form.
    ``start``: differences are first taken on this step (released: first_enhance - 1).
    Holds order + 1 tensors a run.

    Source: TaylorSeer, arXiv 2503.06923; Shenyi-Z/TaylorSeer @288776d taylorseer_utils.
    """

    order: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        _check_order(self, "Taylor")

    @property
    def history(self) -> int:
        return self.order + 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        k = at - anchors[-1]
        scales = [k**i / factorial(i) for i in range(self.order + 1)]
        return combined(differences(anchors, self.order, self.start), scales, len(anchors))


@dataclass(frozen=True, slots=True)
class Newton(Predictor):
    """The polynomial through the last order + 1 computed steps (divided differences), whatever gaps.

    Exact for features that are polynomials of this order in the step. Holds order + 1 tensors a run.
    """

    order: int = 1

    def __post_init__(self) -> None:
        _check_order(self, "Newton")

    @property
    def history(self) -> int:
        return self.order + 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        used = anchors[-self.order - 1 :]
        weights = [0.0] * (len(anchors) - len(used))
        for i, a in enumerate(used):  # Lagrange's form of the same polynomial
            weight = 1.0
            for j, b in enumerate(used):
                if i != j:
                    weight *= (at - b) / (a - b)
            weights.append(weight)
        return tuple(weights)


@dataclass(frozen=True, slots=True)
class Hermite(Predictor):
    """Taylor's differences, weighed by scaled physicists' Hermite polynomials instead of powers.

    ``f_0 + sum_(i>0) f_i / i! * s^i * H_i(s k)``. At order 1 equal to Taylor for s = sqrt(1/2), half
    its slope for s = 1/2; above order 1 it does not pass through its own anchor.
    Holds order + 1 tensors a run.

    Source: HiCache, arXiv 2508.16984; fenglang918/HiCache (scale 0.5 on FLUX).
    """

    order: int = 3
    scale: float = 0.5
    start: int = 0

    def __post_init__(self) -> None:
        _check_order(self, "Hermite")
        scale = plain_number(self.scale, "Hermite(scale=...)", low=0.0, high=2.0)
        object.__setattr__(self, "scale", scale)

    @property
    def history(self) -> int:
        return self.order + 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        x = self.scale * (at - anchors[-1])
        values = [1.0, 2 * x]
        for n in range(1, self.order):
            values.append(2 * x * values[n] - 2 * n * values[n - 1])
        scales = [self.scale**i / factorial(i) * values[i] for i in range(self.order + 1)]
        return combined(differences(anchors, self.order, self.start), scales, len(anchors))


@dataclass(frozen=True, slots=True)
class TwoAnchor(Predictor):
    """``r_b + g (r_a - r_b)``, as far along as the rule's probe residual has gone since anchor b.

    ``g = mean|q_t - q_b| / mean|q_a - q_b|``, kept within [low, high]; q is the residual that the
    rule's condition probes. Stays on the device: no sync. Holds 2 tensors a run.

    Source: DiCache, arXiv 2508.17356; Bujiazi/DiCache @dd7f0de (high 1.5; 2 on Wan).
    """

    low: float = 1.0
    high: float = 1.5

    def __post_init__(self) -> None:
        low = plain_number(self.low, "TwoAnchor(low=...)", low=0.0)
        high = plain_number(self.high, "TwoAnchor(high=...)", low=0.0)
        if low > high:
            raise PolicyError(f"TwoAnchor's low {low:g} must not exceed its high {high:g}.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def history(self) -> int:
        return 2

    def weights(
        self, anchors: tuple[int, ...], at: int, ratio: float | None = None
    ) -> tuple[float, ...]:
        if ratio is None or len(anchors) < self.history:
            return _newest(len(anchors))
        ratio = min(max(ratio, self.low), self.high)
        return (*(0.0,) * (len(anchors) - 2), 1.0 - ratio, ratio)


FOCA_HORIZON = 3  # steps; beyond it the forecast is pulled back to the anchor


@dataclass(frozen=True, slots=True)
class Foca(Predictor):
    """Heun's rule from the last computed step: half its slope, half the slope of the last two values.

    ``F_a + k/2 ((F_a - F_b) + (F_(t-1) - F_(t-2)))`` with forecasts among the last two values; for
    k > 3 the step is taken at k = 3 and weighed by 3 / k. As released, F_a - F_b is not divided by
    its gap, so it overshoots where anchors are more than one step apart. Holds up to 4 tensors a run.

    Source: FoCa, arXiv 2508.16211; cache-dit 1.5.3 cache_contexts/calibrators/foca.py.
    """

    @property
    def history(self) -> int:
        return 4

    @property
    def recent(self) -> int:
        return 2

    def weights(
        self, anchors: tuple[int, ...], at: int, forecasts: frozenset[int] = frozenset()
    ) -> tuple[float, ...]:
        """``forecasts``: those of ``anchors`` whose tensor is itself a forecast."""
        computed = [i for i, a in enumerate(anchors) if a not in forecasts]
        a, distance = computed[-1], at - anchors[computed[-1]]
        weights = [0.0] * len(anchors)
        weights[a] = 1.0
        if len(computed) < 2:
            return tuple(weights)
        slope = min(distance, FOCA_HORIZON) / 2 * min(1.0, FOCA_HORIZON / distance)
        for place, sign in ((a, 1), (computed[-2], -1), (-1, 1), (-2, -1)):
            weights[place] += sign * slope
        return tuple(weights)


@dataclass(frozen=True, slots=True)
class Fixed(Predictor):
    """These weights, oldest first, on the last values, forecasts among them.

    ``Fixed((-0.5, 1.5))`` is FasterCache's ``F_1 + 0.5 (F_1 - F_2)``. The weights sum to 1.
    Holds one tensor a weight.

    Source: FasterCache, arXiv 2410.19355; diffusers 0.42 hooks/faster_cache.py.
    """

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.factors, tuple) or not self.factors:
            raise PolicyError(f"Fixed(...) takes a tuple of weights, got {self.factors!r}.")
        numbers = tuple(plain_number(w, "a weight of Fixed(...)") for w in self.factors)
        if abs(sum(numbers) - 1.0) > 1e-6:
            raise PolicyError(
                f"the weights of Fixed(...) must sum to 1, got {sum(numbers):g}.",
                hint="Otherwise features that do not change would be predicted wrong.",
            )
        object.__setattr__(self, "factors", numbers)

    @property
    def history(self) -> int:
        return len(self.factors)

    @property
    def recent(self) -> int:
        return len(self.factors)

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        if len(anchors) < len(self.factors):
            return _newest(len(anchors))
        return (*(0.0,) * (len(anchors) - len(self.factors)), *self.factors)


@dataclass(frozen=True, slots=True)
class Feedback(Predictor):
    """Reuse, less an estimate of the error that reuse makes: ``F_a - rho^k (F_b - F_a)``.

    F_b - F_a is what reusing F_b on step a would have been wrong by; k skipped steps later a share
    ``rho^k`` of it is taken to be left. rho 0 is reuse, rho 1 adds the last change once. Filter it by
    frequencies with ``Split(low=..., high=Feedback(...))``. Holds 2 tensors a run.

    Source: a reconstruction: OmniCache, arXiv 2508.16212, says that it filters the noise that reuse
    injects and correlates it over steps; rho and the filters are not published.
    """

    rho: float = 0.5

    def __post_init__(self) -> None:
        rho = plain_number(self.rho, "Feedback(rho=...)", low=0.0, high=1.0)
        object.__setattr__(self, "rho", rho)

    @property
    def history(self) -> int:
        return 2

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        if len(anchors) < self.history:
            return _newest(len(anchors))
        left = self.rho ** (at - anchors[-1])
        return (*(0.0,) * (len(anchors) - 2), -left, 1.0 + left)


class Transform(enum.Enum):
    """How a split goes to frequencies."""

    TOKEN_FFT = "token_fft"  # along all tokens; low: |f| <= cutoff of the highest
    GRID_DCT = (
        "grid_dct"  # over a square grid of tokens; low: radial index <= cutoff of the largest
    )

    def __repr__(self) -> str:
        return self.name


TOKEN_FFT = Transform.TOKEN_FFT
GRID_DCT = Transform.GRID_DCT


@dataclass(frozen=True, slots=True)
class Split(Predictor):
    """One predictor for the low spatial frequencies, another for the high ones.

    Both bands are weighted sums of the same held tensors, so nothing is held twice and a skipped step
    transforms once. Holds the larger of the two histories.

    Source: FreqCa, arXiv 2510.08669; Tammytcl/FreqCa cache_functions (grid DCT on FLUX, token FFT
    on Qwen-Image; cutoff 0.1).
    """

    low: Predictor = field(default_factory=Hold)
    high: Predictor = field(default_factory=lambda: Hermite(order=2, scale=0.71))
    cutoff: float = 0.1
    transform: Transform = Transform.TOKEN_FFT

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            band = getattr(self, name)
            expect(band, Predictor, f"Split({name}=...)")
            if isinstance(band, (Split, TwoAnchor)) or band.recent:
                raise PolicyError(
                    f"Split({name}=...) takes a predictor whose weights depend on the steps alone, got "
                    f"{band!r}.", hint="E.g. Hold(), Linear(), Taylor(...), Newton(...), Hermite(...).",
                )  # fmt: skip
        cutoff = plain_number(self.cutoff, "Split(cutoff=...)", low=0.0, high=1.0)
        object.__setattr__(self, "cutoff", cutoff)
        expect(self.transform, Transform, "Split(transform=...)", "Use TOKEN_FFT or GRID_DCT.")

    @property
    def history(self) -> int:
        return max(self.low.history, self.high.history)

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        """Of the high band; the low band's are ``self.low.weights`` of its newest anchors."""
        return band_weights(self.high, anchors, at)


def band_weights(band: Predictor, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
    """Weights of a predictor that may hold fewer tensors than there are."""
    used = anchors[-band.history :]
    return (*(0.0,) * (len(anchors) - len(used)), *band.weights(used, at))


def _newest(count: int) -> tuple[float, ...]:
    return (*(0.0,) * (count - 1), 1.0)


def _check_order(of: Taylor | Newton | Hermite, word: str) -> None:
    order = plain_integer(of.order, f"{word}(order=...)")
    if not 0 <= order <= MAX_ORDER:
        raise PolicyError(f"{word}(order=...) must lie in [0, {MAX_ORDER}], got {order}.")
    object.__setattr__(of, "order", order)
    if isinstance(of, Newton):
        return
    start = plain_integer(of.start, f"{word}(start=...)")
    if start < 0:
        raise PolicyError(f"{word}(start=...) must be a step, 0 or later, got {start}.")
    object.__setattr__(of, "start", start)
