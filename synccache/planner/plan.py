"""The plan: what is held where, what it costs, and what the alternatives were.

A `Plan` is a frozen record. It prints as a table, saves as JSON, re-derives its own figures with
`check`, and says with `diff` how it differs from another.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from synccache.errors import PlanError
from synccache.planner.fingerprint import Fingerprint
from synccache.planner.plan_check import mismatches, use_figures
from synccache.planner.plan_json import array, choice, json_value, record
from synccache.planner.plan_text import difference, plan_text
from synccache.planner.problem import MEASURED, ChainProblem, DriftSource
from synccache.planner.quantities import (
    checked_amount,
    checked_count,
    checked_ratio,
    checked_text,
    format_bytes,
)
from synccache.planner.solved import Proof, Solved
from synccache.planner.storage import Form, Place, Storage

if TYPE_CHECKING:
    from synccache.planner.symbolic import SymbolicProblem

SCHEMA_VERSION = 2
"""Of the JSON form. A plan written with another number is refused, never guessed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRegion:
    """A segment of the chain that is skipped as one, with the residual that replaces it.

    Units:  held_bytes for one guidance branch, all tensors of the predictor's history, as stored;
            seconds_saved on one skipped forward of one guidance branch, absorbed groups included;
            seconds_lost there by storage, copies that run beside the forward included;
            drift as measured, with what storage adds, None where nothing was measured.
    """

    index: int
    name: str
    first_gap: int
    last_gap: int
    labels: str
    held_bytes: int
    dtype: str
    storage: str
    """The name of one of the plan's storages."""
    place: Place
    predictor: str
    tensors: int
    drift: float | None
    seconds_saved: float
    seconds_lost: float
    absorbed: tuple[str, ...]
    absorbed_count: int

    def __post_init__(self) -> None:
        checked_count(self.index, "index of a region")
        label = f"region {self.index}"
        checked_text(self.name, f"name of {label}")
        checked_count(self.first_gap, f"first_gap of {label}")
        checked_count(self.last_gap, f"last_gap of {label}", least=self.first_gap)
        checked_text(self.labels, f"labels of {label}")
        checked_count(self.held_bytes, f"held_bytes of {label}", least=1)
        checked_text(self.dtype, f"dtype of {label}")
        checked_text(self.storage, f"storage of {label}")
        if not isinstance(self.place, Place):
            raise PlanError(f"place of {label} must be a Place, not {self.place!r}")
        checked_text(self.predictor, f"predictor of {label}")
        checked_count(self.tensors, f"tensors of {label}", least=1)
        if self.drift is not None:
            checked_amount(self.drift, f"drift of {label}")
        checked_amount(self.seconds_saved, f"seconds_saved of {label}")
        checked_amount(self.seconds_lost, f"seconds_lost of {label}")
        _check_names(self.absorbed, f"absorbed live groups of {label}")
        checked_count(self.absorbed_count, f"absorbed_count of {label}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the model's device, of all guidance branches together; host_bytes beside it.

    staging_bytes are for copies on their way back from the host, while a step is skipped.
    """

    weights_bytes: int
    activation_bytes: int
    residual_bytes: int
    staging_bytes: int
    host_bytes: int
    invariant_bytes: int
    shared_bytes: int
    guidance_branches: int

    def __post_init__(self) -> None:
        for entry in fields(self):
            least = 1 if entry.name == "guidance_branches" else 0
            checked_count(getattr(self, entry.name), entry.name, least=least)

    @property
    def cache_bytes(self) -> int:
        """What caching keeps on the device: residuals, invariants, probe and masks."""
        return self.residual_bytes + self.invariant_bytes + self.shared_bytes

    @property
    def total_bytes(self) -> int:
        """Everything that a budget limits."""
        model = self.weights_bytes + self.activation_bytes
        return model + self.cache_bytes + self.staging_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One row of the frontier: the least drift for one number of segments, budget aside."""

    cuts: tuple[int, ...]
    cache_bytes: int
    drift: float | None
    absorbed_count: int

    def __post_init__(self) -> None:
        _check_cuts(self.cuts)
        checked_count(self.cache_bytes, "cache_bytes of an alternative")
        if self.drift is not None:
            checked_amount(self.drift, "drift of an alternative")
        checked_count(self.absorbed_count, "absorbed_count of an alternative")

    @property
    def segments(self) -> int:
        """How many regions this alternative has."""
        return len(self.cuts) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is cached, at what price. Built by `plan_chain`; a built plan is consistent in itself.

    A plan without regions is legal: nothing is skipped, only step-invariant values are kept.
    """

    policy: str
    model: str
    regions: tuple[PlannedRegion, ...]
    kept_lives: tuple[str, ...]
    """Live groups between two regions: computed on every step, skipped or not."""
    live_total: int
    memory: Memory
    budget_bytes: int | None
    cache_ratio: float | None
    drift_source: DriftSource
    frontier: tuple[Alternative, ...]
    storages: tuple[Storage, ...]
    """What the planner could choose from."""
    solved: Solved
    """How good the choice is proven to be, and what finding it took."""
    fingerprint: Fingerprint | None
    seconds_source: str = MEASURED
    symbolic: SymbolicProblem | None = field(default=None, compare=False, repr=False)
    """What `at` answers from; not part of the JSON."""
    mask: str = ""
    """Which steps a policy that measures nothing skips, C computed and S skipped; empty if unknown."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        checked_text(self.policy, "policy")
        checked_text(self.model, "model")
        checked_text(self.seconds_source, "seconds_source")
        checked_text("none" if self.mask == "" else self.mask, "mask")
        _check_regions(self.regions)
        _check_names(self.kept_lives, "kept_lives")
        checked_count(self.live_total, "live_total")
        _check_limits(self)
        if not isinstance(self.drift_source, DriftSource):
            raise PlanError(f"drift_source must be a DriftSource, not {self.drift_source!r}")
        known = {storage.name for storage in self.storages}
        for region in self.regions:
            if region.storage not in known:
                raise PlanError(
                    f"region {region.index} has storage {region.storage!r}, not in {known}"
                )
        if self.fingerprint is not None and not isinstance(self.fingerprint, Fingerprint):
            raise PlanError(f"fingerprint must be a Fingerprint, not {self.fingerprint!r}")
        _check_schema(self.schema_version)
        _check_measured(self)

    @property
    def where(self) -> str:
        """How errors name this plan: "asymmetric on PortraitTransformer"."""
        return f"{self.policy} on {self.model}"

    @property
    def cuts(self) -> tuple[int, ...]:
        """The nodes 0 = b_0 < ... < b_n = E between the regions; (0,) without regions."""
        return (0, *(region.last_gap + 1 for region in self.regions))

    @property
    def choices(self) -> tuple[tuple[int, str, str], ...]:
        """Where each region ends, how it is stored, what predicts: what an emitted graph depends on."""
        return tuple((r.last_gap, r.storage, r.predictor) for r in self.regions)

    @property
    def drift(self) -> float | None:
        """The sum over regions, None where nothing was measured."""
        if self.drift_source is DriftSource.ASSUMED:
            return None
        return sum(region.drift for region in self.regions if region.drift is not None)

    @property
    def absorbed_count(self) -> int:
        """Audio branches that are not refreshed on skipped steps."""
        return sum(region.absorbed_count for region in self.regions)

    @property
    def seconds_saved(self) -> float:
        """On one skipped forward of one guidance branch, if every region is skipped."""
        return sum(region.seconds_saved for region in self.regions)

    def __str__(self) -> str:
        return plan_text(self)

    def at(self, **sizes: int) -> Plan:
        """The plan at other sizes (frames, height, width ..., also guidance_branches), within the
        same limits; nothing is run.

        Raises:  PlanError for sizes that the model does not take, or a budget that is then too small.
        """
        from synccache.planner.symbolic import plan_at  # sympy takes a second to import

        return plan_at(self, sizes)

    def check(self, problem: ChainProblem) -> None:
        """Re-derives bytes, drift, feasibility and frontier from `problem`, without the planner.

        Raises:  PlanError naming every figure that does not follow from the problem.
        """
        wrong = mismatches(self, problem)
        if wrong:
            raise PlanError(
                f"the plan does not belong to this problem: {'; '.join(wrong)}",
                where=self.where,
                hint="Plan again for this model and these inputs.",
            )

    def check_use(self, problem: ChainProblem, fingerprint: Fingerprint) -> None:
        """That the plan may be used here: same fingerprint, same regions, same bytes held.

        Seconds, activations and drift may differ: another machine measures its own.

        Raises:  PlanError with what differs.
        """
        if self.fingerprint is None:
            raise PlanError(
                "the plan says nothing of what it was made for", where=self.where,
                hint="Use a plan that compile() made and plan.save() wrote.",
            )  # fmt: skip
        self.fingerprint.check(fingerprint, "the plan")
        wrong = mismatches(self, problem, figures=use_figures)
        if wrong:
            raise PlanError(
                f"the plan does not fit what was found here: {'; '.join(wrong)}",
                where=self.where, hint="Plan again with this version and these inputs.",
            )  # fmt: skip

    def storage_of(self, region: PlannedRegion) -> Storage:
        """How a region's residual is kept."""
        return next(s for s in self.storages if s.name == region.storage)

    def diff(self, other: Plan) -> str:
        """One line for each figure that differs, this plan's value first; or "no difference"."""
        return difference(_figures(self), _figures(other))

    def to_json(self) -> str:
        """The whole plan as JSON text; `Plan.from_json` gives back an equal plan."""
        return json.dumps(_figures(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:  PlanError for text that is no plan, or a plan of another schema version.
        """
        data = json_value(text)
        if isinstance(data, dict) and "schema_version" in data:
            _check_schema(data["schema_version"])
        return record(
            cls,
            data,
            regions=lambda rows: tuple(
                record(PlannedRegion, row, absorbed=array, place=lambda text: choice(Place, text))
                for row in array(rows)
            ),
            kept_lives=array,
            memory=lambda entries: record(Memory, entries),
            drift_source=lambda text: choice(DriftSource, text),
            frontier=lambda rows: tuple(
                record(Alternative, row, cuts=array) for row in array(rows)
            ),
            storages=lambda rows: tuple(
                record(
                    Storage,
                    row,
                    form=lambda text: choice(Form, text),
                    place=lambda text: choice(Place, text),
                )
                for row in array(rows)
            ),
            solved=lambda entries: record(Solved, entries, proof=lambda text: choice(Proof, text)),
            fingerprint=lambda entries: (
                None if entries is None else record(Fingerprint, entries, resolution=array)
            ),
        )

    def save(self, path: Path | str) -> None:
        """Writes `to_json` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """The plan that `save` wrote.

        Raises:  PlanError naming the file, where it cannot be read or holds no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_json(text)
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"the plan cannot be read: {error}", where=str(path)) from error
        except PlanError as error:
            raise PlanError(error.message, where=str(path), hint=error.hint) from error


def _figures(plan: Plan) -> dict[str, object]:
    entries = asdict(replace(plan, symbolic=None))
    del entries["symbolic"]
    return entries


def _check_regions(regions: tuple[PlannedRegion, ...]) -> None:
    next_gap = 0
    for index, region in enumerate(regions):
        if region.index != index or region.first_gap != next_gap:
            raise PlanError(
                f"region {region.index} begins at gap {region.first_gap}, "
                f"but region {index} at gap {next_gap} comes next"
            )
        next_gap = region.last_gap + 1


def _check_cuts(cuts: object) -> None:
    if not isinstance(cuts, tuple) or len(cuts) < 2 or cuts[0] != 0:
        raise PlanError(f"cuts must be a tuple of nodes that begins with 0, not {cuts!r}")
    for before, node in pairwise(cuts):
        checked_count(node, "a node of cuts", least=before + 1)


def _check_measured(plan: Plan) -> None:
    measured = plan.drift_source is not DriftSource.ASSUMED
    for drift in [part.drift for part in plan.regions] + [row.drift for row in plan.frontier]:
        if (drift is not None) != measured:
            raise PlanError(
                f"drift_source is {plan.drift_source.value!r}, but a part has drift {drift!r}",
                where=plan.where,
            )


def _check_limits(plan: Plan) -> None:
    if plan.cache_ratio is not None:
        checked_ratio(plan.cache_ratio)
    if plan.budget_bytes is None:
        return
    checked_count(plan.budget_bytes, "budget_bytes", least=1)
    if plan.memory.total_bytes > plan.budget_bytes:
        raise PlanError(
            f"the plan takes {plan.memory.total_bytes} bytes "
            f"({format_bytes(plan.memory.total_bytes)}), more than its budget of "
            f"{plan.budget_bytes} bytes ({format_bytes(plan.budget_bytes)})",
            where=plan.where,
        )


def _check_names(names: object, what: str) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"{what} must be a tuple of names, not {names!r}")


def _check_schema(version: object) -> None:
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"the plan has schema version {version!r}, this synccache reads {SCHEMA_VERSION}",
            hint="Plan again with this version.",
        )
