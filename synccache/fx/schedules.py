"""Schedules of regions over steps: solved from a calibration, and run as one step mask a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synccache.errors import PlanError
from synccache.fx.cost import KnownDrift
from synccache.fx.match import RuleMatch
from synccache.fx.program import ResidualProgram
from synccache.fx.regions import lay_out
from synccache.fx.request import Request
from synccache.fx.runs import Layout, RunForm, Skipped
from synccache.planner import ChainProblem, DriftSource, segment_table
from synccache.planner.goals import PlannedRegionSteps, RegionSchedule, plan_schedule
from synccache.planner.storage import AS_COMPUTED
from synccache.policies.dsl import Steps


def wanted_schedule(request: Request, problem: ChainProblem) -> RegionSchedule | None:
    """The schedule that was given, or one solved for the goal; None where neither was asked for."""
    if request.schedule is not None:
        return request.schedule
    if request.max_drift is None:
        return None
    assert request.calibration is not None, "checked with the goal"
    room = None
    if request.mem_budget is not None:
        room = max(0, request.mem_budget - problem.bytes_without_residuals)
    return plan_schedule(
        request.calibration, max_drift=request.max_drift, max_bytes=room, storages=request.storages or (AS_COMPUTED,),
    )  # fmt: skip


def scheduled(
    found: RegionSchedule, model: str, program: ResidualProgram, matches: Sequence[RuleMatch],
    base: Layout,
) -> tuple[tuple[RuleMatch, ...], Layout, tuple[PlannedRegionSteps, ...]]:  # fmt: skip
    """A rule for each region that the schedule skips somewhere; regions always computed stay live.

    Raises:  PlanError where the schedule was made for other regions.
    """
    _check(found, model, matches, base)
    rows = [
        (region, row)
        for region, row in zip(base.regions, found.rows, strict=True)
        if "S" in row.letters
    ]
    rules = tuple(
        RuleMatch(
            rule=replace(matches[region.rule].rule, when=Steps(row.letters, found.timesteps)),
            skipped=Skipped(frozenset(b.index for b in region.branches)),
            planned=False,
            taps={},
        )
        for region, row in rows
    )
    layout = lay_out(program, [m.skipped for m in rules], [])
    if len(layout.regions) != len(rules):
        raise PlanError(
            f"{len(rules)} regions of the schedule became {len(layout.regions)} in the graph.",
            where=model, hint="Calibrate again with this version.",
        )  # fmt: skip
    return rules, layout, tuple(row for _, row in rows)


def drift_of(rows: Sequence[PlannedRegionSteps]) -> KnownDrift:
    """What each region adds, for the plan: storage's own part is added there once."""
    own = [max(0.0, row.drift - row.storage.drift) for row in rows]
    table = segment_table(len(rows), lambda i, j: own[i] if j == i + 1 else 0.0)
    return KnownDrift(table, DriftSource.CALIBRATION, 1)


def _check(found: RegionSchedule, model: str, matches: Sequence[RuleMatch], base: Layout) -> None:
    labels = tuple(region.label for region in base.regions)
    shape = tuple(base.regions[0].runs[0].end.meta["shape"]) if base.regions else ()
    wrong = [
        f"{name} {there!r} there, {here!r} here"
        for name, there, here in (
            ("model", found.model, model),
            ("stream shape", found.shape, shape),
            ("regions", tuple(row.region for row in found.rows), labels),
        )
        if there != here
    ]
    if wrong:
        raise PlanError(
            f"the schedule belongs to something else: {'; '.join(wrong)}.", where=model,
            hint="Plan it from a calibration of this model, policy and resolution.",
        )  # fmt: skip
    forms = {run.form for region in base.regions for run in region.runs}
    if forms - {RunForm.RESIDUAL} or any(m.is_planned_ahead for m in matches):
        raise PlanError(
            "a schedule of regions replaces the conditions of rules that skip residuals; this policy "
            "holds something else, or is planned already.", where=model,
            hint="Use a policy that skips segments(...) or selectors with Hold() or Linear().",
        )  # fmt: skip
