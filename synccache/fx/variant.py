"""One compiled form of a model: a recording, what was found in it, its plan and its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import Node

from synccache.fx.capture import Captured
from synccache.fx.conditions import nodes_tagged
from synccache.fx.match import RuleMatch
from synccache.fx.program import ResidualProgram
from synccache.fx.rewrite import Rewritten
from synccache.fx.runs import Layout
from synccache.fx.verify import Before
from synccache.planner import Plan
from synccache.planner.goals import RegionSchedule
from synccache.policies.dsl import Predictor


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The same forward with every region apart, for steps on which drift is measured."""

    emitted: Rewritten
    layout: Layout
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Variant:
    """Valid for one input signature and up to ``guidance_branches`` guidance branches."""

    captured: Captured
    tags: Mapping[Node, str]
    program: ResidualProgram | None  # None: no stream was found, and the policy has no rules
    matches: tuple[RuleMatch, ...]
    layout: Layout
    plan: Plan | None
    emitted: Rewritten
    masks: Mapping[str, Tensor]  # [batch or 1, tokens]
    visual_flops: int
    guidance_branches: int
    plan_seconds: float
    rewrite_seconds: float
    schedule: RegionSchedule | None = None  # of regions over steps, in place of conditions
    rewinds: bool = False  # inputs and random state are put back where a guard stops a run
    warm_up: WarmUp | None = None  # while the plan rests on drift that was assumed

    @property
    def flops(self) -> int:
        """Of one uncached forward."""
        return sum(n.meta.get("flops", 0) for n in self.captured.graph.nodes)

    @property
    def seconds(self) -> float:
        """Of the operations of the recorded forward."""
        return float(sum(n.meta.get("seconds", 0.0) for n in self.captured.graph.nodes))

    def timestep(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """The timestep among the input tensors of a call, if an input is marked as it."""
        found = nodes_tagged(self.tags, "timestep")
        return tensors[self.captured.placeholders.index(found[0])] if found else None

    def before(self, tensors: list[Tensor]) -> Before | None:
        """What to restore where a guard stops a run, if a run changes anything by then."""
        return Before(tensors) if self.rewinds else None

    def with_plan_of(self, other: Variant) -> Variant:
        """This graph, with what ``other`` found for more guidance branches; their graphs are equal."""
        return replace(self, plan=other.plan, guidance_branches=other.guidance_branches)
