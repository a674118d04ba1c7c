"""Predicting one guidance branch from another: ``FromSibling``.

Rule(values(network), when, FromSibling())
"""

from __future__ import annotations

from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import plain_number
from synccache.policies.predictors import Predictor


@dataclass(frozen=True, slots=True)
class FromSibling(Predictor):
    """The output of the step's first guidance branch, plus how this branch's output differed from it.

    The difference is that of the last step on which this branch was computed. Its low and its high
    spatial frequencies (over height and width, within a circle of ``radius`` times the shorter side)
    are multiplied by ``low`` and ``high`` on every skipped step whose timestep lies in the open
    windows, on top of what earlier skipped steps did. The first branch itself is always computed.
    Needs a model that is called once for each guidance branch. Holds 1 output a branch and 1 a step.

    Source: FasterCache, arXiv 2410.19355 (CFG cache); diffusers 0.42 hooks/faster_cache.py.
    """

    low: float = 1.1
    high: float = 1.1
    low_window: tuple[float, float] = (99, 901)
    high_window: tuple[float, float] = (-1, 301)
    radius: float = 0.2

    def __post_init__(self) -> None:
        for name, most in (("low", 10.0), ("high", 10.0), ("radius", 0.5)):
            value = plain_number(
                getattr(self, name), f"FromSibling({name}=...)", low=0.0, high=most
            )
            object.__setattr__(self, name, value)
        for name in ("low_window", "high_window"):
            window = getattr(self, name)
            if not isinstance(window, tuple) or len(window) != 2:
                raise PolicyError(f"FromSibling({name}=...) takes two timesteps, got {window!r}.")
            first, last = (plain_number(t, f"FromSibling({name}=...)") for t in window)
            if first >= last:
                raise PolicyError(f"FromSibling({name}={window!r}) is empty.")
            object.__setattr__(self, name, (first, last))

    @property
    def history(self) -> int:
        return 1

    def weights(self, anchors: tuple[int, ...], at: int) -> tuple[float, ...]:
        return (*(0.0,) * (len(anchors) - 1), 1.0)
