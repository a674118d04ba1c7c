"""A plain, slow interpreter of a Policy on a generated model: branches called by hand, no graph.

    reference = Interpreter(case.model, policy, masks={"person": mask})
    reference(*args, **kwargs)          # one call of the denoising loop
    reference.decisions                 # {guidance branch: "CCSS"}
    reference.held                      # what is kept for the next step, by rule and place

It is the meaning of the policy language, written to be read: what the compiled graph must do.
Signals are in reference_signals.py, predictors in reference_predictors.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from generated_models import ByHand, Transformer
from reference_predictors import Kept, from_sibling, predicted
from reference_selection import Run, numbers_of, runs, select
from reference_signals import Memory, Moment, late, parts, probes_of
from reference_tokens import TokenMemory, chosen, cluster, draws, refreshed
from torch import Tensor

from synccache.policies import dsl

MAIN_STREAM = "video"  # the one with the most FLOPs: probes are read on it

Place = Run | int | str  # a run, a branch held for itself, or the network


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
        self.given: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self.step, self.branch = -1, 0
        self.first_timestep = self.timestep = None
        self.decisions: dict[int, str] = {}
        self.memories: dict[tuple[int, int], Memory] = {}
        self.histories: dict[tuple[int, int], dict[Place, list[Kept]]] = {}
        self.anchors: dict[tuple[int, int], list[Tensor]] = {}
        self.tokens: dict[tuple[int, int], TokenMemory] = {}
        self.sibling: tuple[Tensor, ...] = ()  # the outputs of this step's first guidance branch
        self.gains: dict[tuple[int, int, int], list[float]] = {}
        self.leading: dict[int, bool] = {}

    def give(self, **values: Any) -> None:
        self.given = values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._advance(float(args[1].reshape(-1)[0]))
        call = _Call(self, self.model.by_hand(*args, **kwargs))
        self.order = call.numbers[MAIN_STREAM]  # the indices of the main stream's branches
        output = call.output()
        skipped = [call.decide(rule) for rule in range(len(self.policy.rules))]
        call.remember(skipped, output)
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

    def held(self, branch: int) -> dict[Place, list[Tensor]]:
        """By place the tensors that later steps of this guidance branch can need, oldest first."""
        found = {}
        for rule, rule_of in enumerate(self.policy.rules):
            for place, history in self.histories.get((rule, branch), {}).items():
                found[place] = [kept.tensor for kept in _needed(rule_of.reuse, history)]
        return found


def _needed(predictor: Any, history: Sequence[Kept]) -> list[Kept]:
    """The newest computed values and, where it uses them, the newest values of any kind."""
    recent = predictor.recent
    computed = [kept for kept in history if not kept.forecast][-(predictor.history - recent) :]
    chosen = [*(computed if predictor.history > recent else []), *history[-recent:]]
    return [kept for kept in history if kept in chosen] if recent else computed


class _Call:
    """One forward: stream values on demand, a decision for each rule when it is first needed."""

    def __init__(self, run: Interpreter, hand: ByHand) -> None:
        self.run, self.hand = run, hand
        self.numbers = numbers_of(hand)
        self.skip = [self._chosen(rule) for rule in run.policy.rules]
        self.runs = [
            r
            for i, rule in enumerate(run.policy.rules)
            if not isinstance(rule.skip, dsl.Modules | dsl.Network) and not _whole(rule.skip)
            for r in runs(i, rule.skip, self.skip[i], hand)
        ]
        self.memo: dict[tuple[str, int], Tensor] = {}
        self.modules: dict[int, Tensor] = {}
        self.decided: dict[int, bool] = {}
        self.moments: dict[int, Moment] = {}

    def _chosen(self, rule: dsl.Rule) -> frozenset[int]:
        chosen = select(dsl.selector_of(rule.skip), self.hand)
        return chosen | self.run.absorbed if isinstance(rule.skip, dsl.Segments) else chosen

    def memory(self, rule: int) -> Memory:
        return self.run.memories.setdefault((rule, self.run.branch), Memory())

    def history(self, rule: int) -> dict[Place, list[Kept]]:
        return self.run.histories.setdefault((rule, self.run.branch), {})

    # ---- the forward

    def output(self) -> Any:
        for i, rule in enumerate(self.run.policy.rules):
            if _whole(rule.skip) and self.decide(i):
                if isinstance(rule.reuse, dsl.FromSibling):
                    return self._from_sibling(i, rule.reuse)
                if not isinstance(rule.skip, dsl.Values):
                    return self.hand.latent + self._predicted(i, "network 0")
                found = [self._predicted(i, place) for place in self.history(i)]
                return tuple(found) if len(found) > 1 else found[0]
        return self.hand.finish(*(self.value(*place) for place in self.hand.outputs))

    def _from_sibling(self, rule: int, how: dsl.FromSibling) -> Any:
        found = []
        for place, other in enumerate(self.run.sibling):
            difference = self.history(rule)[f"network {place}"][-1].tensor
            gains = self.run.gains.setdefault((rule, self.run.branch, place), [1.0, 1.0])
            found.append(from_sibling(how, other, difference, gains, self.run.timestep))
        return tuple(found) if len(found) > 1 else found[0]

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
            if isinstance(self.run.policy.rules[run.rule].skip, dsl.Whole) and version < run.stop:
                continue  # a probe or another reader: computed beside what is held
            if inside and self.decide(run.rule):
                assert version == run.stop, "the middle of a skipped run was read"
                held = self._predicted(run.rule, run)
                if isinstance(self.run.policy.rules[run.rule].skip, dsl.Values):
                    return held
                return self.value(stream, run.start) + held
        index = self.numbers[stream][version - 1]
        branch = self.hand.branches[index]
        return branch.apply(self.value(stream, version - 1), branch.gate(self.module(index)))

    def module(self, index: int) -> Tensor:
        """What a branch computes, before its gate: predicted where its rule holds it and skips."""
        if index not in self.modules:
            self.modules[index] = self._new_module(index)
        return self.modules[index]

    def _new_module(self, index: int) -> Tensor:
        branch = self.hand.branches[index]
        for i, rule in enumerate(self.run.policy.rules):
            if isinstance(rule.skip, dsl.Modules) and index in self.skip[i] and self.decide(i):
                if rule.tokens is not None and branch.kind is dsl.MLP:
                    self._refresh(i, index)
                return self._predicted(i, index)
        return branch.module(*(self.value(*place) for place in branch.inputs))

    def _refresh(self, rule: int, index: int) -> None:
        """Some tokens of a skipped branch computed, and put into what is held."""
        tokens, memory = self.run.policy.rules[rule].tokens, self.tokens(rule)
        if self.memory(rule).streak % getattr(tokens, "every", 1):
            return
        history, branch = self.history(rule)[index], self.hand.branches[index]
        newest, region = history[-1].tensor, sorted(self.skip[rule]).index(index)
        keys = draws(tokens, self.run.step, region, (newest.shape[0], newest.shape[1]))
        picked = chosen(memory, tokens, index, newest, keys)
        computed = branch.module(*(self.value(*place) for place in branch.inputs))
        history[:] = refreshed(memory, tokens, history, picked, computed)

    def tokens(self, rule: int) -> TokenMemory:
        return self.run.tokens.setdefault((rule, self.run.branch), TokenMemory())

    def _predicted(self, rule: int, place: Place) -> Tensor:
        history, at = self.history(rule)[place], self.run.step
        predictor = self.run.policy.rules[rule].reuse
        found = predicted(predictor, history, at, self._ratio(rule))
        if predictor.recent:
            history.append(Kept(at, found, forecast=True))
        return found

    def _ratio(self, rule: int) -> float | None:
        """How far the probe's residual has gone: from the older anchor, over the newer's distance."""
        anchors = self.run.anchors.get((rule, self.run.branch), [])
        if not isinstance(self.run.policy.rules[rule].reuse, dsl.TwoAnchor) or len(anchors) < 2:
            return None
        older, newer = anchors[-2:]
        moved = (self.probe(_anchor_probe(self.run.policy.rules[rule])) - older).abs().mean()
        span = (newer - older).abs().mean()
        return float(moved / span) if span > 0 else 1.0

    # ---- decisions

    def decide(self, rule: int) -> bool:
        """Whether this rule's branches are skipped in this call."""
        if rule not in self.decided:
            follows = self.run.policy.leader is dsl.FIRST_BRANCH and self.run.branch > 0
            can = bool(self.history(rule))
            if not follows:
                self.run.leading[rule] = self._measured_decision(rule, can)
            self.decided[rule] = self.run.leading[rule] and can
        return self.decided[rule]

    def _measured_decision(self, rule: int, can: bool) -> bool:
        when = self.run.policy.rules[rule].when
        moment = self.moments[rule] = self._moment(rule)
        skipped = can and moment.truth(when) is True
        moment.close(when, probes_of(when), skipped=skipped)
        return skipped

    def _moment(self, rule: int) -> Moment:
        run, memory = self.run, self.memory(rule)
        assert run.first_timestep is not None
        noise = run.timestep / run.first_timestep
        counters = {
            "step": run.step,
            "skips": memory.streak,
            "skipped": memory.total,
            "noise": noise,
            "progress": 1 - noise,
            "timestep": run.timestep,
            "steps": run.steps,
            "steps_left": None if run.steps is None else run.steps - 1 - run.step,
        }
        return Moment(memory, run.step, run.timestep, counters, self.probe, run.masks, run.given)

    def probe(self, probe: Any) -> Tensor:
        name = type(probe).__name__
        if name == "Latent":
            return self.hand.latent
        if name == "TimeEmbedding":
            return self.hand.time
        if name == "Given":
            return self.run.given[probe.name]
        mine = self._on_main_stream(probe.of)
        if name == "Entering":
            return self.value(MAIN_STREAM, mine[0])
        first = self.numbers[MAIN_STREAM][mine[0]]
        if name == "Modulated":
            return self.hand.branches[first].enter(self.value(MAIN_STREAM, mine[0]))
        if name == "ModuleOutput":
            return self.module(first)
        after = self.value(MAIN_STREAM, mine[-1] + 1)
        return after if name == "Output" else after - self.value(MAIN_STREAM, mine[0])

    def _on_main_stream(self, selector: dsl.Selector) -> list[int]:
        """The versions of the main stream before each of the selector's branches on it."""
        chosen = select(selector, self.hand)
        return [v for v, i in enumerate(self.numbers[MAIN_STREAM]) if i in chosen]

    # ---- after the step

    def remember(self, skipped: list[bool], output: Any) -> None:
        video = output[0] if isinstance(output, tuple) else output
        rules = self.run.policy.rules
        bypassed = any(s and _whole(r.skip) for s, r in zip(skipped, rules, strict=True))
        for rule, was_skipped in enumerate(skipped):
            if bypassed and not _whole(rules[rule].skip):
                continue  # nothing inside the network ran
            if rule in self.moments:
                self._settle(rule, was_skipped, video)
            memory = self.memory(rule)
            memory.streak = memory.streak + 1 if was_skipped else 0
            memory.total += was_skipped
            if not was_skipped:
                self._keep(rule, output if isinstance(output, tuple) else (output,))

    def _settle(self, rule: int, skipped: bool, video: Tensor) -> None:
        when, moment = self.run.policy.rules[rule].when, self.moments[rule]
        errors = {
            part: self._exact_error(part)
            for part in parts(when)
            if type(part).__name__ == "ExactError"
            and skipped
            and moment.memory.streak >= part.after
        }
        moment.settle(when, video, errors)
        if any(isinstance(p, _PREDICTION) for part in parts(when) for p in _probes(part)):
            moment.see(dsl.prediction, video, skipped=skipped)

    def _exact_error(self, signal: Any) -> float:
        """The stream that the step uses behind ``signal.of``, against running these branches on it."""
        mine = self._on_main_stream(signal.of)
        shadow: dict[tuple[str, int], Tensor] = {}
        for index in sorted(select(signal.of, self.hand)):
            branch = self.hand.branches[index]
            version = self.numbers[branch.stream].index(index)
            before, *inputs = (
                shadow[place] if place in shadow else self.value(*place)
                for place in ((branch.stream, version), *branch.inputs)
            )
            shadow[branch.stream, version + 1] = branch.apply(before, branch.add(*inputs))
        place = (MAIN_STREAM, mine[-1] + 1)
        draft, exact = self.value(*place).float(), shadow[place].float()
        assert late(signal)
        size = (exact if signal.denominator.name == "NEW" else draft).abs()
        change = (draft - exact).abs()
        if signal.norm.name == "MEAN_OF_RATIOS":
            return float((change / (size + signal.eps)).mean())
        return float(change.mean() / (size.mean() + signal.eps))

    def _keep(self, rule: int, outputs: tuple[Tensor, ...]) -> None:
        skip, history = self.run.policy.rules[rule].skip, self.history(rule)
        tokens = self.run.policy.rules[rule].tokens
        if tokens is not None:
            self.tokens(rule).ages.clear()
            if isinstance(tokens, dsl.OnePerCluster):
                last = self._on_main_stream(tokens.on)[-1] + 1
                cluster(self.tokens(rule), tokens, self.value(MAIN_STREAM, last))
        if isinstance(self.run.policy.rules[rule].reuse, dsl.TwoAnchor):
            anchor = self.probe(_anchor_probe(self.run.policy.rules[rule]))
            self.run.anchors.setdefault((rule, self.run.branch), []).append(anchor)
        found: dict[Place, Tensor] = {}
        if isinstance(self.run.policy.rules[rule].reuse, dsl.FromSibling):
            if self.run.branch == 0:
                self.run.sibling = tuple(output.clone() for output in outputs)
                return
            for place, (output, other) in enumerate(zip(outputs, self.run.sibling, strict=True)):
                found[f"network {place}"] = output - other
                self.run.gains[rule, self.run.branch, place] = [1.0, 1.0]
        elif _whole(skip):
            value = isinstance(skip, dsl.Values)
            for i, output in enumerate(outputs):
                found[f"network {i}"] = output if value else output - self.hand.latent
        elif isinstance(skip, dsl.Modules):
            found.update({index: self.module(index) for index in self.skip[rule]})
        else:
            found.update({r: self._held(r, skip) for r in self.runs if r.rule == rule})
        for place, value in found.items():
            history.setdefault(place, []).append(Kept(self.run.step, value.clone()))

    def _held(self, run: Run, skip: Any) -> Tensor:
        after = self.value(run.stream, run.stop)
        return after if isinstance(skip, dsl.Values) else after - self.value(run.stream, run.start)


_PREDICTION = getattr(dsl, "Prediction", ())


def _probes(part: Any) -> list[Any]:
    return [getattr(part, name, None) for name in ("probe", "of", "per")]


def _whole(skip: Any) -> bool:
    """Whether the network itself is bypassed."""
    return isinstance(skip, dsl.Network) or isinstance(getattr(skip, "of", None), dsl.Network)


def _anchor_probe(rule: dsl.Rule) -> dsl.Residual:
    """The residual on which two anchors are measured: that of the first stream probed."""
    probes = [p for p in probes_of(rule.when) if isinstance(p, dsl.Output | dsl.Residual)]
    return dsl.Residual(probes[0].of)
