"""Step masks made for a number of steps: cache-dit's SCM bins, and the flattest steps of a trajectory.

>>> scm("fast", 28).letters
'CCCCCCSCSSSCSSSSCSSSSSCSSSSC'
>>> flattest((9.0, 0.0, 0.1, 2.0, 0.2, 9.0), count=2).letters
'CSSCCC'
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from synccache.errors import PolicyError
from synccache.policies.checks import plain_integer, plain_numbers
from synccache.policies.conditions import Steps

Bins = tuple[tuple[int, ...], tuple[int, ...]]  # runs of computed steps, runs of skipped ones

SPEEDS = ("slow", "medium", "fast", "ultra")
WHOLE = 28  # the number of steps that the bins were made for
_LEAST_WHOLE, _LEAST = 16, 8  # from here down other bins apply

# cache-dit 1.5.3, cache_interface.steps_mask: the bins of each speed for 28, 9 to 15, 9 and 8 steps
_BINS = MappingProxyType(
    {
        "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    }
)
_SHORT = MappingProxyType(
    {
        "slow": ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        "medium": ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        "fast": ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        "ultra": ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
    }
)
_NINE = MappingProxyType(
    {
        "slow": ((5, 2, 1), (1,)),
        "medium": ((5, 1, 1), (1, 1)),
        "fast": ((4, 1, 1), (1, 2)),
        "ultra": ((3, 1, 1), (2, 2)),
    }
)
_EIGHT = MappingProxyType(
    {
        "slow": ((5, 1, 1), (1,)),
        "medium": ((4, 1, 1), (1, 1)),
        "fast": ((3, 1, 1), (1, 2)),
        "ultra": ((2, 1, 1), (2, 2)),
    }
)
_FEW = MappingProxyType({6: ((3, 1), (2,)), 4: ((2, 1), (1,))})  # of every speed


def scm(speed: str, steps: int) -> Steps:
    """cache-dit's step computation mask of this speed for so many steps; the last step is computed.

    Args:
        speed: slow, medium, fast or ultra.
        steps: 8 or more, or 6 or 4.

    Raises:  PolicyError for another speed or number of steps.

    Source: cache-dit 1.5.3, caching/cache_interface.py (steps_mask).
    """
    if speed not in SPEEDS:
        raise PolicyError(f"no SCM mask is called {speed!r}.", hint=f"Use {', '.join(SPEEDS)}.")
    steps = plain_integer(steps, "scm(steps=...)")
    letters = _letters(*_bins(speed, steps))[:steps]
    return Steps(letters[:-1] + "C")


def _bins(speed: str, steps: int) -> Bins:
    if steps > WHOLE:
        return _truncated(_stretched(_BINS[speed], steps), steps)
    if steps >= _LEAST_WHOLE:
        return _truncated(_BINS[speed], steps)
    if steps > _LEAST:
        return _truncated((_NINE if steps == _LEAST + 1 else _SHORT)[speed], steps)
    if steps == _LEAST:
        return _EIGHT[speed]
    if steps not in _FEW:
        raise PolicyError(
            f"there is no SCM mask for {steps} steps.", hint="It has one for 4, 6, and 8 or more."
        )
    return _FEW[steps]


def _stretched(bins: Bins, steps: int) -> Bins:
    """Each bin grown in turn, by half its share of the longer run and at least 1, until all fit."""
    computed, skipped = list(bins[0]), list(bins[1])
    grown = steps / WHOLE * 0.5
    while True:
        for i in range(min(len(computed), len(skipped))):
            for kind, original in ((computed, bins[0]), (skipped, bins[1])):
                kind[i] += max(int(original[i] * grown), 1)
                if sum(computed) + sum(skipped) >= steps:
                    return tuple(computed), tuple(skipped)
        computed[-1] += 1
        if sum(computed) + sum(skipped) >= steps:
            return tuple(computed), tuple(skipped)


def _truncated(bins: Bins, steps: int) -> Bins:
    """One step less at a time, off the last skipped and the last computed bin in turn."""
    computed, skipped = list(bins[0]), list(bins[1])
    while sum(computed) + sum(skipped) > steps:
        for kind in (skipped, computed):
            if kind and sum(computed) + sum(skipped) > steps:
                kind[-1] -= 1
                if kind[-1] == 0:
                    kind.pop()
    return tuple(computed), tuple(skipped)


def _letters(computed: Sequence[int], skipped: Sequence[int]) -> str:
    letters = ""
    for i in range(max(len(computed), len(skipped))):
        letters += "C" * (computed[i] if i < len(computed) else 0)
        letters += "S" * (skipped[i] if i < len(skipped) else 0)
    return letters


def flattest(curvature: tuple[float, ...], *, count: int, max_skips: int = 2) -> Steps:
    """Skips the ``count`` steps at which the trajectory bends least, at most ``max_skips`` in a row.

    The first and the last step are computed. Of equal steps the earlier is skipped.

    Args:
        curvature: one number a step, of a whole run.

    Raises:  PolicyError where so many steps cannot be skipped.
    """
    numbers = plain_numbers(curvature, "a curvature")
    count = plain_integer(count, "flattest(count=...)")
    letters = ["C"] * len(numbers)
    for step in sorted(range(1, len(numbers) - 1), key=lambda i: (numbers[i], i)):
        letters[step] = "S"
        if letters.count("S") > count or "S" * (max_skips + 1) in "".join(letters):
            letters[step] = "C"
    if letters.count("S") < count:
        raise PolicyError(
            f"{count} of {len(numbers)} steps cannot be skipped with at most {max_skips} in a row: "
            f"{letters.count('S')} can.",
            hint="Skip fewer, or allow more in a row.",
        )
    return Steps("".join(letters))
