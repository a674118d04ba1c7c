"""A plain, slow interpreter of a Policy on a generated model: branches called by hand, no graph.

    reference = Interpreter(case.model, policy, masks={"person": mask})
    reference(*args, **kwargs)          # one call of the denoising loop
    reference.decisions                 # {guidance branch: "CCSS"}

It is the meaning of the policy language, written to be read: what the compiled graph must do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from generated_models import ByHand, Transformer
from torch import Tensor

from synccache.policies import dsl

MAIN_STREAM = "video"  # the one with the most FLOPs: probes are read on it


@dataclass(frozen=True)
class Run:
    """Branches start..stop-1 of a stream, skipped together: from version start to version stop."""

    rule: int
    stream: str
    start: int
    stop: int


@dataclass
class RuleState:
    """What one rule remembers for one guidance branch."""

    previous: dict[dsl.Probe, Tensor] = field(default_factory=dict)
    last_computed: dict[dsl.Probe, Tensor] = field(default_factory=dict)
    sums: dict[dsl.Accumulated, float] = field(default_factory=dict)
    skips: int = 0
    anchors: list[tuple[int, dict[Run, Tensor]]] = field(default_factory=list)


class Interpreter:
    """Runs a policy on a generated model.

    absorbed: indices of live branches that a plan merged into the runs around them.
    """

    def __init__(
        self,
        model: Transformer,
        policy: dsl.Policy,
        *,
        masks: Mapping[str, Tensor] | None = None,
        absorbed: frozenset[int] = frozenset(),
        steps: int | None = None,
    ) -> None:
        self.model, self.policy, self.masks = model, policy, masks or {}
        self.absorbed, self.steps = absorbed, steps
        self.reset()

    def reset(self) -> None:
        self.step, self.branch = -1, 0
        self.first_timestep = self.timestep = None
        self.decisions: dict[int, str] = {}
        self.states: dict[tuple[int, int], RuleState] = {}
        self.leading: dict[int, bool] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._advance(float(args[1].reshape(-1)[0]))
        call = _Call(self, self.model.by_hand(*args, **kwargs))
        output = call.hand.finish(*(call.value(*place) for place in call.hand.outputs))
        skipped = [call.decide(rule) for rule in range(len(self.policy.rules))]
        call.remember(skipped)
        letter = "S" if any(skipped) else "C"
        self.decisions[self.branch] = self.decisions.get(self.branch, "") + letter
        return output

    def _advance(self, timestep: float) -> None:
        if self.timestep is None or timestep > self.timestep:
            self.reset()
            self.first_timestep = timestep
        if timestep == self.timestep:
            self.branch += 1
        else:
            self.step, self.branch = self.step + 1, 0
        self.timestep = timestep

    def counter(self, name: str, state: RuleState) -> float | None:
        assert self.first_timestep is not None
        noise = self.timestep / self.first_timestep
        left = None if self.steps is None else self.steps - 1 - self.step
        known = {"step": self.step, "skips": state.skips, "noise": noise, "progress": 1 - noise}
        return known.get(name, left)


class _Call:
    """One forward: stream values on demand, a decision for each rule when it is first needed."""

    def __init__(self, run: Interpreter, hand: ByHand) -> None:
        self.run, self.hand = run, hand
        self.numbers = _numbers(hand)
        self.skip = [_select(_plain(rule.skip), hand) for rule in run.policy.rules]
        self.runs = [r for i in range(len(self.skip)) for r in self._runs(i)]
        self.memo: dict[tuple[str, int], Tensor] = {}
        self.decided: dict[int, bool] = {}

    def state(self, rule: int, branch: int | None = None) -> RuleState:
        place = (rule, self.run.branch if branch is None else branch)
        return self.run.states.setdefault(place, RuleState())

    # ---- streams

    def value(self, stream: str, version: int) -> Tensor:
        """The stream after ``version`` of its branches, on the approximated stream if so decided."""
        place = (stream, version)
        if place not in self.memo:
            self.memo[place] = self._new_value(stream, version)
        return self.memo[place]

    def _new_value(self, stream: str, version: int) -> Tensor:
        if version == 0:
            return self.hand.roots[stream]
        for run in self.runs:
            inside = run.stream == stream and run.start < version <= run.stop
            if inside and self.decide(run.rule):
                assert version == run.stop, "the middle of a skipped run was read"
                return self.value(stream, run.start) + self._predicted(run)
        branch = self.hand.branches[self.numbers[stream][version - 1]]
        added = branch.add(*(self.value(*place) for place in branch.inputs))
        return branch.apply(self.value(stream, version - 1), added)

    def _runs(self, rule: int) -> list[Run]:
        """Maximal runs of one rule, split where somebody who is not skipped reads the stream."""
        chosen = self.skip[rule]
        if isinstance(self.run.policy.rules[rule].skip, dsl.Segments):
            chosen = chosen | self.run.absorbed
        outside = [b for i, b in enumerate(self.hand.branches) if i not in chosen]
        read = {*self.hand.outputs, *(place for b in outside for place in b.inputs)}
        runs = []
        for stream, members in self.numbers.items():
            start = None
            for version, index in enumerate([*members, None]):
                ends = index not in chosen or (stream, version) in read
                if start is not None and ends:
                    runs.append(Run(rule, stream, start, version))
                    start = None
                if start is None and index in chosen:
                    start = version
        return runs

    def _predicted(self, run: Run) -> Tensor:
        anchors = self.state(run.rule).anchors
        newest, held = anchors[-1]
        linear = isinstance(self.run.policy.rules[run.rule].reuse, dsl.Linear)
        if not linear or len(anchors) < 2:
            return held[run]
        older, before = anchors[-2]
        distance = (self.run.step - newest) / (newest - older)
        return held[run] + (held[run] - before[run]) * distance

    # ---- decisions

    def decide(self, rule: int) -> bool:
        """Whether this rule's branches are skipped in this call."""
        if rule not in self.decided:
            self.decided[rule] = self._new_decision(rule) and bool(self.state(rule).anchors)
        return self.decided[rule]

    def _new_decision(self, rule: int) -> bool:
        follows = self.run.policy.leader is dsl.FIRST_BRANCH and self.run.branch > 0
        if not follows:
            self.run.leading[rule] = self._measured_decision(rule)
        return self.run.leading[rule]

    def _measured_decision(self, rule: int) -> bool:
        when, state = self.run.policy.rules[rule].when, self.state(rule)
        signals = [part for part in _parts(when) if isinstance(part, dsl.Signal)]
        values = {signal: self._signal(signal, rule) for signal in signals}
        skipped = None not in values.values() and self._holds(when, values)
        skipped = skipped and bool(state.anchors)
        for probe in {s.probe for s in signals if isinstance(s, dsl.RelativeL1)}:
            state.previous[probe] = self._probe(probe)
            if not skipped:
                state.last_computed[probe] = self._probe(probe)
        for signal in (s for s in signals if isinstance(s, dsl.Accumulated)):
            state.sums[signal] = values[signal] or 0.0 if skipped else 0.0
        return skipped

    def _signal(self, signal: dsl.Signal, rule: int) -> float | None:
        state = self.state(rule)
        if isinstance(signal, dsl.Counter):
            return self.run.counter(signal.name, state)
        if isinstance(signal, dsl.RelativeL1):
            kept = state.previous if signal.since is dsl.PREVIOUS else state.last_computed
            before = kept.get(signal.probe)
            return None if before is None else self._change(signal, before)
        inner = self._signal(signal.of, rule)
        if inner is None:
            return None
        if isinstance(signal, dsl.Accumulated):
            return state.sums.get(signal, 0.0) + inner
        total = 0.0
        for coefficient in signal.coefficients:
            total = total * inner + coefficient
        return total

    def _change(self, signal: dsl.RelativeL1, before: Tensor) -> float:
        now, before = self._probe(signal.probe).float(), before.float()
        weights = torch.ones(now.shape[1])
        if signal.weight is not None and signal.weight.name in self.run.masks:
            mask = self.run.masks[signal.weight.name].float()
            weights = torch.zeros(now.shape[1])
            weights[: len(mask)] = 1 + (signal.weight.inside - 1) * mask
        change = ((now - before).abs().mean(-1) * weights).sum()
        return float(change / (before.abs().mean(-1) * weights).sum())

    def _probe(self, probe: dsl.Probe) -> Tensor:
        chosen = _select(probe.of, self.hand)
        mine = [v for v, i in enumerate(self.numbers[MAIN_STREAM]) if i in chosen]
        after = self.value(MAIN_STREAM, mine[-1] + 1)
        if isinstance(probe, dsl.Output):
            return after
        return after - self.value(MAIN_STREAM, mine[0])

    def _holds(self, when: dsl.Condition, values: Mapping[dsl.Signal, float | None]) -> bool:
        if isinstance(when, dsl.And):
            return self._holds(when.left, values) and self._holds(when.right, values)
        if isinstance(when, dsl.Or):
            return self._holds(when.left, values) or self._holds(when.right, values)
        if isinstance(when, dsl.Not):
            return not self._holds(when.of, values)
        if isinstance(when, dsl.Steps):
            return when.letters[min(self.run.step, len(when.letters) - 1)] == "S"
        value, limit = values[when.left], when.limit
        compared = {
            "<": value < limit,
            "<=": value <= limit,
            ">": value > limit,
            ">=": value >= limit,
        }
        return compared[when.operator]

    def remember(self, skipped: list[bool]) -> None:
        for rule, was_skipped in enumerate(skipped):
            state = self.state(rule)
            state.skips = state.skips + 1 if was_skipped else 0
            if not was_skipped:
                mine = [run for run in self.runs if run.rule == rule]
                held = {run: self._residual(run) for run in mine}
                state.anchors.append((self.run.step, held))

    def _residual(self, run: Run) -> Tensor:
        return self.value(run.stream, run.stop) - self.value(run.stream, run.start)


def _plain(skip: dsl.Selector | dsl.Segments) -> dsl.Selector:
    return skip.of if isinstance(skip, dsl.Segments) else skip


def _parts(item: Any) -> list[Any]:
    """A condition's parts, inner ones last."""
    names = ("left", "right", "of")
    inner = [getattr(item, name) for name in names if isinstance(item, dsl.Condition | dsl.Signal)
             and hasattr(item, name)]  # fmt: skip
    return [item, *(part for i in inner for part in _parts(i))]


def _numbers(hand: ByHand) -> dict[str, list[int]]:
    """Stream -> the indices of its branches."""
    found: dict[str, list[int]] = {}
    for index, branch in enumerate(hand.branches):
        found.setdefault(branch.stream, []).append(index)
    return found


def _select(selector: dsl.Selector, hand: ByHand) -> frozenset[int]:
    """The indices of the branches that a selector names."""
    every = list(enumerate(hand.branches))
    if isinstance(selector, dsl.AllBranches):
        return frozenset(i for i, _ in every)
    if isinstance(selector, dsl.Blocks):
        blocks = range(1 + max(b.block for b in hand.branches))[selector.start : selector.stop]
        return frozenset(i for i, b in every if b.block in blocks)
    if isinstance(selector, dsl.Reading):
        return frozenset(i for i, b in every if selector.tag in b.reads)
    if isinstance(selector, dsl.OfKind):
        return frozenset(i for i, b in every if b.kind is selector.kind)
    if isinstance(selector, dsl.After):
        last = max(_select(selector.of, hand), default=len(every))
        return frozenset(i for i, _ in every if i > last)
    left, right = _select(selector.left, hand), _select(selector.right, hand)
    if isinstance(selector, dsl.Either):
        return left | right
    return left & right if isinstance(selector, dsl.Both) else left - right
