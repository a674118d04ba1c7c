"""A step plan: which steps are computed, and what the others are made of. Numbers only.

C S S C S C   step 1: residual of step 0
              step 2: residual of step 0
              step 4: 2 x residual of step 3 - residual of step 0 ...
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_text

SCHEMA_VERSION = 1

# a skipped step, the computed steps that it is made of (oldest first), and their weights
Coefficients = tuple[tuple[int, tuple[int, ...], tuple[float, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """``letters`` has C for a computed and S for a skipped step.

    Attributes:
        coefficients: of every skipped step.
        strength: of the payback: 0 for none, 1 returns all of the error that is known by then.
        degree: of the polynomial that the payback interpolates with.
        timesteps: as the model is given them: a run at others is refused.
        predicted_error: of the schedule; comparable between schedules of one problem only.
        source: how it was chosen, for printing.
        model: class name of the calibrated model.
    """

    letters: str
    coefficients: Coefficients
    timesteps: tuple[float, ...]
    predicted_error: float
    source: str
    model: str = ""
    strength: float = 0.0
    degree: int = 2
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.letters, str) or set(self.letters) - set("CS"):
            raise PlanError(f"letters must be C and S, not {self.letters!r}.")
        if not self.letters.startswith("C"):
            raise PlanError("the first step must be computed: nothing is held before it.")
        skipped = [step for step, letter in enumerate(self.letters) if letter == "S"]
        if [step for step, _, _ in self.coefficients] != skipped:
            raise PlanError("there must be coefficients for every skipped step, in order.")
        for step, anchors, weights in self.coefficients:
            if len(anchors) != len(weights) or not anchors:
                raise PlanError(
                    f"step {step} has {len(anchors)} anchors and {len(weights)} weights."
                )
            if list(anchors) != self.computed_before(step)[-len(anchors) :]:
                raise PlanError(
                    f"step {step} is made of steps {anchors}, which are not the last computed ones."
                )
        if len(self.timesteps) != len(self.letters):
            raise PlanError(
                f"{len(self.timesteps)} timesteps were given for {len(self.letters)} steps."
            )
        if not 0 <= checked_amount(self.strength, "the payback's strength") <= 1:
            raise PlanError(f"the payback's strength must lie in [0, 1], not {self.strength!r}.")
        if self.degree not in (1, 2, 3):
            raise PlanError(f"the payback interpolates with degree 1, 2 or 3, not {self.degree!r}.")
        checked_text(self.source, "the source of a step plan")
        if self.schema_version != SCHEMA_VERSION:
            raise PlanError(
                f"the step plan has schema version {self.schema_version}, this synccache reads "
                f"{SCHEMA_VERSION}.", hint="Plan again.",
            )  # fmt: skip

    @property
    def computed(self) -> tuple[int, ...]:
        """The computed steps."""
        return tuple(i for i, letter in enumerate(self.letters) if letter == "C")

    @property
    def history(self) -> int:
        """How many residuals of each run have to be held."""
        terms = max((len(anchors) for _, anchors, _ in self.coefficients), default=1)
        return max(terms, self.degree + 1) if self.strength else terms

    def computed_before(self, step: int) -> list[int]:
        """The computed steps before this one."""
        return [i for i in self.computed if i < step]

    def with_payback(self, strength: float) -> StepPlan:
        """The same schedule with another strength of payback."""
        return replace(self, strength=float(strength))

    def __str__(self) -> str:
        back = f"payback {self.strength:g}, degree {self.degree}" if self.strength else "no payback"
        share = len(self.computed) / len(self.letters)
        return (
            f"{self.letters}\n{len(self.computed)} of {len(self.letters)} steps computed ({share:.1%}), "
            f"{self.source}, {back}; {self.history} residuals held for each run and guidance branch"
        )

    def save(self, path: Path | str) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> StepPlan:
        """What ``save`` wrote.

        Raises:  PlanError naming the file, where it cannot be read or holds no step plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            data["coefficients"] = tuple(
                (step, tuple(anchors), tuple(weights))
                for step, anchors, weights in data["coefficients"]
            )
            data["timesteps"] = tuple(data["timesteps"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise PlanError(
                f"the step plan cannot be read: {problem}", where=str(path)
            ) from problem
