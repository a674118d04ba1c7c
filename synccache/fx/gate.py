"""Gates: a rule's condition, evaluated once a step on the device with one transfer to the host."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from synccache.errors import StateError
from synccache.fx.match import RuleMatch
from synccache.fx.runtime import BranchState, Call
from synccache.policies import dsl

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Gate(nn.Module):
    """Decides whether the regions of one rule are skipped in this call.

    ``forward(call, *probes)``: for each probe of the rule the stream after it, and the stream
    before it where the probe is a residual. Device syncs: one where the condition measures
    something, none otherwise (a step mask, an interval, a counter).
    """

    def __init__(
        self, rule: int, matched: RuleMatch, runs: tuple[tuple[int, int], ...], copy: bool
    ) -> None:
        super().__init__()
        self.rule, self.matched, self.runs, self.copy = rule, matched, runs, copy
        self.condition = matched.rule.when
        self.signals = dsl.measured_signals(self.condition)

    def forward(self, call: Call, *probes: Tensor) -> bool:
        state = call.state
        can = call.meter is None and all(run in state.held for run in self.runs)
        if call.leads:
            skip = self._decide(call, probes, can)
            call.trajectory.decided[self.rule] = skip
        else:
            skip = call.trajectory.decided.get(self.rule, False)
            state.forced += skip and not can
            skip = skip and can
        state.streaks[self.rule] = state.streaks.get(self.rule, 0) + 1 if skip else 0
        return skip

    def _decide(self, call: Call, probes: tuple[Tensor, ...], can: bool) -> bool:
        state = call.state
        values = self._probe_values(probes)
        base = self._measure(call, values)
        known: dict[dsl.Signal, float | None] = dict(base)
        for signal in self.signals:
            self._derive(signal, known, state)
        wanted = all(known[s] is not None for s in self.signals)
        wanted = wanted and self._holds(self.condition, known, call)
        skip = wanted and can
        state.forced += wanted and not can
        if not skip:
            for signal in self.signals:
                if isinstance(signal, dsl.Accumulated):
                    state.sums[self.rule, signal] = 0.0
        self._remember(state, values, base, skip)
        return skip

    def _probe_values(self, probes: tuple[Tensor, ...]) -> dict[dsl.Probe, Tensor]:
        values, rest = {}, list(probes)
        for probe, taps in self.matched.taps.items():
            after = rest.pop(0)
            values[probe] = after - rest.pop(0) if taps.before is not None else after
        return values

    def _measure(
        self, call: Call, values: dict[dsl.Probe, Tensor]
    ) -> dict[dsl.Signal, float | None]:
        wanted = [s for s in self.signals if isinstance(s, dsl.RelativeL1)]
        wanted += [s for s in map(_innermost, self.signals) if s not in wanted]
        wanted = list(dict.fromkeys(wanted))
        found: dict[dsl.Signal, float | None] = dict.fromkeys(wanted)
        ready, numbers = [], []
        for signal in wanted:
            reference = call.state.references.get((self.rule, signal.probe, signal.since))
            now = values[signal.probe]
            if reference is not None and reference.shape == now.shape:
                ready.append(signal)
                numbers.append(relative_l1(now, reference, _weights(signal.weight, now, call)))
        if ready:
            call.syncs += 1
            found.update(zip(ready, torch.stack(numbers).tolist()))
        return found

    def _derive(
        self, signal: dsl.Signal, known: dict[dsl.Signal, float | None], state: BranchState
    ) -> float | None:
        """The value of a signal from those it is made of; sums advance once a step."""
        if signal in known:
            return known[signal]
        inner = self._derive(signal.of, known, state)  # type: ignore[attr-defined]
        if isinstance(signal, dsl.Polynomial):
            value = None if inner is None else _polynomial(signal.coefficients, inner)
        else:
            total = state.sums.get((self.rule, signal), 0.0) + (inner or 0.0)
            state.sums[self.rule, signal] = total
            value = None if inner is None else total
        known[signal] = value
        return value

    def _remember(self, state: BranchState, values: dict[dsl.Probe, Tensor],
                  base: dict[dsl.Signal, float | None], skip: bool) -> None:  # fmt: skip
        for signal in base:
            assert isinstance(signal, dsl.RelativeL1)
            if signal.since is dsl.PREVIOUS or not skip:
                value = values[signal.probe].detach()
                fresh = isinstance(signal.probe, dsl.Residual)
                state.references[self.rule, signal.probe, signal.since] = (
                    value.clone() if self.copy and not fresh else value
                )

    def _holds(
        self, condition: dsl.Condition, known: dict[dsl.Signal, float | None], call: Call
    ) -> bool:
        if isinstance(condition, dsl.Compare):
            left = condition.left
            value = self._counter(left.name, call) if isinstance(left, dsl.Counter) else known[left]
            return _COMPARE[condition.operator](value, condition.limit)  # type: ignore[arg-type]
        if isinstance(condition, dsl.Steps):
            letters = condition.letters
            return letters[min(call.trajectory.step, len(letters) - 1)] == "S"
        if isinstance(condition, dsl.And):
            return self._holds(condition.left, known, call) and self._holds(
                condition.right, known, call
            )
        if isinstance(condition, dsl.Or):
            return self._holds(condition.left, known, call) or self._holds(
                condition.right, known, call
            )
        if isinstance(condition, dsl.Not):
            return not self._holds(condition.of, known, call)
        raise StateError(f"no rule says when {condition!r} holds.")

    def _counter(self, name: str, call: Call) -> float:
        trajectory = call.trajectory
        if name == "step":
            return trajectory.step
        if name == "skips":
            return call.state.streaks.get(self.rule, 0)
        if name == "noise":
            return trajectory.relative_noise
        if name == "progress":
            return 1.0 - trajectory.relative_noise
        if trajectory.steps is None:
            raise StateError(
                "the policy asks how many steps are left, but their number is not known.",
                hint="Call compiled.begin(steps=...) before the first step.",
            )
        return trajectory.steps - 1 - trajectory.step


def _innermost(signal: dsl.Signal) -> Any:
    while not isinstance(signal, dsl.RelativeL1):
        signal = signal.of  # type: ignore[attr-defined]
    return signal


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def relative_l1(now: Tensor, reference: Tensor, weights: Tensor | None) -> Tensor:
    """``sum w |now - reference| / sum w |reference|`` as a 0-d float32 tensor.

    Shapes: now, reference [batch, tokens, channels]; weights [batch or 1, tokens].
    """
    change, size = now.float() - reference.float(), reference.float()
    if weights is None:
        return change.abs().sum() / size.abs().sum()
    by_token = torch.linalg.vector_norm(change, ord=1, dim=-1).flatten(1)
    return (by_token * weights).sum() / (
        torch.linalg.vector_norm(size, ord=1, dim=-1).flatten(1) * weights
    ).sum()


def _weights(weight: dsl.MaskWeight | None, now: Tensor, call: Call) -> Tensor | None:
    """Token weights of a metric, or None for uniform ones (no mask is known yet)."""
    if weight is None:
        return None
    tokens = now.flatten(1, -2).shape[1]
    mask = call.masks.get(weight.name)
    if mask is None:
        written = call.state.writes
        if written is None:
            return None
        inside = written / written.amax(dim=1, keepdim=True).clamp_min(1e-12)
        return 1.0 + (weight.inside - 1.0) * inside
    mask = mask.to(device=now.device, dtype=torch.float32)
    weights = 1.0 + (weight.inside - 1.0) * mask
    if mask.shape[-1] < tokens:
        weights = torch.nn.functional.pad(weights, (0, tokens - mask.shape[-1]))
    return weights


__all__ = ["Gate", "relative_l1"]
