"""Regions over the steps of a trajectory, and the rules that every schedule of them keeps."""

from __future__ import annotations

from dataclasses import dataclass

from synccache.errors import PlanError
from synccache.planner.problem import Table
from synccache.planner.quantities import checked_amount, checked_count, checked_text
from synccache.planner.storage import STAGED, Form, Place, Storage

NOT_HELD = Storage(name="not held", place=Place.HOST)
"""Of a region that is computed at every step: it takes nothing anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteppedRegion:
    """A region over all steps of a trajectory.

    Units:  seconds of computing it once, all guidance branches; held_bytes likewise, whole history;
            drift[a][t], for steps a < t: of using at step t what was computed at step a. Entries
            with a >= t are 0. bytes_as: held_bytes in other forms than as computed.
    """

    name: str
    seconds: float
    held_bytes: int
    drift: Table[float]
    bytes_as: tuple[tuple[Form, int], ...] = ()
    guidance_branches: int = 1

    def __post_init__(self) -> None:
        checked_text(self.name, "the name of a region")
        checked_amount(self.seconds, f"seconds of region {self.name!r}")
        checked_count(self.held_bytes, f"held_bytes of region {self.name!r}", least=1)
        lengths = [len(row) for row in self.drift]
        if lengths != [len(lengths)] * len(lengths):
            raise PlanError(f"drift of region {self.name!r} must be square, not rows of {lengths}")
        for computed, row in enumerate(self.drift):
            for step, drift in enumerate(row):
                label = f"drift[{computed}][{step}] of region {self.name!r}"
                checked_amount(drift, label)
                if computed >= step and drift:
                    raise PlanError(f"{label} must be 0: step {step} is not after {computed}")

    def stored_bytes(self, form: Form) -> int:
        """Bytes of the whole history of all guidance branches in a form."""
        return dict([(Form.AS_COMPUTED, self.held_bytes), *self.bytes_as])[form]

    def device_bytes(self, storage: Storage) -> int:
        """Of these, what lies on the device; copies on their way back from the host apart."""
        one_branch = self.stored_bytes(storage.form) // self.guidance_branches
        return one_branch * storage.copies(self.guidance_branches)

    def staged_bytes(self, storage: Storage) -> int:
        """Device bytes for copies on their way back from the host."""
        on_host = storage.place is Place.HOST and storage is not NOT_HELD
        size = self.stored_bytes(storage.form) // self.guidance_branches
        return STAGED * size if on_host else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleProblem:
    """Regions, and the rules that every schedule keeps.

    Units:  fixed_seconds_per_step is computed at every step whatever is skipped: probe, audio
            branches, head. max_gap is the largest number of steps skipped in a row.
    """

    regions: tuple[SteppedRegion, ...]
    steps: int
    fixed_seconds_per_step: float
    warmup_steps: int
    """The first steps, at which everything is computed; step 0 always is, for nothing is held."""
    last_steps: int
    """The last steps, at which everything is computed."""
    max_gap: int

    def __post_init__(self) -> None:
        checked_count(self.steps, "steps", least=1)
        checked_amount(self.fixed_seconds_per_step, "fixed_seconds_per_step")
        checked_count(self.warmup_steps, "warmup_steps")
        checked_count(self.last_steps, "last_steps")
        checked_count(self.max_gap, "max_gap")
        for region in self.regions:
            if len(region.drift) != self.steps:
                raise PlanError(
                    f"region {region.name!r} has drift for {len(region.drift)} steps, "
                    f"the problem has {self.steps}"
                )

    @property
    def full_seconds(self) -> float:
        """Seconds of a trajectory that skips nothing."""
        each_step = self.fixed_seconds_per_step + sum(region.seconds for region in self.regions)
        return self.steps * each_step

    def is_forced(self, step: int) -> bool:
        """Whether everything is computed at this step."""
        return step < max(1, self.warmup_steps) or step >= self.steps - self.last_steps
