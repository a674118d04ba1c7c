"""Where a call stands in its run: its step, its noise level, its guidance branch.

The caller may say it (``cache_context``, ``begin(branches=)``); otherwise the timestep input is read
from the device, which waits for it once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from synccache.errors import StateError

if TYPE_CHECKING:
    from synccache.fx.runtime import Trajectory


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller says of the calls inside a ``cache_context``."""

    branch: Hashable | None = None
    step: int | None = None
    steps: int | None = None
    timestep: float | None = None
    sigma: float | None = None

    @staticmethod
    def of(
        name: Hashable | None, step_index: int | None, num_inference_steps: int | None,
        timestep: float | Tensor | None, sigma: float | None,
    ) -> Said:  # fmt: skip
        """The arguments of ``cache_context``, checked."""
        if step_index is not None and (isinstance(step_index, bool) or step_index < 0):
            raise StateError(f"cache_context(step_index=...) counts from 0, got {step_index!r}.")
        return Said(
            name, step_index, positive(num_inference_steps, "cache_context(num_inference_steps=...)"),
            number(timestep, "cache_context(timestep=...)"),
            number(sigma, "cache_context(sigma=...)"),
        )  # fmt: skip


@dataclass(slots=True)
class Level:
    """A step's timestep, a number or a tensor that is read when it is needed; its sigma if known."""

    timestep: Tensor | float | None
    sigma: float | None = None

    def read(self) -> tuple[float, int]:
        """The timestep, and the device syncs that it cost: one the first time for a tensor."""
        if isinstance(self.timestep, Tensor):
            self.timestep = float(self.timestep.detach().float().max())
            return self.timestep, 1
        assert self.timestep is not None
        return self.timestep, 0

    def kept(self) -> Level:
        """This level for later steps: the caller may write to its timestep tensor."""
        if isinstance(self.timestep, Tensor):
            return Level(self.timestep.detach().float().max(), self.sigma)
        return self


def step_of(run: Trajectory, said: Said, level: Level | None) -> int | None:
    """The step of ``run`` that a call belongs to; None if it begins another trajectory.

    Without a word from the caller the level is read: one device sync.
    """
    if said.step is not None:
        return said.step if said.step >= run.step else None
    if run.calls_a_step is not None:
        step = run.calls // run.calls_a_step
        return step if run.steps is None or step < run.steps else None
    if level is None:
        return run.step + 1  # no timestep: every call is a step of its own
    now, before = _comparable(run, level)
    if before is None:
        return run.step + 1
    if now > before:
        return None
    return run.step if now == before else run.step + 1


def _comparable(run: Trajectory, level: Level) -> tuple[float, float | None]:
    """A call's noise level and that of the run's present step: sigmas if both are known."""
    last = run.level
    if level.sigma is not None and (last is None or last.sigma is not None):
        return level.sigma, None if last is None else last.sigma
    return run.read(level), None if last is None else run.read(last)


def share(run: Trajectory, level: Level | None) -> float:
    """A noise level over the first step's: of sigmas where the caller said them."""
    first = run.first_level
    if level is not None and first is not None and level.sigma is not None and first.sigma:
        return level.sigma / first.sigma
    start = run.read(first)
    return run.read(level) / start if start else 0.0


def no_timestep(where: str) -> StateError:
    """What to say where nothing tells steps apart."""
    return StateError(
        "no input is marked as the timestep, so steps cannot be told apart.", where=where,
        hint="Pass conditions={'timestep': ['<argument name>']} to compile(), or say the step with "
        "`with compiled.cache_context(name, step_index=i):`.",
    )  # fmt: skip


class Counters(Mapping[str, float | None]):
    """What a condition's counters say. Noise levels are read only where they are asked for.

    ``ahead``: so many steps after the present one, with noise that has fallen by ``falls`` times what
    it fell by last.
    """

    def __init__(
        self,
        run: Trajectory,
        streak: int = 0,
        skipped: int = 0,
        *,
        ahead: int = 0,
        falls: float = 0,
    ) -> None:
        self._run, self._streak, self._skipped = run, streak, skipped
        self._ahead, self._falls = ahead, falls

    def __getitem__(self, name: str) -> float | None:
        run, step = self._run, self._run.step + self._ahead
        if name == "steps_left":
            return None if run.steps is None else run.steps - 1 - step
        if name == "timestep":
            return self._ahead_of(run.read)
        if name in ("noise", "progress"):
            level = self._ahead_of(lambda one: share(run, one))
            return 1.0 - level if name == "progress" else level
        return {"step": step, "skips": self._streak, "skipped": self._skipped,
                "steps": run.steps}[name]  # fmt: skip

    def _ahead_of(self, value: Callable[[Level | None], float]) -> float:
        now = value(self._run.level)
        if not self._falls or self._run.level_before is None:
            return now
        return now - self._falls * (value(self._run.level_before) - now)

    def __iter__(self) -> Iterator[str]:
        return iter(("step", "skips", "skipped", "steps", "steps_left", "timestep", "noise",
                     "progress"))  # fmt: skip

    def __len__(self) -> int:
        return len(list(iter(self)))


def positive(value: object, what: str) -> int | None:
    """``value`` if it is None or a positive integer."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise StateError(f"{what} takes a positive integer, got {value!r}.")
    return value


def number(value: object, what: str) -> float | None:
    """A noise level that the caller gave: a plain number, or a tensor on the host with one value."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.numel() != 1:
            return None  # not a plain number: the timestep input says it
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StateError(f"{what} takes a number, got {value!r}.")
    return float(value)
