"""``compile``: the pipeline, top to bottom.

capture -> tag -> match -> plan -> rewrite -> verify
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from synccache.errors import MatchError, PlanError, PolicyError
from synccache.fx.cached_model import CachedModel
from synccache.fx.capture import Captured
from synccache.fx.conditions import SAMPLE, nodes_tagged, tag_inputs
from synccache.fx.cost import lives_between, payback_bytes, visual_flops
from synccache.fx.hoist import hoistable
from synccache.fx.masks import check_names, token_masks
from synccache.fx.match import RuleMatch, match
from synccache.fx.measured_on import check_model
from synccache.fx.planning import given_bytes, keeps, make_plan, make_problem, needs_drift
from synccache.fx.program import ResidualProgram, residual_program
from synccache.fx.regions import lay_out
from synccache.fx.request import Request
from synccache.fx.rewrite import rewrite
from synccache.fx.runs import Layout
from synccache.fx.schedules import scheduled, wanted_schedule
from synccache.fx.split import split_where_cut
from synccache.fx.subject import as_module, closed_paths
from synccache.fx.taps import main_stream
from synccache.fx.variant import Variant, WarmUp
from synccache.planner import ChainProblem, Plan, parse_bytes
from synccache.planner.calibration import Calibration
from synccache.planner.goals import PlannedRegionSteps, RegionSchedule, plan_for_speedup
from synccache.planner.storage import Storage, storages_named
from synccache.policies import by_name, planned
from synccache.policies.dsl import (
    MaskWeight,
    MeanChange,
    Policy,
    RelativeL1,
    measured_signals,
    weights_of,
)
from synccache.policies.files import is_file, load


def compile(
    model: nn.Module | Callable[..., Any],
    policy: str | Path | Policy = "asymmetric",
    mem_budget: str | int | None = None,
    *,
    cache_ratio: float | None = None,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    verify: bool = True,
    calibration: Calibration | str | Path | None = None,
    storages: Sequence[str | Storage] | None = None,
    plan: Plan | str | Path | None = None,
    schedule: RegionSchedule | None = None,
    target_speedup: float | None = None,
    max_drift: float | None = None,
    leaves: Sequence[str] = (),
    split: Sequence[str] = (),
    modules: Sequence[nn.Module] | Mapping[str, nn.Module] | None = None,
) -> CachedModel:
    """The model with a caching policy compiled into it; call it as you call the model.

    Returns at once: the first forward is recorded while it computes. Weights are shared with
    ``model``, not copied.

    Args:
        model: any diffusion transformer, unmodified, in evaluation mode; or a function that runs one
            (a pipeline's ``model_fn``), with ``modules``.
        policy: a name from ``synccache.policies``, a ``Policy``, or the path of its .json or .py file.
        mem_budget: bytes of everything the model uses on its device (weights, activations,
            caches): an int, or a text such as "24GB" (24e9) or "24GiB" (24 * 2**30).
        cache_ratio: share in (0, 1] of the audio branches that segments are cut at, as in
            SyncCache (arXiv 2606.30849).
        conditions: names of forward arguments by condition, e.g. ``{"audio": ["audio_input"]}``;
            what is not named is found by the argument's own name.
        masks: token masks in [0, 1] by name: [tokens], [batch, tokens], or a [frames, height,
            width] grid that divides into the tokens.
        example: ``(args, kwargs)`` of one forward to record now instead of at the first call.
        verify: replay the recording once and demand the same bits.
        calibration: what ``synccache.calibrate`` measured, or the path of its file; without one the
            planner assumes that few absorbed audio branches, evenly spread, are best, says so, and
            plans again with what the warm-up steps of the first trajectory showed.
        storages: ways to keep residuals that the planner may choose from where ``mem_budget`` needs
            it, by name (``synccache.planner.storage``): "as computed", "bfloat16", "float8",
            "in turns", "host", "float8 on the host". Left out: those that lose nothing, which on a
            CUDA device includes main memory.
        plan: a plan made before, or the path of its file; refused where it does not belong.
        target_speedup: seconds of the model over seconds compiled: a planned schedule
            (``policies.planned``) of as many computed steps as that allows, solved from
            ``calibration`` in place of the policy's conditions; the calibration must know its noise
            levels. ``explain()`` shows what neighbouring speed-ups would give.
        max_drift: the fastest ``plan_schedule`` within a predicted drift, likewise.
        schedule: the same, solved before by ``plan_schedule``, which knows more rules.
        leaves: modules that must not be opened, by path or pattern ("audio_proj", "blocks.*"): each
            is called whole, on every call, and what is inside it can be neither skipped nor kept.
        split: conditions, such as ("audio",), that may be merged with others inside one branch, as in
            ``o(text + audio)``. Where the policy skips one part and keeps the other, the branch becomes
            two at that sum; the result is the model's but for rounding, on computed steps too.
        modules: for a function: the modules that it runs, also those it is called with.

    Raises:
        PolicyError, PlanError: at once, for what can be seen without running the model.
        CaptureError, MatchError, VerifyError: at the first forward (or now, with ``example``).
    """
    if isinstance(model, CachedModel):
        raise PolicyError(
            f"this model is compiled already, with {model._request.policy.name}.",
            hint="Compile the original, compiled.model; join two policies with policies.switch or rules.",
        )
    model = as_module(model, modules)
    leaves = (leaves,) if isinstance(leaves, str) else tuple(leaves)
    closed_paths(model, leaves)  # refused now rather than at the first call
    request = checked_request(
        policy, mem_budget=mem_budget, cache_ratio=cache_ratio, conditions=conditions, masks=masks,
        verify=verify, calibration=calibration, storages=storages, plan=plan, leaves=leaves,
        split=split, schedule=schedule, target_speedup=target_speedup, max_drift=max_drift,
    )  # fmt: skip
    check_model(request.policy, model)
    compiled = CachedModel(model, request, build_variant)
    if example is not None:
        compiled.record(*example)
    return compiled


def checked_request(
    policy: str | Path | Policy, *, mem_budget: str | int | None = None, cache_ratio: float | None = None,
    conditions: Mapping[str, Sequence[str]] | None = None, masks: Mapping[str, Tensor] | None = None,
    verify: bool = True, calibration: Calibration | str | Path | None = None, measure: bool = False,
    storages: Sequence[str | Storage] | None = None, plan: Plan | str | Path | None = None,
    schedule: RegionSchedule | None = None, target_speedup: float | None = None,
    max_drift: float | None = None, leaves: Sequence[str] = (), split: Sequence[str] = (),
) -> Request:  # fmt: skip
    """The arguments of ``compile`` as a checked record."""
    _check_goals(plan, cache_ratio, schedule, target_speedup, max_drift, calibration)
    if plan is not None and storages is not None:
        raise PlanError("plan= says already how residuals are kept; leave storages= out.")
    asked = _policy(policy)
    if split and not asked.rules:
        raise PolicyError(
            f"split={split!r}: {asked.name} skips nothing and keeps the model's bits, which a split "
            "branch does not.", hint="Leave split out.",
        )  # fmt: skip
    return _with_goal(Request(
        policy=asked,
        mem_budget=None if mem_budget is None else parse_bytes(mem_budget),
        cache_ratio=_ratio(cache_ratio),
        conditions=conditions,
        masks=dict(masks or {}),
        verify=verify,
        calibration=Calibration.load(calibration)
        if isinstance(calibration, (str, Path))
        else calibration,
        measure=measure,
        storages=None if storages is None else storages_named(storages),
        plan=Plan.load(plan) if isinstance(plan, (str, Path)) else plan,
        schedule=schedule,
        target_speedup=target_speedup,
        max_drift=max_drift,
        leaves=tuple(leaves),
        split=(split,) if isinstance(split, str) else tuple(split),
    ))  # fmt: skip


def _with_goal(request: Request) -> Request:
    """A speed-up as a planned policy."""
    known, wanted = request.calibration, request.target_speedup
    if wanted is None or known is None:
        return request
    if len(request.policy.rules) != 1:
        raise PlanError(
            f"target_speedup= plans one schedule, and {request.policy.name} has "
            f"{len(request.policy.rules)} rules.", hint="Use a policy of one rule.",
        )  # fmt: skip
    goal = plan_for_speedup(known, wanted)
    policy = planned(goal.plan, skip=request.policy.rules[0].skip)
    return replace(request, policy=policy, goal=goal, target_speedup=None)


def _check_goals(
    plan: object, cache_ratio: object, schedule: object, target_speedup: object, max_drift: object,
    calibration: object,
) -> None:  # fmt: skip
    """At most one thing may say what is skipped, and a goal needs measured drift."""
    goals = {"target_speedup": target_speedup, "max_drift": max_drift}
    asked = [name for name, value in goals.items() if value is not None]
    others = {"plan": plan, "schedule": schedule, "cache_ratio": cache_ratio}
    if asked and calibration is None:
        raise PlanError(
            f"{asked[0]}= is solved from measured drift, and there is none.",
            hint="Pass calibration=synccache.calibrate(model, lambda m: sample(m)).",
        )
    asked += [name for name, value in others.items() if value is not None]
    if len(asked) > 1:
        raise PlanError(
            f"{' and '.join(f'{name}=' for name in asked)} each say what is skipped.",
            hint="Give one of them.",
        )


def _policy(policy: object) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, (str, Path)) and is_file(policy):
        return load(policy)
    if isinstance(policy, str):
        return by_name(policy)
    raise PolicyError(
        f"policy must be a name, a Policy or the path of a policy file, got {policy!r}."
    )


def _ratio(ratio: object) -> float | None:
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise PlanError(f"cache_ratio must lie in (0, 1], got {ratio!r}.")
    return float(ratio)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was found in a recording, and the planner's problem made of it."""

    tags: Mapping[Node, str]
    hoisted: dict[Node, int]
    program: ResidualProgram | None
    matches: tuple[RuleMatch, ...]
    layout: Layout  # every gap a region of its own
    masks: Mapping[str, Tensor]
    problem: ChainProblem | None
    schedule: RegionSchedule | None = None
    rows: tuple[PlannedRegionSteps, ...] | None = None  # of the schedule, one a region
    bytes_per_branch: int = 0  # of the problem's shared bytes: what one guidance branch more adds


def prepare(
    model: nn.Module, request: Request, captured: Captured, guidance_branches: int
) -> Prepared:
    """From a recording to the planner's problem, for a number of guidance branches."""
    policy = request.policy
    tags = tag_inputs(captured, request.conditions)
    hoisted = hoistable(captured, tags)
    program = _program(model, captured, tags, needed=bool(policy.rules))
    if program is None:
        return Prepared(tags, hoisted, None, (), Layout((), frozenset()), {}, None)
    where = type(model).__name__
    if request.split and not captured.split:
        program = split_where_cut(
            model, program, frozenset(request.split),
            lambda c: residual_program(model, c, tag_inputs(c, request.conditions)),
            lambda p: _skipped(match(policy, p, where, hoistable(p.captured, p.tags))),
        )  # fmt: skip
        tags = dict(program.tags)
        hoisted = hoistable(program.captured, tags)
    stream = program.of_stream(main_stream(program))[0].before
    check_model(policy, model, tuple(stream.meta["shape"]))
    matches = match(policy, program, where, hoisted)
    base = lay_out(program, [m.skipped for m in matches], _probes(matches))
    check_names(request.masks or {}, _wants_mask(matches), where)
    masks = token_masks(request.masks or {}, _stream_shape(program), _sample_shape(captured, tags))
    problem = make_problem(
        model, request, program, matches, base, hoisted, guidance_branches,
        _mask_bytes(policy, matches, masks, program, guidance_branches),
    )  # fmt: skip
    more = _mask_bytes(policy, matches, masks, program, 1) - given_bytes(masks)
    schedule, rows = wanted_schedule(request, problem), None
    if schedule is not None:
        matches, base, rows = scheduled(schedule, type(model).__name__, program, matches, base)
        problem = make_problem(
            model, request, program, matches, base, hoisted, guidance_branches, 0, rows
        )
    return Prepared(tags, hoisted, program, matches, base, masks, problem, schedule, rows, more)


def build_variant(
    model: nn.Module, request: Request, captured: Captured, guidance_branches: int, name: str
) -> Variant:
    """From a recording to an emitted graph, for a number of guidance branches."""
    started = time.perf_counter()
    found = prepare(model, request, captured, guidance_branches)
    captured = found.program.captured if found.program is not None else captured
    program, matches, layout, plan = found.program, found.matches, found.layout, None
    if program is not None and found.problem is not None:
        plan = make_plan(model, request, program, matches, found.problem, found.rows)
        layout = _merged(program, matches, layout, plan)
    planned = time.perf_counter()
    emitted = rewrite(
        model, program, captured, matches, layout, found.hoisted, keeps(plan, layout, matches),
        name=name, find_mask=bool(_wants_mask(matches) - set(found.masks)), measure=request.measure,
    )  # fmt: skip
    warm_up = None
    if needs_drift(plan, request, matches):
        base = found.layout
        apart = rewrite(
            model, program, captured, matches, base, found.hoisted, keeps(None, base, matches),
            name=f"{name}WarmUp", measure=True,
            find_mask=bool(_wants_mask(matches) - set(found.masks)),
        )  # fmt: skip
        warm_up = WarmUp(apart, base, matches[0].rule.reuse)
    return Variant(
        captured=captured, tags=found.tags, program=program, matches=matches, layout=layout,
        plan=plan, emitted=emitted, masks=found.masks,
        visual_flops=visual_flops(program) if program else 0,
        guidance_branches=guidance_branches, rewinds=captured.rewinds, plan_seconds=planned - started,
        rewrite_seconds=time.perf_counter() - planned, warm_up=warm_up,
        schedule=found.schedule,
    )  # fmt: skip


def _program(
    model: nn.Module, captured: Captured, tags: Mapping[Node, str], *, needed: bool
) -> ResidualProgram | None:
    """The residual program; for policies without rules a model without streams will do."""
    try:
        return residual_program(model, captured, tags)
    except MatchError:
        if needed:
            raise
        return None


def _skipped(matches: tuple[RuleMatch, ...]) -> frozenset[int]:
    return frozenset(i for m in matches for i in m.skipped.branches)


def _probes(matches: tuple[RuleMatch, ...]) -> list[Any]:
    return [n for m in matches for taps in m.taps.values() for n in taps.nodes]


def _wants_mask(matches: tuple[RuleMatch, ...]) -> set[str]:
    signals = [s for found in matches for s in measured_signals(found.rule.when)]
    weighed = [s for s in signals if isinstance(s, (RelativeL1, MeanChange))]
    return {w.name for s in weighed for w in weights_of(s) if isinstance(w, MaskWeight)}


def _stream_shape(program: ResidualProgram) -> tuple[int, int]:
    """Batch and tokens of the main stream."""
    shape = program.of_stream(main_stream(program))[0].before.meta["shape"]
    return int(shape[0]), math.prod(shape[1:-1])


def _sample_shape(captured: Captured, tags: Mapping[Node, str]) -> tuple[int, ...]:
    found = nodes_tagged(tags, SAMPLE)
    return tuple(found[0].meta["shape"]) if found else ()


def _mask_bytes(
    policy: Policy, matches: tuple[RuleMatch, ...], masks: Mapping[str, Tensor], program: ResidualProgram, branches: int
) -> int:  # fmt: skip
    batch, tokens = _stream_shape(program)
    found = 4 * batch * tokens * branches if _wants_mask(matches) - set(masks) else 0
    paid = payback_bytes(policy, program) * branches
    return given_bytes(masks) + found + paid


def _merged(
    program: ResidualProgram, matches: tuple[RuleMatch, ...], base: Layout, plan: Plan
) -> Layout:  # fmt: skip
    """The layout with the plan's segments: live branches that it absorbs are skipped too."""
    if all(r.first_gap == r.last_gap for r in plan.regions):
        return base
    skipped = [m.skipped for m in matches]
    for region in plan.regions:
        for gap in range(region.first_gap, region.last_gap):
            rule, absorbed = base.regions[gap].rule, lives_between(program, base, gap)
            skipped[rule] = replace(skipped[rule], branches=skipped[rule].branches.union(absorbed))
    return lay_out(program, skipped, _probes(matches))
