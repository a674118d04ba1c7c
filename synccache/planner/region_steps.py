"""What a calibration knows of each region at each step: the data of a schedule in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from synccache.errors import PlanError
from synccache.planner.problem import Table
from synccache.planner.quantities import checked_amount, checked_count
from synccache.planner.schedule_problem import ScheduleProblem, SteppedRegion
from synccache.planner.storage import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSteps:
    """Regions in execution order, over the steps of an uncached trajectory.

    Units:  seconds and held_bytes of one forward of one guidance branch, held_bytes the whole history
            as computed, bytes_as in other forms; fixed_seconds of everything else in a forward;
            products[region][s][t] = <r_s, r_t> of the region's residuals, each clip and guidance
            branch divided by its mean square; timesteps as the model is given them.
    """

    regions: tuple[str, ...]
    seconds: tuple[float, ...]
    held_bytes: tuple[int, ...]
    bytes_as: tuple[tuple[Form, tuple[int, ...]], ...]
    fixed_seconds: float
    guidance_branches: int
    products: tuple[Table[float], ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        count, steps = len(self.regions), len(self.timesteps)
        for name in ("seconds", "held_bytes", "products"):
            if len(getattr(self, name)) != count:
                raise PlanError(
                    f"{len(getattr(self, name))} {name} were given for {count} regions."
                )
        for table in self.products:
            if [len(row) for row in table] != [steps] * steps:
                raise PlanError(f"products must be square tables of {steps} steps.")
        checked_amount(self.fixed_seconds, "fixed_seconds")
        checked_count(self.guidance_branches, "guidance_branches", least=1)

    @property
    def steps(self) -> int:
        """Of the trajectory that was measured."""
        return len(self.timesteps)

    def drift(self, region: int) -> Table[float]:
        """drift[a][t] = |r_t - r_a| / |r_t| for a < t, of Euclidean norms; 0 elsewhere."""
        table, steps = self.products[region], range(self.steps)
        return tuple(tuple(_distance(table, a, t) if a < t else 0.0 for t in steps) for a in steps)

    def problem(self, *, warmup_steps: int, last_steps: int, max_gap: int) -> ScheduleProblem:
        """The schedule problem of all guidance branches, with the rules that it shall keep."""
        branches = self.guidance_branches
        return ScheduleProblem(
            regions=tuple(
                SteppedRegion(
                    name=name,
                    seconds=self.seconds[i] * branches,
                    held_bytes=self.held_bytes[i] * branches,
                    drift=self.drift(i),
                    bytes_as=tuple((form, sizes[i] * branches) for form, sizes in self.bytes_as),
                    guidance_branches=branches,
                )
                for i, name in enumerate(self.regions)
            ),
            steps=self.steps,
            fixed_seconds_per_step=self.fixed_seconds * branches,
            warmup_steps=warmup_steps,
            last_steps=last_steps,
            max_gap=max_gap,
        )

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> RegionSteps:
        """What ``dataclasses.asdict`` made, after a round trip through JSON."""
        lists = {k: tuple(data[k]) for k in ("regions", "seconds", "held_bytes", "timesteps")}
        return cls(
            **lists,
            bytes_as=tuple((Form(form), tuple(sizes)) for form, sizes in data["bytes_as"]),
            fixed_seconds=data["fixed_seconds"],
            guidance_branches=data["guidance_branches"],
            products=tuple(tuple(map(tuple, table)) for table in data["products"]),
        )


def _distance(products: Table[float], a: int, t: int) -> float:
    square = products[a][a] + products[t][t] - 2 * products[a][t]
    size = products[t][t]
    return sqrt(max(0.0, square) / size) if size > 0 else 0.0
