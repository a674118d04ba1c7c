"""What signals and conditions mean, written from the language's docstrings, step by step.

    moment = Moment(world, memory, step=3, ...)
    moment.truth(rule.when)              # True, False or None (undefined)
    moment.close(skipped=True)           # what the next step needs

Whole histories are kept and filtered when they are asked for; the library keeps only what it needs.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from reference_predictors import Kept, predicted
from torch import Tensor

from synccache.policies import dsl

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Seen:
    """A probe on one step: its value, the timestep, and whether the rule skipped then."""

    step: int
    tensor: Tensor
    timestep: float
    skipped: bool


@dataclass
class Memory:
    """What one rule remembers on one guidance branch."""

    probes: dict[Any, list[Seen]] = field(default_factory=dict)
    sums: dict[Any, float] = field(default_factory=dict)
    products: dict[Any, float] = field(default_factory=dict)
    before: dict[Any, tuple[int, float | None]] = field(default_factory=dict)
    streak: int = 0
    total: int = 0


@dataclass
class Moment:
    """One decision of one rule: numbers known now, from probes and from the memory.

    probe: the value of a probe on this step; counters: what the run counts; masks: token weights.
    """

    memory: Memory
    step: int
    timestep: float
    counters: Mapping[str, float | None]
    probe: Callable[[Any], Tensor]
    masks: Mapping[str, Tensor]
    given: Mapping[str, Any] = field(default_factory=dict)
    known: dict[Any, float | None] = field(default_factory=dict)
    products: dict[Any, float] = field(default_factory=dict)

    # ---- conditions

    def truth(self, when: Any) -> bool | None:
        name = type(when).__name__
        if name in ("And", "Or"):
            sides = (self.truth(when.left), self.truth(when.right))
            decisive = name == "Or"
            return decisive if decisive in sides else None if None in sides else not decisive
        if name == "Not":
            inner = self.truth(when.of)
            return None if inner is None else not inner
        if name == "Steps":
            return when.letters[min(self.step, len(when.letters) - 1)] == "S"
        if name == "Every":
            value = self.number(when.of)
            return None if value is None else (value - when.offset) % when.n == 0
        if name == "Between":
            value = self.number(when.of)
            return None if value is None else when.low < value < when.high
        left, right = self.number(when.left), self._side(when.limit)
        return None if left is None or right is None else COMPARE[when.operator](left, right)

    def _side(self, value: Any) -> float | None:
        return self.number(value) if isinstance(value, dsl.Signal) else value

    # ---- signals

    def number(self, signal: Any) -> float | None:
        if signal not in self.known:
            value = getattr(self, f"_{type(signal).__name__.lower()}")(signal)
            self.known[signal] = None if value is None or math.isnan(value) else value
        return self.known[signal]

    def _counter(self, of: Any) -> float | None:
        return self.counters[of.name]

    def _given(self, of: Any) -> float:
        return float(self.given[of.name])

    def _table(self, of: Any) -> float:
        steps, last = self.counters["steps"], len(of.values) - 1
        assert steps is not None
        return of.values[round(self.step * last / (steps - 1)) if steps > 1 else last]

    def _decay(self, of: Any) -> float:
        steps = self.counters["steps"]
        assert steps is not None
        return max(of.base * of.rate ** (self.step / steps), of.floor)

    def _share(self, of: Any) -> float:
        steps = self.counters["steps"]
        assert steps is not None
        return float(int(of.of * steps + (0.5 if of.rounding.name == "NEAREST" else 0.0)))

    def _arithmetic(self, of: Any) -> float | None:
        left, right = self._side(of.left), self._side(of.right)
        if left is None or right is None or (of.operator == "/" and right == 0):
            return None
        return ARITHMETIC[of.operator](left, right)

    def _absolute(self, of: Any) -> float | None:
        inner = self.number(of.of)
        return None if inner is None else abs(inner)

    def _polynomial(self, of: Any) -> float | None:
        x = self.number(of.of)
        if x is None:
            return None
        highest = len(of.coefficients) - 1
        return math.fsum(c * x ** (highest - i) for i, c in enumerate(of.coefficients))

    def _choice(self, of: Any) -> float | None:
        return self._side(of.then if self.truth(of.condition) else of.otherwise)

    def _accumulated(self, of: Any) -> float | None:
        so_far = self.memory.sums.get(of, 0.0)
        counting = getattr(of, "counting", None)
        if counting is not None and self.truth(counting) is not True:
            return so_far
        inner = self.number(of.of)
        return None if inner is None else so_far + inner

    def _deviation(self, of: Any) -> float | None:
        ratio = self.number(of.of)
        if ratio is None:
            return None
        self.products[of] = self.memory.products.get(of, 1.0) * ratio
        return self.memory.sums.get(of, 0.0) + abs(1 - self.products[of])

    def _lagged(self, of: Any) -> float | None:
        step, value = self.memory.before.get(of.of, (-1, None))
        return of.otherwise if value is None or step != self.step - 1 else value

    # ---- measured

    def _meansize(self, of: Any) -> float | None:
        seen = self._seen(of.probe, of.since)
        return None if seen is None else float(seen.tensor.float().abs().mean())

    def _gain(self, of: Any) -> float | None:
        over, under = (self._moved_between_anchors(probe) for probe in (of.of, of.per))
        return over / under if over is not None and under else None

    def _moved_between_anchors(self, probe: Any) -> float | None:
        computed = [s.tensor.float() for s in self.memory.probes.get(probe, []) if not s.skipped]
        return float((computed[-1] - computed[-2]).abs().mean()) if len(computed) > 1 else None

    def _relativel1(self, of: Any) -> float | None:
        return self._change(of, self.probe(of.probe))

    _meanchange = _relativel1

    def _exacterror(self, of: Any) -> None:
        raise AssertionError("known only after the step; read through lagged(...)")

    def _seen(self, probe: Any, since: Any) -> Seen | None:
        history = self.memory.probes.get(probe, [])
        if since is dsl.LAST_COMPUTED:
            history = [s for s in history if not s.skipped]
        return history[-1] if history else None

    def _change(self, of: Any, value: Tensor) -> float | None:
        weights = _weights(of)
        now, before = prepared(value, weights, self.timestep), self._reference(of, weights)
        if before is None:
            return None
        tokens = self._tokens(weights, now, before)
        change, size = (now.float() - before.float()).abs(), before.float().abs()
        if type(of).__name__ == "MeanChange":
            return _mean(change, tokens)
        if getattr(of, "denominator", None) is not None and of.denominator.name == "NEW":
            size = now.float().abs()
        return _NORM[getattr(getattr(of, "norm", None), "name", "RATIO_OF_MEANS")](
            change, size, getattr(of, "eps", 0.0), tokens
        )

    def _reference(self, of: Any, weights: Sequence[Any]) -> Tensor | None:
        if isinstance(of.since, dsl.Since):
            seen = self._seen(of.probe, of.since)
            return None if seen is None else prepared(seen.tensor, weights, seen.timestep)
        computed = [s for s in self.memory.probes.get(of.probe, []) if not s.skipped]
        history = [Kept(s.step, prepared(s.tensor, weights, s.timestep)) for s in computed]
        return predicted(of.since.predictor, history, self.step) if history else None

    def _tokens(self, weights: Sequence[Any], now: Tensor, before: Tensor) -> Tensor:
        """A weight for each token, [tokens]; 1 where nothing is said."""
        tokens = torch.ones(now.shape[1:-1].numel() if now.dim() > 2 else 1)
        for weight in weights:
            name = type(weight).__name__
            if name == "MaskWeight" and weight.name in self.masks:
                mask = self.masks[weight.name].float()
                own = torch.zeros_like(tokens)  # tokens behind the mask's (reference) do not count
                own[: len(mask)] = 1 + (weight.inside - 1) * mask
                tokens = tokens * own
            elif name == "TokenFilter":
                change = (now - before).float().abs().flatten(1, -2).sum(-1)
                moved = change / before.float().abs().flatten(1, -2).sum(-1) > weight.threshold
                tokens = tokens * (moved.float() if moved.any() else torch.ones_like(change))
        return tokens

    # ---- after the decision, and after the step

    def close(self, when: Any, probes: Sequence[Any], *, skipped: bool) -> None:
        """Keeps sums, lags and the probes' values; every sum of the condition has advanced."""
        memory = self.memory
        for part in parts(when):
            name = type(part).__name__
            if name == "Lagged" and not late(part.of):
                memory.before[part.of] = (self.step, self.number(part.of))
            elif name in ("Accumulated", "Deviation"):
                value = self.number(part)
                never = getattr(getattr(part, "reset", None), "name", "") == "NEVER"
                if not skipped and not never:
                    memory.sums[part], memory.products[part] = 0.0, 1.0
                elif value is not None:
                    memory.sums[part] = value
                    memory.products[part] = self.products.get(part, 1.0)
        for probe in probes:
            self.see(probe, self.probe(probe), skipped=skipped)

    def see(self, probe: Any, value: Tensor, *, skipped: bool) -> None:
        seen = Seen(self.step, value.clone(), self.timestep, skipped)
        self.memory.probes.setdefault(probe, []).append(seen)

    def settle(self, when: Any, output: Tensor, errors: Mapping[Any, float]) -> None:
        """Numbers that are known only after the step, before the output itself is kept."""
        for part in parts(when):
            if type(part).__name__ == "Lagged" and late(part.of):
                after = errors.get(part.of) if type(part.of).__name__ == "ExactError" else None
                if type(part.of).__name__ != "ExactError":
                    after = self._change(part.of, output)
                self.memory.before[part.of] = (self.step, after)


def late(signal: Any) -> bool:
    """Whether a signal is known only after its step."""
    probe = type(getattr(signal, "probe", None)).__name__
    return type(signal).__name__ == "ExactError" or probe == "Prediction"


def parts(item: Any) -> list[Any]:
    """Everything a condition is made of, itself first."""
    inner = [getattr(item, f.name) for f in fields(item)]
    kinds = (dsl.Condition, dsl.Signal)
    return [item, *(part for i in inner if isinstance(i, kinds) for part in parts(i))]


def probes_of(when: Any) -> list[Any]:
    """The probes of a condition that are read before the decision, each once."""
    found = []
    for part in parts(when):
        name = type(part).__name__
        if name in ("RelativeL1", "MeanChange", "MeanSize"):
            found.append(part.probe)
        elif name == "Gain":
            found += [part.of, part.per]
    return [p for p in dict.fromkeys(found) if type(p).__name__ != "Prediction"]


def _weights(of: Any) -> tuple[Any, ...]:
    weight = of.weight
    return () if weight is None else weight if isinstance(weight, tuple) else (weight,)


def prepared(value: Tensor, weights: Sequence[Any], timestep: float) -> Tensor:
    """The probe as it is compared: what is signal at its own noise level, fewer channels."""
    for weight in weights:
        if type(weight).__name__ == "ChannelStride":
            value = value[..., :: weight.n]
        elif type(weight).__name__ == "Spectral":
            value = _wiener(value, timestep / weight.levels, weight.power)
    return value


def _wiener(value: Tensor, sigma: float, power: float) -> Tensor:
    """SeaCache's filter over [batch, channels, (frames,) height, width], axis after axis."""
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    spectrum, gains = value.float().to(torch.complex64), torch.ones(value.shape[2:])
    for axis in range(2, value.dim()):
        spectrum = torch.fft.fft(spectrum, dim=axis)
        clean = 1 / (torch.fft.fftfreq(value.shape[axis]).abs() ** power + 1e-16)
        kept = (1 - sigma) * clean / ((1 - sigma) ** 2 * clean + sigma**2 + 1e-16)
        gains = gains * kept.reshape([-1 if i == axis else 1 for i in range(2, value.dim())])
    spectrum = spectrum * (gains / gains.mean())
    for axis in range(2, value.dim()):
        spectrum = torch.fft.ifft(spectrum, dim=axis)
    return spectrum.real.to(value.dtype)


def _by_token(value: Tensor) -> Tensor:
    return (value.flatten(1, -2) if value.dim() > 2 else value[:, None]).mean(-1)


def _mean(value: Tensor, tokens: Tensor) -> float:
    by_token = _by_token(value)
    weights = tokens.expand_as(by_token)
    return float((by_token * weights).sum() / weights.sum())


def _ratio_of_means(change: Tensor, size: Tensor, eps: float, tokens: Tensor) -> float:
    moved, whole = _mean(change, tokens), _mean(size, tokens) + eps
    return moved / whole if whole else math.nan


def _mean_of_ratios(change: Tensor, size: Tensor, eps: float, tokens: Tensor) -> float:
    return _mean(change / (size + eps), tokens)


def _token_norms(change: Tensor, size: Tensor, eps: float, tokens: Tensor) -> float:
    ratios = change.norm(dim=-1) / (size.norm(dim=-1) + eps)
    return _mean(ratios[..., None], tokens)


_NORM = {
    "RATIO_OF_MEANS": _ratio_of_means,
    "MEAN_OF_RATIOS": _mean_of_ratios,
    "TOKEN_NORMS": _token_norms,
}
