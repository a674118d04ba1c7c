"""From what was matched to a plan, and from a plan to how each region is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from synccache.errors import PlanError
from synccache.fx.cost import KnownDrift, chain_problem, weights_device
from synccache.fx.held import measured
from synccache.fx.match import RuleMatch
from synccache.fx.program import ResidualProgram
from synccache.fx.request import Request
from synccache.fx.runs import Layout
from synccache.fx.schedules import drift_of
from synccache.fx.taps import main_stream
from synccache.planner import ChainProblem, DriftSource, Plan, plan_chain
from synccache.planner.chain import plan_kept
from synccache.planner.fingerprint import Fingerprint, parameters_digest
from synccache.planner.goals import PlannedRegionSteps
from synccache.planner.storage import AS_COMPUTED, HOST, TURNS, Place, Storage
from synccache.policies.dsl import Hold, Payback, Policy, Predictor


@dataclass(frozen=True, slots=True)
class Keep:
    """How the residual of one region is held, and what predicts from it."""

    predictor: Predictor
    storage: Storage = AS_COMPUTED
    payback: Payback | None = None

    @property
    def tensors(self) -> int:
        """How many are held of each run."""
        paid = self.payback.history if self.payback is not None else 1
        return max(self.predictor.history, paid)


def keeps(plan: Plan | None, layout: Layout, matches: tuple[RuleMatch, ...]) -> tuple[Keep, ...]:
    """For each region of the layout; as the plan says, where there is one."""
    own = [
        Keep(matches[r.rule].rule.reuse, payback=matches[r.rule].payback) for r in layout.regions
    ]
    if plan is None:
        return tuple(own)
    if len(plan.regions) != len(layout.regions):
        raise PlanError(
            f"the plan has {len(plan.regions)} regions, the graph {len(layout.regions)}: a live branch "
            "between two of them is read where the plan absorbs it.", where=plan.where,
            hint="Raise cache_ratio or mem_budget, so that fewer branches are absorbed.",
        )  # fmt: skip
    return tuple(
        replace(keep, predictor=Hold() if region.predictor == "Hold" else keep.predictor,
                storage=plan.storage_of(region))
        for keep, region in zip(own, plan.regions)
    )  # fmt: skip


def make_problem(
    model: nn.Module, request: Request, program: ResidualProgram, matches: tuple[RuleMatch, ...],
    layout: Layout, hoisted: dict[Node, int], guidance_branches: int, mask_bytes: int,
    rows: tuple[PlannedRegionSteps, ...] | None = None,
) -> ChainProblem:  # fmt: skip
    """The planner's problem, with measured drift where a calibration or a schedule knows it."""
    return chain_problem(
        model, program, matches, layout, hoisted, leader=request.policy.leader,
        guidance_branches=guidance_branches, masks=mask_bytes,
        drift=_drift(model, request, layout) if rows is None else drift_of(rows),
        sharing=request.sharing,
    )  # fmt: skip


def make_plan(
    model: nn.Module, request: Request, program: ResidualProgram, matches: tuple[RuleMatch, ...],
    problem: ChainProblem, rows: tuple[PlannedRegionSteps, ...] | None = None,
) -> Plan:  # fmt: skip
    """The best plan within what was asked, or the plan that was given, if it belongs here.

    ``rows``: of a schedule that has chosen regions and storages already.
    """
    where = f"{request.policy.name} on {type(model).__name__}"
    made_for = fingerprint(model, request.policy, program)
    if rows is not None:
        return plan_kept(
            problem, [row.storage for row in rows], policy=request.policy.name,
            model=type(model).__name__, mem_budget=request.mem_budget, fingerprint=made_for,
        )  # fmt: skip
    if request.plan is not None:
        return _given(request.plan, request, problem, made_for)
    if request.cache_ratio is not None and matches and not any(m.planned for m in matches):
        raise PlanError(
            f"cache_ratio={request.cache_ratio} chooses how many segments to hold, but no rule of this "
            "policy says segments(...).", where=where, hint="Leave cache_ratio out.",
        )  # fmt: skip
    return plan_chain(
        problem, policy=request.policy.name, model=type(model).__name__,
        mem_budget=request.mem_budget, cache_ratio=request.cache_ratio if matches else None,
        storages=_storages(request, weights_device(model), where, program.captured.shapes_only),
        fingerprint=made_for,
    )  # fmt: skip


def digest_of(model: nn.Module) -> str:
    """Of the names, shapes and dtypes of parameters and buffers."""
    entries = [*model.named_parameters(), *model.named_buffers()]
    return parameters_digest(
        (name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in entries
    )


def fingerprint(model: nn.Module, policy: Policy, program: ResidualProgram) -> Fingerprint:
    """What a plan for this model, policy and these shapes may be used with."""
    stream = program.of_stream(main_stream(program))[0].before
    return Fingerprint(
        model=type(model).__name__,
        parameters=digest_of(model),
        resolution=tuple(stream.meta["shape"]),
        policy=repr(policy),
    )


def _given(plan: Plan, request: Request, problem: ChainProblem, made_for: Fingerprint) -> Plan:
    """The caller's plan, checked against what was found here."""
    plan.check_use(problem, made_for)
    planned, found = plan.memory.guidance_branches, problem.guidance_branches
    if found > planned:
        raise PlanError(
            f"the plan was made for {planned} guidance branch(es), this loop has {found}, and each holds "
            "residuals of its own.", where=plan.where,
            hint="Save compiled.plan after a whole run of the loop that it is for.",
        )  # fmt: skip
    if request.mem_budget is not None and plan.memory.total_bytes > request.mem_budget:
        raise PlanError(
            f"the plan takes {plan.memory.total_bytes} bytes, more than mem_budget="
            f"{request.mem_budget}.", where=plan.where, hint="Plan again with this budget.",
        )  # fmt: skip
    return plan


def _storages(
    request: Request, device: torch.device, where: str, shapes_only: bool
) -> tuple[Storage, ...]:
    """What may be chosen from: as asked, else all that loses nothing on this device.

    What was recorded without values is planned for a device with a memory of its own.
    """
    on_cuda = device.type == "cuda"
    apart = on_cuda or shapes_only
    lossless = (AS_COMPUTED, TURNS, HOST) if apart and request.mem_budget else (AS_COMPUTED,)
    wanted = request.storages or lossless
    away = [s.name for s in wanted if s.place is not Place.DEVICE]
    if away and not apart and device.type == "cpu" and request.mem_budget is not None:
        raise PlanError(
            f"storages {away} free memory of the device by filling main memory, but this model lies in "
            "main memory itself.", where=where, hint='Ask for "float8" or "bfloat16" instead.',
        )  # fmt: skip
    return tuple(measured(s, device) for s in wanted) if on_cuda else wanted


def _drift(model: nn.Module, request: Request, layout: Layout) -> KnownDrift | None:
    """What is known: a calibration before what a warm-up has measured; None where nothing is."""
    if not layout.regions:
        return None
    labels = tuple(r.label for r in layout.regions)
    shape = border_shape(layout)
    given = request.calibration
    if given is not None:
        given.check(
            model=type(model).__name__, regions=labels, shape=shape, parameters=digest_of(model)
        )
        return KnownDrift(given.drift, DriftSource.CALIBRATION, max(1, given.steps - 1))
    found = request.drift
    if found is None or (found.regions, found.shape) != (labels, shape):
        return None  # of another input signature: it has a warm-up of its own
    return KnownDrift(found.own, DriftSource.WARM_UP, found.steps, found.hold)


def border_shape(layout: Layout) -> tuple[int, ...]:
    """Shape of the stream that the first region begins on."""
    return tuple(layout.regions[0].runs[0].end.meta["shape"])


def needs_drift(plan: Plan | None, request: Request, matches: tuple[RuleMatch, ...]) -> bool:
    """Whether measured drift could change a plan that rests on assumed drift.

    It could where live branches are absorbed, for then there are others that might be instead.
    """
    if plan is None or request.plan is not None or request.measure:
        return False
    assumed = plan.drift_source is DriftSource.ASSUMED
    merged = any(region.first_gap < region.last_gap for region in plan.regions)
    return assumed and merged and all(m.planned for m in matches) and len(matches) == 1


def given_bytes(masks: Mapping[str, Tensor]) -> int:
    """Bytes of token masks that the caller gave."""
    return sum(m.numel() * m.element_size() for m in masks.values())
