"""Bytes and FLOPs of a recorded forward, and the planner's problem made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from synccache.fx.capture import Captured
from synccache.fx.conditions import SAMPLE, nodes_tagged
from synccache.fx.estimate import size_bytes
from synccache.fx.held import tensor_bytes
from synccache.fx.live import live_nodes, passed_whole
from synccache.fx.match import RuleMatch
from synccache.fx.program import ResidualProgram
from synccache.fx.runs import Layout, Region
from synccache.fx.taps import anchor_probe, kept, prediction_node
from synccache.fx.tensors import Lifetime, kept_until, peak_bytes
from synccache.fx.tokens import state_bytes
from synccache.planner import ChainProblem, DriftSource, Gap, Live, segment_table
from synccache.planner.problem import LowerOrder, Table
from synccache.planner.storage import Form
from synccache.policies import dsl
from synccache.policies.dsl import AUDIO, FIRST_BRANCH, Hold, Leader, Policy, TwoAnchor
from synccache.policies.fitted import longest_gap


def weights_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; memory shared between them counts once."""
    sizes = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def weights_device(model: nn.Module) -> torch.device:
    """Where the model's parameters lie; the CPU for a model without any."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def activation_peak_bytes(
    captured: Captured, layout: Layout | None = None, hoisted: Collection[Node] = ()
) -> int:
    """The most bytes of intermediates alive at once in the recorded forward.

    From when each was made and freed while it ran (or while shapes went through it): what Python
    holds on to counts, as do intermediates inside modules that are called whole. Memory that a kernel
    takes and gives back inside one operation does not: it depends on the device, whose allocator's
    own figure is taken where there is one. With a ``layout``, of a step that computes its regions.
    """
    seen = peak_bytes(captured.lifetimes)
    peak = seen if layout is None else peak_bytes(lifetimes(captured, layout, hoisted))
    return peak if captured.device_peak is None else max(seen, captured.device_peak) + peak - seen


def lifetimes(
    captured: Captured, layout: Layout, hoisted: Collection[Node]
) -> tuple[Lifetime, ...]:
    """Of intermediates, where a region is computed: what it is given lives until its ends are made,
    for what is held is the difference from its starts. What is kept anyway (``hoisted``) is not longer.
    """
    longer = []
    for region in layout.regions:
        ends = [run.end for run in region.runs]
        given = {n for node in region.body for n in node.all_input_nodes} - region.body
        given |= {run.start for run in region.runs if run.start is not None}
        births = [n.meta.get("birth") for n in ends]
        last = max((b for b in births if b is not None), default=None)
        if last is not None:
            longer += [(n.meta["birth"], last) for n in given
                       if n not in hoisted and n.meta.get("birth") is not None]  # fmt: skip
    return kept_until(captured.lifetimes, longer)


def invariant_bytes(
    captured: Captured, hoisted: dict[Node, int], live: set[Node]
) -> dict[int, int]:
    """Bytes of the step-invariant values that emitted graphs keep, by the inputs they are made from.

    Shared memory counts once; what is not ``live`` is not kept. What a module is given counts even
    if only step-invariant operations use it: where the module is called whole, it has to be kept.
    Views of weights and of inputs are kept too, but take no memory of their own.
    """
    given = [n for n in captured.graph.nodes if n.op in ("placeholder", "get_attr")]
    sizes: dict[int, dict[object, int]] = defaultdict(dict)
    seen: set[object] = {n.meta.get("storage") for n in given}
    passed = passed_whole(captured, live, hoisted)
    for node, bits in hoisted.items():
        if node in live and (
            node in passed
            or any(u in live and (u not in hoisted or hoisted[u] != bits) for u in node.users)
            or any(u.op == "output" for u in node.users)
        ):
            memory = node.meta.get("storage", node)
            if memory not in seen:
                seen.add(memory)
                sizes[bits][memory] = node.meta.get("storage_bytes", 0)
    return {bits: sum(found.values()) for bits, found in sizes.items()}


def _split_invariants(
    captured: Captured,
    hoisted: dict[Node, int],
    live: set[Node],
    branches: int,
    sharing: Sharing,
) -> tuple[int, int]:
    """(bytes for each guidance branch, bytes of what branches share) of step-invariant values."""
    each = shared = 0
    for bits, size in invariant_bytes(captured, hoisted, live).items():
        mine = [i for i, n in enumerate(captured.placeholders) if captured.depends[n] & bits]
        copies = (
            len({tuple(labels[i] for i in mine) for labels in sharing}) if sharing else branches
        )
        copies = copies if mine else 1
        each, shared = (
            (each + size, shared) if copies == branches else (each, shared + size * copies)
        )
    return each, shared


Sharing = Sequence[Sequence[int]]
"""For each guidance branch and input tensor, the first branch that is given the same tensor."""


def visual_flops(program: ResidualProgram) -> int:
    """FLOPs of one forward in branches that read no audio: what caching is there to save."""
    return sum(b.flops for b in program.branches if AUDIO not in b.reads)


def probe_bytes(
    matches: Sequence[RuleMatch], program: ResidualProgram, leader: Leader
) -> tuple[int, int]:
    """Bytes that gates keep: (for each guidance branch, once)."""
    by_leader = by_branch = 0
    for found in matches:
        signals = dsl.measured_signals(found.rule.when)
        by_leader += sum(_kept_bytes(found, program, *item) for item in kept(signals))
        if isinstance(found.rule.reuse, TwoAnchor):
            by_branch += 2 * size_bytes(found.taps[anchor_probe(found.rule)].after)
        if isinstance(found.rule.reuse, dsl.FromSibling):
            by_branch += sum(size_bytes(end) for _, end in found.skipped.whole)
        if found.rule.tokens is not None:
            by_branch += state_bytes(found, program)
    return (by_branch, by_leader) if leader is FIRST_BRANCH else (by_branch + by_leader, 0)


def _kept_bytes(
    found: RuleMatch, program: ResidualProgram, probe: dsl.Probe,
    since: dsl.Since | dsl.Forecast, weights: tuple[dsl.Weight, ...],
) -> int:  # fmt: skip
    """Bytes of one reference; what the user gives is not known here and counts as nothing."""
    if isinstance(probe, dsl.Given):
        return 0
    node = found.taps[probe].after if probe in found.taps else prediction_node(program)
    count = since.predictor.history if isinstance(since, dsl.Forecast) else 1
    for weight in weights:
        if isinstance(weight, dsl.ChannelStride):
            channels = node.meta["shape"][-1]
            return count * size_bytes(node) // channels * -(-channels // weight.n)
    return count * size_bytes(node)


@dataclass(frozen=True, slots=True)
class KnownDrift:
    """Drift of every segment with the policy's predictor, summed over ``steps`` changes.

    ``hold`` is the same with reuse of the last residual, where that was measured apart.
    """

    table: Table[float]
    source: DriftSource
    steps: int
    hold: Table[float] | None = None


def payback_bytes(policy: Policy, program: ResidualProgram) -> int:
    """Bytes of the skipped steps of the longest gap, kept until they are paid back: for each the
    sample, the timestep and the output. Other inputs, if the loop makes them anew, come on top."""
    payback = policy.payback
    if payback is None or not payback.strength:
        return 0
    changing = nodes_tagged(program.tags, SAMPLE, dsl.TIMESTEP)
    outputs: Any = program.captured.graph.output_node().args[0]
    size = sum(size_bytes(node) for node in (*changing, *outputs))
    return size * max(longest_gap(r.when) for r in policy.rules if isinstance(r.when, dsl.Steps))


def chain_problem(
    model: nn.Module, program: ResidualProgram, matches: Sequence[RuleMatch], layout: Layout,
    hoisted: dict[Node, int], *, leader: Leader, guidance_branches: int, masks: int,
    drift: KnownDrift | None, sharing: Sharing = (),
) -> ChainProblem:  # fmt: skip
    """What the planner needs to know of this model, policy and these shapes."""
    regions = layout.regions
    lives = [_lives_between(program, a, b, layout) for a, b in zip(regions, regions[1:])]
    fixed, shared = probe_bytes(matches, program, leader)
    live = live_nodes(program.captured, matches, layout)
    kept, kept_once = _split_invariants(program.captured, hoisted, live, guidance_branches, sharing)
    predictors = {type(m.rule.reuse) for m in matches} or {Hold}

    histories = {m.keep for m in matches} or {1}
    tensors = max(histories) if len(histories) == 1 else 1  # else counted in the bytes below

    def held_in(form: Form) -> Callable[[int, int], int]:
        sizes = {
            run: tensor_bytes(run.end.meta["shape"], run.end.meta["dtype"], form)
            for r in regions for run in r.runs
        }  # fmt: skip
        upto = [0, *accumulate(sum(sizes[run] for run in r.runs) for r in regions)]

        def size(first: int, end: int) -> int:
            times = 1 if tensors > 1 else matches[regions[first].rule].keep
            joined = end - first > 1 and all(lives[i] for i in range(first, end - 1))
            if not joined:
                return times * (upto[end] - upto[first])
            streams = {run.branches[0].stream: run for r in regions[first:end] for run in r.runs}
            return times * sum(sizes[run] for run in streams.values())

        return size

    merged = held_in(Form.AS_COMPUTED)
    may_lower = not any(m.is_planned_ahead for m in matches)
    audio = [b for b in program.branches if AUDIO in b.reads]
    return ChainProblem(
        gaps=tuple(
            Gap(name=f"region {r.index}", labels=r.label, seconds=_seconds(r),
                flops=sum(b.flops for b in r.branches), held_bytes=merged(i, i + 1))
            for i, r in enumerate(regions)
        ),
        lives=tuple(
            _live_group(program, group, i, absorbable=_mergeable(a, b, matches) and bool(group))
            for i, (group, a, b) in enumerate(zip(lives, regions, regions[1:], strict=False))
        ),
        live_total=len(audio),
        merged_bytes=segment_table(len(regions), merged),
        weights_bytes=weights_bytes(model),
        activation_bytes=activation_peak_bytes(program.captured, layout, hoisted),
        guidance_branches=guidance_branches,
        dtype=str(regions[0].runs[0].end.meta["dtype"]).removeprefix("torch.") if regions else "none",
        predictor=", ".join(sorted(p.__name__ for p in predictors)),
        tensors_per_segment=tensors,
        bytes_as=tuple(
            (form, segment_table(len(regions), held_in(form)))
            for form in Form if form is not Form.AS_COMPUTED
        ),
        lower_orders=_lower_orders(tensors, drift) if may_lower else (),
        fixed_bytes_per_branch=kept + fixed,
        shared_bytes=shared + masks + kept_once,
        drift=None if drift is None else drift.table,
        drift_source=DriftSource.ASSUMED if drift is None else drift.source,
        drift_steps=1 if drift is None else drift.steps,
        seconds_source=program.captured.seconds_source,
    )  # fmt: skip


def _lower_orders(tensors: int, drift: KnownDrift | None) -> tuple[LowerOrder, ...]:
    """Reuse of one tensor beside a predictor that holds more; not where its drift is not known."""
    if tensors == 1 or drift is not None and drift.hold is None:
        return ()
    table = None if drift is None else drift.hold
    return (LowerOrder(predictor="Hold", tensors=1, drift=table),)


def _seconds(region: Region) -> float:
    return float(sum(b.seconds for b in region.branches))


def _lives_between(program: ResidualProgram, a: Region, b: Region, layout: Layout) -> list[int]:
    skipped = {x.index for r in layout.regions for x in r.branches}
    first, last = a.branches[-1].index, b.branches[0].index
    return [i for i in range(first + 1, last) if i not in skipped]


def lives_between(program: ResidualProgram, layout: Layout, gap: int) -> list[int]:
    """Indices of the live branches between region ``gap`` and the next."""
    return _lives_between(program, layout.regions[gap], layout.regions[gap + 1], layout)


def _mergeable(a: Region, b: Region, matches: Sequence[RuleMatch]) -> bool:
    """Whether a plan may hold two neighbouring regions as one: both of one ``segments(...)`` rule."""
    return a.rules == b.rules and matches[a.rule].planned


def _live_group(
    program: ResidualProgram, group: list[int], index: int, *, absorbable: bool
) -> Live:
    found = [program.branches[i] for i in group]
    return Live(
        name=" + ".join(b.label for b in found) or f"cut {index + 1}",
        count=sum(AUDIO in b.reads for b in found),
        seconds=float(sum(b.seconds for b in found)),
        flops=sum(b.flops for b in found),
        bytes=0,
        absorbable=absorbable,
    )
