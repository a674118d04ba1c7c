"""Payback: what skipped steps got wrong, given back in the output of the next computed step.

At step b, when the residual of b is known, the skipped steps t since the last computed one are made
again at the inputs they had, with residuals interpolated instead of extrapolated:

    c_b = strength * sum over t of  dsigma_t (v_interpolated(t) - v_predicted(t)) / dsigma_b

is added to the output of b, so that an Euler step lands where it would have with the better outputs.
No block runs: only what stays live, embedding and head. For samplers that remember outputs the
difference between their memory and that of an integrator given the better outputs is carried on, and
each later output is corrected so that the states agree from b + 1 on (``owed``).

Everything is linear, so it is done for each guidance branch apart, before they are mixed.

Source: ours; the corrector of UniPC (arXiv 2302.04867) is the idea. Figures in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from synccache.errors import StateError
from synccache.fx.tensors import version_of
from synccache.planner.samplers import ORDER, Sampler, sampler_row
from synccache.policies.dsl import Payback, Policy, Rule, Steps

_FULL = 4  # bytes of a float32
TOLERANCE = 0.01  # of the first timestep: how far a planned step may be from where it was planned


@dataclass(frozen=True, slots=True)
class Again:
    """The skipped step that is being made again, and how its residuals are interpolated."""

    step: int
    payback: Payback


@dataclass(frozen=True, slots=True)
class _Skipped:
    step: int
    inputs: tuple[Tensor, ...]
    own: tuple[bool, ...]  # which inputs are copies that were made here
    versions: tuple[int | None, ...]
    output: Tensor


@dataclass(slots=True)
class Owed:
    """Of one guidance branch: skipped steps not yet paid back, and what the sampler remembers wrong.

    ``states`` and ``outputs`` are differences, by step: what an integrator given the better outputs
    has, less what the sampler has.
    """

    skipped: list[_Skipped] = field(default_factory=list)
    states: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    seen: tuple[tuple[Any, int | None], ...] = ()  # weakly, the inputs of the last call
    last_step: int = -1

    def tensors(self) -> list[Tensor]:
        """Everything that takes memory of its own."""
        copies = [t for s in self.skipped for t, own in zip(s.inputs, s.own, strict=True) if own]
        outputs = [s.output for s in self.skipped]
        return [*copies, *outputs, *self.states.values(), *self.outputs.values()]


def check_steps(name: str, rules: Sequence[Rule], run: Any) -> None:
    """Raises StateError where a planned trajectory is at another timestep than it was planned for.

    The timestep is read for it, once a step, unless the caller said it as a number.
    """
    step = run.step
    for rule in rules:
        if not isinstance(rule.when, Steps) or not rule.when.timesteps:
            continue
        planned = rule.when.timesteps
        if step >= len(planned):
            raise StateError(
                f"step {step + 1} was called, the plan has {len(planned)} steps.",
                where=name,
                hint="Plan for this number of steps, or call compiled.reset() before a new run.",
            )
        timestep = run.noise
        if abs(timestep - planned[step]) > TOLERANCE * abs(planned[0]):
            raise StateError(
                f"step {step + 1} of {len(planned)} is at timestep {timestep:g}, it was planned for "
                f"{planned[step]:g}.",
                where=name,
                hint="Plan for the schedule that you sample with: calibration.residuals.at(sigmas).",
            )


def check_payback(policy: Policy, trajectory: Any, outputs: int) -> None:
    """Raises StateError where nothing can be paid back in this trajectory."""
    letters = getattr(policy.rules[0].when, "letters", "")
    if not trajectory.sigmas:
        raise StateError(
            "paying errors back needs the noise levels of the trajectory.",
            where=policy.name,
            hint="Call compiled.begin(sigmas=scheduler.sigmas) before the first step, or plan with "
            "payback strength 0.",
        )
    if len(trajectory.sigmas) != len(letters) + 1:
        raise StateError(
            f"begin() was given {len(trajectory.sigmas) - 1} steps, the plan has {len(letters)}.",
            where=policy.name, hint="Plan for this number of steps.",
        )  # fmt: skip
    if outputs != 1:
        raise StateError(
            f"payback corrects the one output that the sampler integrates; the model has {outputs}.",
            where=policy.name, hint="Plan with payback strength 0 for this model.",
        )  # fmt: skip


def pay_back(
    owed: Owed, payback: Payback, step: int, skipped: bool, inputs: tuple[Tensor, ...],
    output: Tensor, *, sigmas: tuple[float, ...], sampler: Sampler,
    again: Callable[[Again, list[Tensor]], Tensor],
) -> Tensor:  # fmt: skip
    """The output of this call, corrected.

    Args:
        inputs: of this call, all tensors of the forward in its order.
        again: makes a skipped step once more, with interpolated residuals; returns its output.
    """
    if owed.last_step != step - 1:
        owed.skipped, owed.states, owed.outputs, owed.seen = [], {}, {}, ()
    owed.last_step = step
    if skipped:
        owed.skipped.append(_kept(owed, step, inputs, output))
    else:
        better: dict[int, Tensor] = {}
        for past in owed.skipped:
            found = again(Again(past.step, payback), _inputs_again(past, inputs))
            better[past.step] = payback.strength * (_wide(found) - _wide(past.output))
        owed.skipped = []
        _replayed(owed, better, step, sampler, sigmas)
    owed.seen = tuple((TensorWeakRef(t), version_of(t)) for t in inputs)
    return _corrected(owed, step, sampler, sigmas, output)


def _replayed(
    owed: Owed, better: Mapping[int, Tensor], step: int, sampler: Sampler, sigmas: tuple[float, ...]
) -> None:
    """Adds the differences in states and outputs that better outputs at skipped steps make."""
    states: dict[int, Tensor] = {}
    for past in range(min(better, default=step), step):
        row = sampler_row(sampler, sigmas, past)
        parts = [states[j] * w for j, w in row.state.items() if j in states]
        parts += [better[j] * w for j, w in row.output.items() if j in better]
        states[past + 1] = sum(parts[1:], parts[0])
    for mine, found in ((owed.states, states), (owed.outputs, better)):
        for j, value in found.items():
            mine[j] = mine[j] + value if j in mine else value


def _corrected(
    owed: Owed, step: int, sampler: Sampler, sigmas: tuple[float, ...], output: Tensor
) -> Tensor:
    """The output after which the sampler's next state is that of the better integrator."""
    row = sampler_row(sampler, sigmas, step)
    parts = [owed.states[j] * w for j, w in row.state.items() if j in owed.states]
    parts += [owed.outputs[j] * w for j, w in row.output.items() if j in owed.outputs and j < step]
    if parts:
        correction = sum(parts[1:], parts[0]) / row.output[step]
        owed.outputs[step] = -correction
        output = (_wide(output) + correction).to(output.dtype)
    oldest = step + 2 - ORDER[sampler]
    for kept in (owed.states, owed.outputs):
        for j in [j for j in kept if j < oldest]:
            del kept[j]
    return output


def _kept(owed: Owed, step: int, inputs: tuple[Tensor, ...], output: Tensor) -> _Skipped:
    """The call, with copies of the inputs that are not those of the call before."""
    before = owed.seen
    own = tuple(
        i >= len(before) or before[i][0]() is not t or version_of(t) is None
        or version_of(t) != before[i][1]
        for i, t in enumerate(inputs)
    )  # fmt: skip
    copies = tuple(t.detach().clone() if mine else t for t, mine in zip(inputs, own, strict=True))
    return _Skipped(step, copies, own, tuple(map(version_of, copies)), output.detach().clone())


def _inputs_again(past: _Skipped, now: tuple[Tensor, ...]) -> list[Tensor]:
    """What the step was called with; refused where the caller has since written to it."""
    for tensor, own, version in zip(past.inputs, past.own, past.versions, strict=True):
        if not own and version_of(tensor) != version:
            raise StateError(
                f"an input of shape {list(tensor.shape)} that skipped step {past.step + 1} was called "
                "with has been written to since, so the step cannot be made again.",
                hint="Pass a new tensor instead of writing to this one, or plan with payback 0.",
            )
    return list(past.inputs)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 where it has 16 bits."""
    return tensor.float() if tensor.dtype.itemsize < _FULL else tensor
