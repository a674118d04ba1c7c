"""Windows of a long clip: what is held for a call is kept by the clip's frames, not by its tokens.

Token k of a window that has moved is another frame than token k of the window before. So before a
call everything that its guidance branch remembers is gathered for the frames of the call, and stored
by frame after it. Frames that do not remember the same steps cannot be gathered: the call computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from synccache.errors import StateError
from synccache.fx.gate_state import Anchors, GateState
from synccache.fx.held import Held
from synccache.fx.runs import RunForm
from synccache.planner.storage import Form, Place
from synccache.policies import dsl

if TYPE_CHECKING:
    from synccache.fx.cached_model import CachedModel
    from synccache.fx.runtime import BranchState, Call
    from synccache.fx.variant import Variant

_REST = "tokens of no frame"


@dataclass(frozen=True, slots=True)
class Window:
    """Where the frames of a call lie in its streams [batch, tokens, channels]: frame after frame.

    Attributes:
        frames: the clip's number of every frame, in the order of the call.
        tokens: of one frame.
        leading, trailing: tokens of no frame (a reference, text) before and after them.
    """

    frames: tuple[int, ...]
    tokens: int
    leading: int = 0
    trailing: int = 0

    @staticmethod
    def of(indices: Sequence[int], tokens: int, leading: int, trailing: int) -> Window:
        """The arguments of ``frames``, checked."""
        frames = tuple(indices)
        whole = all(isinstance(f, int) and not isinstance(f, bool) and f >= 0 for f in frames)
        if not frames or not whole or len(set(frames)) < len(frames):
            raise StateError(
                f"frames(...) takes different frame numbers from 0, got {frames!s:.80}."
            )
        counts = (("tokens", tokens, 1), ("leading", leading, 0), ("trailing", trailing, 0))
        for name, count, least in counts:
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise StateError(
                    f"frames({name}=...) takes an integer from {least}, got {count!r}."
                )
        return Window(frames, tokens, leading, trailing)

    def split(self, value: Tensor, what: str) -> dict[Hashable, tuple[Tensor, ...]]:
        """Copies of a tensor's parts: one of every frame, and what belongs to no frame."""
        self._check(value, what)
        sizes = [self.leading, *[self.tokens] * len(self.frames), self.trailing]
        before, *parts, after = value.detach().split(sizes, dim=1)
        found: dict[Hashable, tuple[Tensor, ...]] = {
            f: (_own(p),) for f, p in zip(self.frames, parts)
        }
        return found | {_REST: (_own(before), _own(after))} if self.has_rest else found

    def join(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The tensor whose parts these are, in the order of ``keys``."""
        if not self.has_rest:
            return torch.cat([p for part in parts for p in part], dim=1)
        *frames, (before, after) = parts
        return torch.cat([before, *(f for (f,) in frames), after], dim=1)

    @property
    def has_rest(self) -> bool:
        return bool(self.leading or self.trailing)

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """Under what parts are kept."""
        return (*self.frames, _REST) if self.has_rest else self.frames

    def _check(self, value: Tensor, what: str) -> None:
        expected = self.leading + len(self.frames) * self.tokens + self.trailing
        if value.dim() < 3 or value.shape[1] != expected:
            raise StateError(
                f"{what} is {list(value.shape)}, which cannot be kept by frame: expected [batch, "
                f"{expected}, channels], {len(self.frames)} frames of {self.tokens} tokens after "
                f"{self.leading} leading and before {self.trailing} trailing ones.",
                hint="Say the layout, `compiled.frames(indices, tokens=..., leading=..., "
                "trailing=...)`; what has no such layout (packed or shuffled tokens, text streams "
                "that are skipped too) cannot be skipped under shifting windows.",
            )


@dataclass(slots=True)
class _Anchored:
    """Parts of one tensor of each of these steps, oldest first."""

    steps: tuple[int, ...]
    forecasts: frozenset[int]
    parts: tuple[tuple[Tensor, ...], ...]

    @property
    def mark(self) -> Hashable:
        return self.steps, self.forecasts


@dataclass(slots=True)
class _Numbers:
    """What a gate remembers of a frame that is no tensor of its tokens, and its references' parts."""

    step: int
    state: GateState
    tensors: dict[tuple[str, Hashable], tuple[tuple[int, ...], tuple[tuple[Tensor, ...], ...]]]
    before: _Numbers | None = None  # as the present step found it: windows of a step may overlap

    def at(self, step: int) -> _Numbers | None:
        """As step ``step`` finds it."""
        return self.before if self.step == step else self

    @property
    def mark(self) -> object:
        state = self.state
        steps = {key: at for key, (at, _) in self.tensors.items()}
        return self.step, state.memory, state.streak, state.total, steps


@dataclass(slots=True)
class ByFrame:
    """What one guidance branch remembers of a clip's frames."""

    held: dict[Hashable, dict[tuple[int, int], _Anchored]] = field(default_factory=dict)
    gates: dict[Hashable, dict[int, _Numbers]] = field(default_factory=dict)
    sizes: tuple[int, int, int] | None = None  # tokens of a frame, leading, trailing

    def keep_to(self, window: Window) -> None:
        """Refuses another layout of tokens than that of the parts that are kept."""
        now = (window.tokens, window.leading, window.trailing)
        if self.sizes is not None and self.sizes != now:
            raise StateError(
                f"frames(tokens={now[0]}, leading={now[1]}, trailing={now[2]}) follows calls with "
                "tokens={}, leading={}, trailing={} in one trajectory.".format(*self.sizes),
                hint="Call compiled.reset() before a clip of another layout.",
            )
        self.sizes = now

    def windows(self, window: Window) -> int:
        """How many windows of this length all frames fill, with those of ``window``; rounded up."""
        frames = {k for k in self.held if k != _REST}.union(window.frames)
        return -(-len(frames) // len(window.frames))

    def tensors(self) -> list[Tensor]:
        """Everything that is kept."""
        found = [
            t for runs in self.held.values() for a in runs.values() for p in a.parts for t in p
        ]
        for gates in self.gates.values():
            for one in gates.values():
                for numbers in filter(None, (one, one.before)):
                    found += [t for _, parts in numbers.tensors.values() for p in parts for t in p]
        return found

    def gather(self, window: Window, state: BranchState, step: int) -> None:
        """Gives ``state`` what is kept of the window's frames; nothing is held if they differ."""
        blocked = {rule: gate.blocked for rule, gate in state.gates.items()}
        state.held = self._gathered_held(window)
        state.gates, same = self._gathered_gates(window, step)
        for rule, counts in blocked.items():
            state.gate(rule).blocked = counts
        if not same:
            state.held = {}

    def _gathered_held(self, window: Window) -> dict[tuple[int, int], Held]:
        runs = [self.held.get(key, {}) for key in window.keys]
        found: dict[tuple[int, int], Held] = {}
        for run in runs[0]:
            kept = [r.get(run) for r in runs]
            first = kept[0]
            assert first is not None
            if any(k is None or k.mark != first.mark for k in kept):
                continue
            held = found[run] = Held()
            for i, step in enumerate(first.steps):
                whole = window.join([k.parts[i] for k in kept if k is not None])
                held.push(step, whole, len(first.steps))
            held.forecasts = first.forecasts
        return found

    def _gathered_gates(self, window: Window, step: int) -> tuple[dict[int, GateState], bool]:
        gates: dict[int, GateState] = {}
        same = True
        rules = {rule for key in window.keys for rule in self.gates.get(key, {})}
        for rule in rules:
            kept = [self.gates.get(key, {}).get(rule) for key in window.keys]
            found = [None if k is None else k.at(step) for k in kept]
            first = found[0]
            if first is None or any(f is None or f.mark != first.mark for f in found):
                same = False
                totals = [f.state.total for f in found if f is not None]
                gates[rule] = GateState(total=max(totals, default=0))
                continue
            memory = first.state.memory
            gate = gates[rule] = GateState(
                memory=replace(
                    memory, sums=dict(memory.sums), products=dict(memory.products),
                    before=dict(memory.before),
                ),
                streak=first.state.streak, total=first.state.total,
            )  # fmt: skip
            for name, (steps, parts) in first.tensors.items():
                wholes = tuple(
                    window.join([f.tensors[name][1][i] for f in found if f is not None])
                    for i in range(len(parts))
                )
                if name[0] == "anchors":
                    gate.anchors[name[1]] = Anchors(steps, wholes)
                else:
                    gate.references[name[1]] = wholes[0]
        return gates, same

    def store(self, window: Window, state: BranchState, step: int) -> None:
        """Keeps by frame what ``state`` has after a call; its tensors leave it."""
        for run, held in state.held.items():
            self._store_held(window, run, held)
        for rule, gate in state.gates.items():
            self._store_gate(window, rule, gate, step)
        state.held = {}
        state.gates = {
            rule: GateState(streak=g.streak, total=g.total, blocked=g.blocked)
            for rule, g in state.gates.items()
        }

    def _store_held(self, window: Window, run: tuple[int, int], held: Held) -> None:
        if held.storage.form is not Form.AS_COMPUTED or held.storage.place is not Place.DEVICE:
            raise StateError(
                f"frames(...) keeps tensors as computed on the device, but the plan keeps them as "
                f"{held.storage.name}.", hint="Compile without storages=.",
            )  # fmt: skip
        steps = tuple(held.steps)
        known = [self.held.get(key, {}).get(run) for key in window.keys]
        if all(k is not None and k.mark == (steps, held.forecasts) for k in known):
            return  # a skipped call: nothing new
        wholes = held.tensors()
        fresh = {
            s: window.split(whole, f"what is held of region {run[0]}")
            for s, whole in zip(steps, wholes)
            if any(k is None or s not in k.steps for k in known) or s == steps[-1]
        }
        for key, one in zip(window.keys, known):
            parts = tuple(
                fresh[s][key] if s in fresh or one is None else one.parts[one.steps.index(s)]
                for s in steps
            )
            self.held.setdefault(key, {})[run] = _Anchored(steps, held.forecasts, parts)

    def _store_gate(self, window: Window, rule: int, gate: GateState, step: int) -> None:
        if gate.gains or gate.late or any(k[2:] not in ((), ((),)) for k in gate.references):  # type: ignore[index]
            raise _cannot("measures a gain, the model's output, or a filtered probe")
        split: dict[
            tuple[str, Hashable], tuple[tuple[int, ...], list[dict[Hashable, tuple[Tensor, ...]]]]
        ] = {}
        for key, value in gate.references.items():
            what = f"the probe {key[0]}"  # type: ignore[index]
            split["references", key] = ((), [window.split(value, what)])
        for key, anchors in gate.anchors.items():
            what = f"the probe {key[0]}"  # type: ignore[index]
            split["anchors", key] = (
                anchors.steps, [window.split(t, what) for t in anchors.tensors],
            )  # fmt: skip
        plain = GateState(memory=gate.memory, streak=gate.streak, total=gate.total)
        for key in window.keys:
            gates = self.gates.setdefault(key, {})
            old = gates.get(rule)
            before = None if old is None else old.at(step)
            if before is not None:
                before.before = None
            tensors = {
                name: (steps, tuple(part[key] for part in parts))
                for name, (steps, parts) in split.items()
            }
            gates[rule] = _Numbers(step, plain, tensors, before)


@contextmanager
def frames(
    self: CachedModel, indices: Sequence[int], *, tokens: int, leading: int = 0, trailing: int = 0
) -> Iterator[None]:
    """Calls inside are for these frames of a longer clip: what is held is kept by frame.

    Args:
        indices: the clip's number of every latent frame of the call, in the order of its tokens.
        tokens: of one frame; a frame's tokens lie together in streams [batch, tokens, channels].
        leading, trailing: tokens of no frame (a reference) before and after those of frames.

    Raises:
        StateError: for other arguments; in a call, where something cannot be kept by frame.
    """
    token = self._window.set(Window.of(indices, tokens, leading, trailing))
    try:
        yield
    finally:
        self._window.reset(token)


def branches_held(call: Call, window: Window | None) -> int:
    """Guidance branches whose caches a trajectory holds; all frames seen so far count as windows."""
    states = call.trajectory.branches.values()
    if window is None:
        return len(states)
    return sum((s.by_frame or ByFrame()).windows(window) for s in states)


def run(
    self: CachedModel, call: Call, variant: Variant, module: nn.Module, tensors: list[Tensor]
) -> tuple[Any, ...]:  # fmt: skip
    """The emitted graph's outputs, with what its guidance branch remembers of the window's frames."""
    window, policy = self._window.get(), self._request.policy
    outputs: tuple[Any, ...]
    if window is None:
        outputs = module(call, *tensors)
        return outputs
    refuse_misfits(call, variant, policy)
    state, step = call.state, call.trajectory.step
    if state.by_frame is None:
        state.by_frame = ByFrame()
    state.by_frame.keep_to(window)
    state.by_frame.gather(window, state, step)
    outputs = module(call, *tensors)
    refuse_misfits(call, variant, policy)
    state.by_frame.store(window, state, step)
    return outputs


def refuse_misfits(call: Call, variant: Variant, policy: dsl.Policy) -> None:
    """Refuses what a call under ``frames`` cannot keep by frame.

    Raises:
        StateError: the policy or the call needs state that belongs to places, not to frames.
    """
    if call.meter is not None or call.gram is not None:
        raise _cannot("drift is measured over calls of one place")
    if policy.payback is not None and policy.payback.strength:
        raise _cannot("pays errors back")
    if call.masks or call.state.writes is not None:
        raise _cannot(
            "weighs or chooses tokens by a mask, which belongs to the places of one window"
        )
    if call.state.tokens:
        raise _cannot("computes some tokens only")
    outer = variant.layout.outer
    regions = (*variant.layout.regions, *(() if outer is None else (outer,)))
    runs = [run for region in regions for run in region.runs]
    if any(run.form in (RunForm.NETWORK, RunForm.WHOLE) for run in runs):
        raise _cannot("skips the whole network, whose output is no stream of tokens")


def _cannot(what: str) -> StateError:
    return StateError(
        f"this policy cannot run under compiled.frames(...): it {what}."
        if not what.startswith("drift")
        else f"nothing can be measured under compiled.frames(...): {what}.",
        hint="Use a policy that skips residuals, values or modules and compares probes of the stream, "
        "such as step_mask, fora, taylorseer or first_block_cache.",
    )


def _own(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)
