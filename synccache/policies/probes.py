"""Probes: tensors of one forward that signals are measured on, how they are weighed and compared.

    output(blocks[0]), residual(blocks[:8]), modulated(blocks[0]), latent, time_embedding

What a change is measured against (``since=``), the norm, the denominator and eps are fields, because
they are the silent differences between published methods.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import expect, plain_integer, plain_number
from synccache.policies.conditions import Signal
from synccache.policies.predictors import Predictor
from synccache.policies.selectors import Selector

MAX_INSIDE = 1e6  # a mask weight beyond this leaves nothing of the rest in float32


# ---- what is compared with what


class Since(enum.Enum):
    """What a measurement is compared with."""

    PREVIOUS = "previous"  # the step before, computed or skipped
    LAST_COMPUTED = "last_computed"  # the last step on which the rule's branches were computed

    def __repr__(self) -> str:
        return self.name


PREVIOUS = Since.PREVIOUS
LAST_COMPUTED = Since.LAST_COMPUTED


@dataclass(frozen=True, slots=True)
class Forecast:
    """``since=forecast(predictor)``: what the predictor makes of the probe on computed steps.

    Holds as many probe values as the predictor asks for; only computed steps add to them. Undefined
    until one step was computed; with fewer values than its history the predictor uses what there is.
    """

    predictor: Predictor

    def __post_init__(self) -> None:
        expect(self.predictor, Predictor, "what forecast(...) takes", "E.g. Taylor(order=1).")


def forecast(predictor: Predictor) -> Forecast:
    """Compare the probe with what a predictor expects it to be on this step."""
    return Forecast(predictor)


class Norm(enum.Enum):
    """How two tensors u, v become one number; d is the older or the newer, see Denominator."""

    RATIO_OF_MEANS = "ratio_of_means"  # mean|u - v| / (mean|d| + eps)
    MEAN_OF_RATIOS = "mean_of_ratios"  # mean(|u - v| / (|d| + eps))
    TOKEN_NORMS = "token_norms"  # mean over tokens of ||u - v|| / (||d|| + eps), Euclidean

    def __repr__(self) -> str:
        return self.name


RATIO_OF_MEANS = Norm.RATIO_OF_MEANS
MEAN_OF_RATIOS = Norm.MEAN_OF_RATIOS
TOKEN_NORMS = Norm.TOKEN_NORMS


class Denominator(enum.Enum):
    """Which of the two tensors a change is divided by."""

    OLD = "old"  # the reference
    NEW = "new"  # the probe now

    def __repr__(self) -> str:
        return self.name


OLD = Denominator.OLD
NEW = Denominator.NEW


# ---- probes


@dataclass(frozen=True, slots=True)
class Output:
    """The stream after the last branch of ``of``; [batch, tokens, channels]."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what output(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Entering:
    """The stream before the first branch of ``of``; [batch, tokens, channels]."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what entering(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Residual:
    """What the branches of ``of`` add together: the stream after them minus before them."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what residual(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Modulated:
    """What the first branch of ``of`` feeds to its first projection: normed, and modulated by time.

    Found by data flow: the first operand of a matrix product that the stream reaches in that branch.
    """

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what modulated(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """What the first branch of ``of`` computes, before its (timestep) gate. Written ``module(...)``."""

    of: Selector

    def __post_init__(self) -> None:
        expect(self.of, Selector, "what module(...) takes", "Select branches, e.g. blocks[0].")


@dataclass(frozen=True, slots=True)
class Latent:
    """The sample that the loop denoises, as passed to the forward. Written ``latent``."""


class Stage(enum.Enum):
    """Which tensor made of the timestep is meant."""

    EMBEDDING = "embedding"  # the last tensor that all uses of the timestep are made from
    PROJECTION = "projection"  # the last one that all uses inside branches are made from

    def __repr__(self) -> str:
        return self.name


EMBEDDING = Stage.EMBEDDING
PROJECTION = Stage.PROJECTION


@dataclass(frozen=True, slots=True)
class TimeEmbedding:
    """The tensor made of the timestep (and of pooled conditions) that blocks read, not the sample.

    Written ``time_embedding``; ``TimeEmbedding(PROJECTION)`` is its projection, where there is one.
    """

    stage: Stage = EMBEDDING

    def __post_init__(self) -> None:
        expect(self.stage, Stage, "TimeEmbedding(...)", "Use EMBEDDING or PROJECTION.")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's output, known only after the step. Written ``prediction``."""


@dataclass(frozen=True, slots=True)
class Given(Signal):
    """What the user gave for this step: ``compiled.give(name=value)`` before the step's first call.

    As a signal a number; as a probe a tensor. Given for one step: without a new ``give`` the next
    step is a StateError, so that a stale value never decides.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise PolicyError(
                f"given(...) takes a name that can be an argument, got {self.name!r}."
            )


latent = Latent()
time_embedding = TimeEmbedding()
prediction = Prediction()

SELECTING = (Output, Entering, Residual, Modulated, ModuleOutput)  # probes of chosen branches
PROBES = (*SELECTING, Latent, TimeEmbedding, Prediction, Given)
Probe = (
    Output
    | Entering
    | Residual
    | Modulated
    | ModuleOutput
    | Latent
    | TimeEmbedding
    | Prediction
    | Given
)


def output(of: Selector) -> Output:
    """The stream's value after the last branch of ``of``."""
    return Output(of)


def entering(of: Selector) -> Entering:
    """The stream's value before the first branch of ``of``."""
    return Entering(of)


def residual(of: Selector) -> Residual:
    """The stream after the last branch of ``of`` minus its value before the first."""
    return Residual(of)


def modulated(of: Selector) -> Modulated:
    """The normed and modulated input of the first branch of ``of``."""
    return Modulated(of)


def given(name: str) -> Given:
    """A number or a tensor that the user gives before every step."""
    return Given(name)


def module(of: Selector) -> ModuleOutput:
    """What the first branch of ``of`` computes, before its gate."""
    return ModuleOutput(of)


# ---- weights


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


@dataclass(frozen=True, slots=True)
class Spectral:
    """The probe, filtered in space and time by what a Wiener filter would keep at this noise level.

    With sigma = timestep / levels in [1e-6, 1 - 1e-6], along each of the last axes of the probe (up
    to three, never the batch or, in [batch, channels, ...], the channels) the gain at frequency f is
    ``(1 - sigma) P / ((1 - sigma)^2 P + sigma^2 + 1e-16)`` with ``P = 1 / (|f|^power + 1e-16)``; gains
    of the axes are multiplied and divided by their mean. What is kept for the next step is filtered
    at its own noise level. For latents [batch, channels, (frames,) height, width].

    Source: SeaCache, arXiv 2602.18993; diffusers 0.42 hooks/sea_cache.py.
    """

    power: float = 3.0
    levels: float = 1000.0  # the timestep that means noise alone

    def __post_init__(self) -> None:
        power = plain_number(self.power, "spectral(power=...)", low=0.0, high=16.0)
        levels = plain_number(self.levels, "spectral(levels=...)", low=1e-9, high=1e9)
        object.__setattr__(self, "power", power)
        object.__setattr__(self, "levels", levels)


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Only tokens that moved: ``mean|u - v| / mean|v|`` of the token above the threshold.

    Where no token did, all count. Both means of the norm are over the tokens that are left.

    Source: cache-dit 1.5.3, cache_manager.similarity (important_condition_threshold).
    """

    threshold: float

    def __post_init__(self) -> None:
        threshold = plain_number(self.threshold, "token_filter(...)", low=0.0)
        object.__setattr__(self, "threshold", threshold)


@dataclass(frozen=True, slots=True)
class ChannelStride:
    """Every n-th channel, from the first; what is kept for later steps is smaller by n.

    Source: cache-dit 1.5.3, cache_manager (downsample_factor).
    """

    n: int

    def __post_init__(self) -> None:
        n = plain_integer(self.n, "channel_stride(...)")
        if n < 1:
            raise PolicyError(f"channel_stride(...) must be 1 or more, got {n}.")
        object.__setattr__(self, "n", n)


Weight = MaskWeight | Spectral | TokenFilter | ChannelStride
WEIGHTS = (MaskWeight, Spectral, TokenFilter, ChannelStride)


def mask(name: str, *, inside: float) -> MaskWeight:
    """Weigh tokens inside the mask ``inside`` times as heavily as those outside."""
    return MaskWeight(name, inside)


def spectral(*, power: float = 3.0, levels: float = 1000.0) -> Spectral:
    """Compare what is signal at this noise level, not what is noise."""
    return Spectral(power, levels)


def token_filter(threshold: float) -> TokenFilter:
    """Compare only the tokens whose relative change exceeds the threshold."""
    return TokenFilter(threshold)


def channel_stride(n: int) -> ChannelStride:
    """Compare every n-th channel only."""
    return ChannelStride(n)
