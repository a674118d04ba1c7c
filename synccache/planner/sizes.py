"""Sizes of a video as a user states them, and which of them a model takes.

>>> FRAMES = Axis(name="frames", step=4, first=1)
>>> FRAMES.checked(129), FRAMES.nearest(128)
(129, (125, 129))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synccache.errors import PlanError
from synccache.planner.quantities import checked_count, checked_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One size: ``first``, ``first + step``, ``first + 2 * step`` ... are taken.

    ``default`` is used where a size is not stated.
    """

    name: str
    step: int
    first: int
    default: int | None = None

    def __post_init__(self) -> None:
        checked_text(self.name, "the name of an axis")
        checked_count(self.step, f"step of {self.name!r}", least=1)
        checked_count(self.first, f"first of {self.name!r}", least=1)
        if self.default is not None:
            self.checked(self.default)

    def nearest(self, value: int) -> tuple[int, int]:
        """The sizes just below and just above one that is not taken."""
        below = self.first + max(0, (value - self.first) // self.step) * self.step
        return below, below + self.step

    def checked(self, value: object) -> int:
        """``value`` if the model takes it.

        Raises:  PlanError with the nearest sizes that it takes.
        """
        size = checked_count(value, self.name, least=1)
        if size < self.first or (size - self.first) % self.step:
            below, above = self.nearest(size)
            raise PlanError(
                f"{self.name}={size} is not taken: {self.name} go {self.first}, "
                f"{self.first + self.step}, {self.first + 2 * self.step} ...",
                hint=f"Nearest are {below} and {above}.",
            )
        return size


def checked_sizes(axes: Sequence[Axis], given: Mapping[str, int | None]) -> dict[str, int]:
    """One size for each axis, stated or by default.

    Raises:  PlanError for a size that is missing, unknown or not taken.
    """
    stated = {name: size for name, size in given.items() if size is not None}
    unknown = sorted(set(stated) - {axis.name for axis in axes})
    if unknown:
        raise PlanError(
            f"no size is called {', '.join(unknown)}; this model's are "
            f"{', '.join(axis.name for axis in axes) or 'none'}."
        )
    found = {}
    for axis in axes:
        size = stated.get(axis.name, axis.default)
        if size is None:
            raise PlanError(f"{axis.name} is not stated, and this model has no default for it.")
        found[axis.name] = axis.checked(size)
    return found
