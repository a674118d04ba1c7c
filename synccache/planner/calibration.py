"""A calibration artefact: measured drift of every segment of one model at one resolution."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from synccache.errors import PlanError
from synccache.planner.region_steps import RegionSteps
from synccache.planner.residual_gram import ResidualGram

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """``drift[i][j]`` = gamma of gaps i..j-1 as one segment, summed over the steps of one run.

    Attributes:
        model: class name; parameters: digest of their names, shapes and dtypes, not of values.
        regions: labels of the gaps in order; shape: of the stream they begin on.
        steps, sampler, guidance_branches: of the runs that were measured, "" where ``begin`` did not
            say the sampler; others are refused. stride: every how many tokens.
        residuals: inner products of the residuals of all runs, for planned schedules.
        by_region: the same of each region alone, with its seconds and bytes, for ``plan_schedule``.
    """

    model: str
    regions: tuple[str, ...]
    shape: tuple[int, ...]
    steps: int
    guidance_branches: int
    stride: int
    drift: tuple[tuple[float, ...], ...]
    residuals: ResidualGram | None = None
    by_region: RegionSteps | None = None
    parameters: str = ""
    sampler: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        nodes = len(self.regions) + 1
        if [len(row) for row in self.drift] != [nodes] * nodes:
            raise PlanError(
                f"the drift table must be {nodes} rows of {nodes} for {nodes - 1} regions."
            )
        if self.schema_version != SCHEMA_VERSION:
            raise PlanError(
                f"the calibration has schema version {self.schema_version}, this synccache reads "
                f"{SCHEMA_VERSION}.", hint="Calibrate again.",
            )  # fmt: skip

    def check(
        self, *, model: str, regions: tuple[str, ...], shape: tuple[int, ...], parameters: str = ""
    ) -> None:  # fmt: skip
        """Raises PlanError naming what differs from the model at hand; "" is not known."""
        wrong = [
            f"{name} {mine!r} there, {theirs!r} here"
            for name, mine, theirs in (
                ("model", self.model, model),
                ("number of regions", len(self.regions), len(regions)),
                ("parameters", self.parameters, parameters),
                ("stream shape", self.shape, shape),
            )
            if mine != theirs and (name != "parameters" or (mine and theirs))
        ]
        wrong = wrong or [f"region {i}: {a} there, {b} here"
                          for i, (a, b) in enumerate(zip(self.regions, regions)) if a != b]  # fmt: skip
        if wrong:
            raise PlanError(
                f"the calibration belongs to something else: {'; '.join(wrong)}.",
                hint="Calibrate with this model, policy and resolution.",
            )

    def save(self, path: Path | str) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """What ``save`` wrote.

        Raises:  PlanError naming the file, where it cannot be read or holds no calibration.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            data["regions"] = tuple(data["regions"])
            data["shape"] = tuple(data["shape"])
            data["drift"] = tuple(tuple(row) for row in data["drift"])
            if data.get("residuals") is not None:
                data["residuals"] = ResidualGram.from_plain(data["residuals"])
            if data.get("by_region") is not None:
                data["by_region"] = RegionSteps.from_plain(data["by_region"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise PlanError(
                f"the calibration cannot be read: {problem}", where=str(path)
            ) from problem
