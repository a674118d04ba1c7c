"""Gates: a rule's condition, evaluated once a step with at most one transfer from the device.

On a step, for the guidance branch that decides: the numbers of the condition are measured on the
device, stacked and read at once; ``policies.evaluate`` says what they mean; the references for later
steps are kept. A rule whose condition measures nothing has no probe and waits for no device.
"""

from __future__ import annotations

import numbers
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synccache.errors import StateError
from synccache.fx import metrics
from synccache.fx.gate_state import Anchors, GateState
from synccache.fx.match import RuleMatch
from synccache.fx.predict import predict
from synccache.fx.progress import Counters
from synccache.fx.runtime import Call
from synccache.fx.taps import Transform, anchor_probe, kept, kept_key, reads_prediction
from synccache.policies import dsl
from synccache.policies.evaluate import Now, lasting

_CALLERS = (dsl.Latent, dsl.Prediction, dsl.Given)  # tensors that the caller may write to


Ready = dict[tuple[dsl.Probe, Transform], Tensor]  # probes of one step as they are compared


class Seen(NamedTuple):
    """One number that a gate saw: of which guidance branch, on which step, of which signal."""

    branch: Hashable
    step: int
    signal: dsl.Signal
    value: float | Tensor | None  # None: undefined


class Gate(nn.Module):
    """Decides whether the regions of one rule are skipped in this call.

    ``forward(call, *probes)``: the values of ``matched.taps`` in order, two where the probe is a
    residual. ``settle(call, skipped, prediction)`` follows at the end of the forward where the rule
    watches the model's output.
    """

    def __init__(
        self, rule: int, matched: RuleMatch, runs: tuple[tuple[int, int], ...], copy: bool
    ) -> None:
        super().__init__()
        self.rule, self.matched, self.runs, self.copy = rule, matched, runs, copy
        self.condition = matched.rule.when
        self.signals = dsl.measured_signals(self.condition)
        self.lasting, self.kept = lasting(self.condition), kept(self.signals)
        self.sides = conjuncts(self.condition)
        probes = (getattr(s, n, None) for s in self.signals for n in ("probe", "of", "per"))
        self.given = tuple(p for p in (*self.signals, *probes) if isinstance(p, dsl.Given))
        self.siblings = isinstance(matched.rule.reuse, dsl.FromSibling)
        self.settles = reads_prediction(matched.rule)
        self.only_measures = isinstance(matched.rule.skip, dsl.Nothing)
        self.seen: list[Seen] = []  # of a rule that only measures
        self.anchor = (
            anchor_probe(matched.rule) if isinstance(matched.rule.reuse, dsl.TwoAnchor) else None
        )

    def forward(self, call: Call, *probes: Tensor) -> bool:
        if call.again is not None:
            return True
        if self.siblings and call.trajectory.leader == call.key:
            return False  # the others are predicted from this call
        state = call.state.gate(self.rule)
        can = call.meter is None and all(run in call.state.held for run in self.runs)
        can = can and not self.only_measures
        values = self._probe_values(probes)
        if call.leads:
            values |= self._given(call)
            skip = self._decide(call, state, values, can)
            call.trajectory.decided[self.rule] = skip
        else:
            wanted = call.trajectory.decided.get(self.rule, False)
            call.state.forced += wanted and not can
            skip = wanted and can
        if self.anchor is not None:
            self._two_anchors(call, state, values[self.anchor], skip)
        state.streak = state.streak + 1 if skip else 0
        state.total += skip
        return skip

    def _decide(
        self, call: Call, state: GateState, values: dict[dsl.Probe, Tensor], can: bool
    ) -> bool:
        ready: Ready = {}
        measured = self._measure(call, state, values, ready)
        now = Now(Counters(call.trajectory, state.streak, state.total), measured, state.memory)
        try:
            wanted = now.holds(self.condition) is True
        except StateError as problem:
            where = problem.where or self.matched.where
            raise StateError(problem.message, where=where, hint=problem.hint) from problem
        skip = wanted and can
        call.state.forced += wanted and not can
        if not wanted:
            _note_blocked(now, self.sides, state)
        now.finish(self.lasting, skipped=skip)
        if self.only_measures:
            at = call.trajectory.step
            signals = [p for p in dsl.parts(self.condition) if isinstance(p, dsl.Signal)]
            early = [s for s in dict.fromkeys(signals) if not dsl.late(s)]
            self.seen += [Seen(call.key, at, s, now.value(s)) for s in early]
        self._remember(call, state, values, skip, ready)
        return skip

    # ---- probes

    def _probe_values(self, probes: tuple[Tensor, ...]) -> dict[dsl.Probe, Tensor]:
        values, rest = {}, list(probes)
        for probe, taps in self.matched.taps.items():
            after = rest.pop(0)
            values[probe] = after - rest.pop(0) if taps.before is not None else after
        return values

    def _given(self, call: Call) -> dict[dsl.Probe, Tensor]:
        return {given: _as_tensor(given, call) for given in self.given}

    # ---- numbers

    def _measure(
        self, call: Call, state: GateState, values: dict[dsl.Probe, Tensor], ready: Ready
    ) -> dict[dsl.Signal, float | None]:
        """The numbers of this decision: one transfer for all of them."""
        found: dict[dsl.Signal, float | None] = dict.fromkeys(self.signals)
        pending: dict[dsl.Signal, tuple[Tensor, ...]] = {}
        for signal in self.signals:
            pending[signal] = self._on_device(signal, call, state, values, ready)
        parts_of = [n for parts in pending.values() for n in parts]
        if not parts_of:
            return found
        call.syncs += 1
        device = next((n.device for n in parts_of if n.device.type != "cpu"), parts_of[0].device)
        read = torch.stack([n.to(device, torch.float32) for n in parts_of]).tolist()
        for signal, parts in pending.items():
            mine, read = read[: len(parts)], read[len(parts) :]
            if len(mine) == 2:  # a gain: one over the other
                found[signal] = mine[0] / mine[1] if mine[1] else None
            elif mine:
                found[signal] = mine[0]
        return found

    def _on_device(
        self, signal: dsl.Signal, call: Call, state: GateState, values: dict[dsl.Probe, Tensor],
        ready: Ready,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The numbers that a signal is made of; none where it is undefined."""
        if isinstance(signal, dsl.Given):
            return (_one_number(signal, values[signal]),)
        if isinstance(signal, dsl.Gain):
            return state.gains.get(signal, ())
        if dsl.late(signal):
            step, value = state.late.get(signal, (-1, None))
            return (value,) if value is not None and step == call.trajectory.step - 1 else ()
        if isinstance(signal, dsl.MeanSize):
            value = state.references.get((signal.probe, signal.since, ()))
            return () if value is None else (metrics.mean_size(value),)
        if isinstance(signal, dsl.SizeRatio):
            before, now = (
                state.references.get((signal.probe, signal.since, ())),
                values[signal.probe],
            )
            if before is None or before.shape != now.shape:
                return ()
            return (metrics.size_ratio(now, before),)
        assert isinstance(signal, (dsl.RelativeL1, dsl.MeanChange))
        return self._change(signal, call, state, values[signal.probe], ready)

    def _change(
        self, signal: dsl.RelativeL1 | dsl.MeanChange, call: Call, state: GateState, now: Tensor,
        ready: Ready,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        reference = self._reference(signal, call, state)
        now = _prepared(signal.probe, now, dsl.weights_of(signal), call, ready)
        if reference is None or reference.shape != now.shape:
            return ()
        masks = [w for w in dsl.weights_of(signal) if isinstance(w, dsl.MaskWeight)]
        tokens = None
        for weight in masks:
            mask = call.masks.get(weight.name)
            one = metrics.mask_weights(weight, mask, call.state.writes, now)
            tokens = one if tokens is None else tokens if one is None else tokens * one
        return (metrics.change(signal, now, reference, tokens),)

    def _reference(
        self, signal: dsl.RelativeL1 | dsl.MeanChange, call: Call, state: GateState
    ) -> Tensor | None:
        key = kept_key(signal)
        if not isinstance(signal.since, dsl.Forecast):
            return state.references.get(key)
        anchors = state.anchors.get(key)
        if anchors is None:
            return None
        return predict(signal.since.predictor, anchors.steps, anchors.tensors, call.trajectory.step)

    # ---- memory

    def _remember(
        self,
        call: Call,
        state: GateState,
        values: dict[dsl.Probe, Tensor],
        skip: bool,
        ready: Ready,
    ) -> None:
        if not skip:
            for signal in self.signals:
                if isinstance(signal, dsl.Gain):
                    self._learn(signal, call, state, values)
        for probe, since, weights in self.kept:
            if probe in values:
                self._keep(call, state, probe, since, weights, values[probe], skip, ready)

    def _keep(
        self, call: Call, state: GateState, probe: dsl.Probe, since: Any, weights: Transform,
        value: Tensor, skip: bool, prepared: Ready,
    ) -> None:  # fmt: skip
        if skip and since is not dsl.PREVIOUS:
            return
        ready = _prepared(probe, value, weights, call, prepared).detach()
        foreign = isinstance(probe, _CALLERS) or self.copy and not isinstance(probe, dsl.Residual)
        if foreign and ready.untyped_storage()._cdata == value.untyped_storage()._cdata:
            ready = ready.clone()
        if isinstance(since, dsl.Forecast):
            anchors = state.anchors.setdefault((probe, since, weights), Anchors())
            anchors.push(call.trajectory.step, ready, since.predictor.history)
        else:
            state.references[probe, since, weights] = ready

    def _learn(
        self, signal: dsl.Gain, call: Call, state: GateState, values: dict[dsl.Probe, Tensor]
    ) -> None:
        """A gain's numbers on a computed step; what is known only after it stays in the call."""
        if dsl.prediction in (signal.of, signal.per):
            for probe in (signal.of, signal.per):
                if probe in values:
                    call.changes[self.rule, probe] = _moved(state, probe, values[probe])
            return
        over, under = (_moved(state, p, values[p]) for p in (signal.of, signal.per))
        if over is not None and under is not None:
            state.gains[signal] = (over, under)

    def settle(self, call: Call, skipped: bool, prediction: Tensor) -> None:
        """Measures what is known only after the step, and keeps the model's output."""
        if not call.leads:
            return
        state, ready = call.state.gate(self.rule), Ready()
        for signal in self.signals:
            if isinstance(signal, dsl.Gain) and not skipped:
                changes = [
                    _moved(state, p, prediction)
                    if isinstance(p, dsl.Prediction)
                    else call.changes[self.rule, p]
                    for p in (signal.of, signal.per)
                ]
                if changes[0] is not None and changes[1] is not None:
                    state.gains[signal] = (changes[0], changes[1])
            elif dsl.late(signal) and isinstance(signal, (dsl.RelativeL1, dsl.MeanChange)):
                for value in self._change(signal, call, state, prediction, ready):
                    state.late[signal] = (call.trajectory.step, value)
                    if self.only_measures:
                        self.seen.append(Seen(call.key, call.trajectory.step, signal, value))
        for probe, since, weights in self.kept:
            if isinstance(probe, dsl.Prediction):
                self._keep(call, state, probe, since, weights, prediction, skipped, ready)

    def _two_anchors(self, call: Call, state: GateState, now: Tensor, skip: bool) -> None:
        """On a skipped step how far the probe is, on the device; on a computed one an anchor."""
        anchors = state.anchors.setdefault((self.anchor, None, ()), Anchors())
        if not skip:
            anchors.push(call.trajectory.step, now.detach(), 2)
        elif len(anchors.tensors) == 2:
            ratio = metrics.two_anchor_ratio(now, *anchors.tensors)
            call.ratios.update({region: ratio for region, _ in self.runs})


class Settle(nn.Module):
    """The line behind the model's output that lets a gate see it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.__dict__["gate"] = gate  # not a child: the graph calls it by its own name

    def forward(self, call: Call, skipped: bool, prediction: Tensor) -> None:
        self.__dict__["gate"].settle(call, skipped, prediction)


def _moved(state: GateState, probe: dsl.Probe, now: Tensor) -> Tensor | None:
    """``mean|now - its value on the last computed step|``; None before there is one."""
    before = state.references.get((probe, dsl.LAST_COMPUTED, ()))
    if before is None or before.shape != now.shape:
        return None
    return metrics.mean_size(now.float() - before.float())


def _prepared(
    probe: dsl.Probe, value: Tensor, weights: Transform, call: Call, ready: Ready
) -> Tensor:
    """The probe as it is compared and kept; the noise level is read only where a filter needs it."""
    changes = tuple(w for w in weights if isinstance(w, (dsl.ChannelStride, dsl.Spectral)))
    if not changes:
        return value
    if (probe, changes) not in ready:
        spectral = any(isinstance(w, dsl.Spectral) for w in changes)
        noise = call.trajectory.noise if spectral else 0.0
        ready[probe, changes] = metrics.prepared(value, changes, noise)
    return ready[probe, changes]


def _as_tensor(probe: dsl.Given, call: Call) -> Tensor:
    if probe.name not in call.given:
        raise StateError(
            f"the policy reads given({probe.name!r}), but nothing of this name was given for step "
            f"{call.trajectory.step}.",
            hint=f"Call compiled.give({probe.name}=...) before the first call of every step.",
        )
    value = call.given[probe.name]
    if isinstance(value, bool) or not isinstance(value, (Tensor, numbers.Real)):
        raise StateError(f"give({probe.name}=...) takes a number or a tensor, got {value!r:.80}.")
    return torch.as_tensor(value)


def _one_number(probe: dsl.Given, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise StateError(
            f"the policy compares given({probe.name!r}) with a number, but {value.numel()} were given.",
            hint="Give one number, or measure a change: relative_l1(given(...), since=PREVIOUS).",
        )
    return value.reshape(())


def _note_blocked(now: Now, sides: tuple[dsl.Condition, ...], state: GateState) -> None:
    """Counts, for each side of the outermost ``&``, the steps on which it stood in the way."""
    for part in sides:
        if now.holds(part) is True:
            continue
        value = now.value(part.left) if isinstance(part, dsl.Compare) else None
        count, low, high = state.blocked.get(part, (0, float("inf"), float("-inf")))
        if value is not None:
            low, high = min(low, value), max(high, value)
        state.blocked[part] = (count + 1, low, high)


def conjuncts(condition: dsl.Condition) -> tuple[dsl.Condition, ...]:
    """The sides of the outermost ``&``, in reading order."""
    if isinstance(condition, dsl.And):
        return (*conjuncts(condition.left), *conjuncts(condition.right))
    return (condition,)


__all__ = ["Gate", "Seen", "Settle", "conjuncts"]
