"""State of one denoising run, and the modules of an emitted graph that read and write it.

The state is an argument: an emitted graph's first input is a ``Call``. Nothing is ambient, so two
trajectories can alternate on one compiled model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from synccache.errors import StateError
from synccache.fx.gate_state import GateState
from synccache.fx.gram import GramMeter
from synccache.fx.held import Held
from synccache.fx.payback import Again, Owed
from synccache.fx.progress import Level
from synccache.fx.same import Program
from synccache.fx.windows import ByFrame, Window
from synccache.planner.samplers import Sampler
from synccache.planner.storage import Place
from synccache.policies.dsl import FIRST_BRANCH, Leader

MAX_GUIDANCE_BRANCHES = 8  # calls at one timestep; more means that trajectories are not told apart


@dataclass(slots=True)
class BranchState:
    """What one guidance branch of one trajectory remembers."""

    held: dict[tuple[int, int], Held] = field(default_factory=dict)
    gates: dict[int, GateState] = field(default_factory=dict)  # by rule
    decisions: list[str] = field(default_factory=list)
    visual_flops_skipped: int = 0
    flops_saved: int = 0  # in all: skipped regions, and step-invariant values found in place
    seconds_saved: float = 0.0  # the same, in seconds of the recorded forward
    forced: int = 0  # steps computed only because the branch held nothing yet
    writes: Tensor | None = None  # per token, how strongly audio branches wrote; [batch, tokens]
    tokens: dict[int, Any] = field(default_factory=dict)  # by rule: TokenState
    gains: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)  # FromSibling
    owed: Owed = field(default_factory=Owed)  # what the next computed step pays back
    asked_host: tuple[int, bool] = (0, False)  # ``on_host``: how many were held, and the answer
    inputs: tuple[TensorWeakRef, ...] = ()  # of its first call
    layout: Any = None  # the regions that ``held`` belongs to
    recording: Any = None  # what ``gates`` belong to
    by_frame: ByFrame | None = None  # under ``frames``: then held and gates are its, between calls

    def belong_to(self, layout: Any, recording: Any = None) -> None:
        """Forgets what was held for other regions: another input signature, or another plan.

        With another plan of the same recording gates keep what they have seen.
        """
        if self.layout is layout:
            return
        self.held, self.owed, self.layout = {}, Owed(), layout
        self.tokens, self.gains, self.asked_host = {}, {}, (0, False)
        self.by_frame = None
        if recording is not None and self.recording is recording:
            for gate in self.gates.values():
                gate.forget_held()
        else:
            self.gates, self.writes = {}, None
        self.recording = recording

    def on_host(self) -> bool:
        """Whether anything that is held lies in main memory; asked once for each set of regions."""
        if self.asked_host[0] != len(self.held):
            there = any(h.storage.place is Place.HOST for h in self.held.values())
            self.asked_host = (len(self.held), there)
        return self.asked_host[1]

    def gate(self, rule: int) -> GateState:
        """What the gate of this rule remembers."""
        return self.gates.setdefault(rule, GateState())


@dataclass(slots=True)
class _Kept:
    """Step-invariant values, valid while the inputs they were made from are the same objects."""

    references: tuple[Any, ...]
    versions: tuple[int | None, ...]
    copies: tuple[Tensor | None, ...]
    values: Any
    guarded: int  # inputs of the model among the references; the rest are kept values

    def fits(self, inputs: tuple[Any, ...]) -> bool:
        for reference, version, copy, tensor in zip(
            self.references, self.versions, self.copies, inputs
        ):
            if reference() is not tensor:
                return False
            if version is not None and tensor._version != version:
                return False
            if copy is not None and not torch.equal(copy, tensor):
                return False
        return True


@dataclass(slots=True)
class Turn:
    """What one step knows of the calls for one window: as a trajectory does without windows."""

    calls: int = 0
    leader: Hashable = None
    decided: dict[int, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Trajectory:
    """One denoising run: its steps, its guidance branches, its step-invariant values."""

    steps: int | None = None  # how many there will be, if the caller said so
    sigmas: tuple[float, ...] = ()  # of all steps and the one after, if the caller said so
    sampler: Sampler = Sampler.EULER
    said_sampler: str = ""  # its name, if the caller said it
    calls_a_step: int | None = None  # guidance branches, if the caller said so: steps are counted
    step: int = -1
    short_before: bool = False  # the trajectory before ended after one step
    calls: int = 0
    level: Level | None = None  # of the present step
    level_before: Level | None = None
    first_level: Level | None = None
    calls_this_step: int = 0
    branches: dict[Hashable, BranchState] = field(default_factory=dict)
    decided: dict[int, bool] = field(default_factory=dict)  # rule -> skip, by this step's leader
    leader: Hashable = None
    sibling: tuple[int, tuple[Tensor, ...]] | None = None  # step and output of its first call
    kept: dict[Program, list[_Kept]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # for the present step
    next_given: dict[str, Any] = field(default_factory=dict)  # for the step that comes
    syncs: int = 0  # device-to-host transfers: one for the timestep of a call, one for a gate
    warm_up: Any = None  # a WarmUpMeter, while drift is measured
    model: tuple[int, int] | None = None  # the state of the model that all of this was made with
    cut: dict[str, Any] = field(default_factory=dict)  # where the first call's samples lie
    windowed: bool | None = None  # whether calls come under ``frames``; None before the first
    window_turns: dict[tuple[int, ...], Turn] = field(default_factory=dict)  # on this step

    def again(self) -> Trajectory:
        """A new one, of which the caller said the same."""
        return Trajectory(
            steps=self.steps, calls_a_step=self.calls_a_step, sigmas=self.sigmas,
            sampler=self.sampler, said_sampler=self.said_sampler, next_given=self.next_given,
            short_before=self.step == 0,
        )  # fmt: skip

    def forget_dead_values(self) -> None:
        """Drops step-invariant values whose inputs are gone."""
        for entries in self.kept.values():
            entries[:] = [k for k in entries if all(r() is not None for r in k.references)]

    def rely_on(self, weights: int, structure: int) -> None:
        """Forgets what was computed with other weights or modules than the model has now."""
        before, self.model = self.model, (weights, structure)
        if before is None or before == self.model:
            return
        self.kept = {}
        if before[0] != weights:
            for state in self.branches.values():
                state.belong_to(None)

    def kept_now(self) -> dict[Program, list[_Kept]]:
        """A copy of ``kept``, to go back to if a forward stops at a guard."""
        return {program: list(entries) for program, entries in self.kept.items()}

    def end_warm_up(self, measuring: nn.Module, after: nn.Module) -> None:
        """Stops measuring, and forgets what the graph that measured kept and the next does not."""
        self.warm_up = None
        gone = _invariant_programs(measuring) - _invariant_programs(after)
        self.kept = {k: kept for k, kept in self.kept.items() if k not in gone}

    def enter(
        self, step: int, level: Level | None, branch: Hashable | None, window: Window | None = None
    ) -> tuple[Hashable, BranchState]:
        """Key and state of the guidance branch that a call on this step belongs to.

        Calls under ``frames`` are counted for each window: several of them are no guidance branches.
        """
        if self.windowed not in (None, window is not None):
            raise StateError(
                f"call {self.calls + 1} of this trajectory, on step {step}, comes "
                f"{'without' if self.windowed else 'with'} compiled.frames(...), the calls before "
                f"came {'with' if self.windowed else 'without'}: what is held for tokens at a place "
                "and what is held for frames cannot be told which is which.",
                hint="Wrap every call of the loop in `with compiled.frames(indices, tokens=...):`, "
                "or none; or call compiled.reset() in between.",
            )
        self.windowed = window is not None
        if step != self.step:
            self.step, self.level_before = step, self.level
            self.level = None if level is None else level.kept()
            if self.level is not None and self.sigmas and step < len(self.sigmas):
                self.level.sigma = self.sigmas[step]
            self.first_level = self.first_level or self.level
            self.calls_this_step, self.decided, self.leader = 0, {}, None
            self.window_turns = {}
            self.given, self.next_given = self.next_given, {}
        self.calls += 1
        if window is None:
            key = self.calls_this_step if branch is None else branch
            self.calls_this_step += 1
            if self.leader is None:
                self.leader = key
        else:
            key = self._turn(window, branch)
        if key not in self.branches and len(self.branches) >= MAX_GUIDANCE_BRANCHES:
            raise StateError(
                f"call {self.calls_this_step} on step {self.step} would be guidance branch "
                f"{len(self.branches) + 1} of at most {MAX_GUIDANCE_BRANCHES}.",
                hint="Call compiled.reset() before a new run that starts at the same timestep, or "
                "wrap each run in `with compiled.trajectory(key):`.",
            )
        state = self.branches.setdefault(key, BranchState())
        self._take_turn(state)
        return key, state

    def _turn(self, window: Window, branch: Hashable | None) -> Hashable:
        """Key of a call for a window, whose leader and decisions become the present ones."""
        turn = self.window_turns.setdefault(window.frames, Turn())
        key = turn.calls if branch is None else branch
        if turn.leader is None:
            turn.leader = key
        turn.calls += 1
        self.calls_this_step += 1
        self.leader, self.decided = turn.leader, turn.decided
        return key

    def _take_turn(self, state: BranchState) -> None:
        """Other guidance branches leave the device where the plan lets only one lie on it."""
        for other in self.branches.values():
            if other is not state:
                for held in other.held.values():
                    held.park()
        for held in state.held.values():
            if held.storage.place is Place.TURNS:
                held.prefetch()

    def read(self, level: Level | None) -> float:
        """The timestep of a step as a number; counts the sync if that costs one."""
        if level is None or level.timestep is None:
            raise StateError(
                "no input is marked as the timestep, and the policy asks for it.",
                hint="Pass conditions={'timestep': ['<argument name>']} to compile().",
            )
        value, syncs = level.read()
        self.syncs += syncs
        return value

    @property
    def noise(self) -> float:
        """This step's timestep."""
        return self.read(self.level)


class Meter(Protocol):
    """What is shown the streams at region borders while drift is measured."""

    def see(self, side: str, region: int, value: Tensor) -> None:
        """A stream's value where a region begins ("start") or ends ("end")."""

    def finish_call(self, branch: Hashable) -> None:
        """The forward of a guidance branch is over."""


@dataclass(slots=True)
class Call:
    """One forward: the first argument of every emitted graph."""

    trajectory: Trajectory
    state: BranchState
    key: Hashable
    leader: Leader
    masks: dict[str, Tensor]
    meter: Meter | None = None  # set while drift is measured: then nothing is skipped or held
    gram: GramMeter | None = None  # while calibrating: nothing is skipped
    again: Again | None = None  # a skipped step is made again: everything is interpolated
    given: Mapping[str, Any] = field(default_factory=dict)  # by compiled.give(), for this step
    ratios: dict[int, Tensor] = field(default_factory=dict)  # region -> how far its probe is
    changes: dict[Hashable, Tensor | None] = field(default_factory=dict)  # of probes, on this step
    syncs: int = 0
    skipped: bool = False

    @property
    def leads(self) -> bool:
        return self.leader is not FIRST_BRANCH or self.trajectory.leader == self.key


class Invariant(nn.Module):
    """Values that depend on no input that the loop changes: computed once, exact, guarded.

    ``forward(call, *inputs)``: the ``guarded`` inputs they are made from, then values of other
    ``Invariant``s. Kept while these are the same objects, the inputs unchanged in place (inference
    tensors count no changes: they are compared). Recordings that compute the same keep it once.
    """

    def __init__(
        self, body: nn.Module, program: Program, guarded: int, *, flops: int, seconds: float
    ) -> None:
        super().__init__()
        self.body, self.program, self.guarded = body, program, guarded
        self.flops, self.seconds = flops, seconds

    def forward(self, call: Call, *inputs: Any) -> Any:
        kept = call.trajectory.kept.setdefault(self.program, [])
        for entry in kept:
            if entry.fits(inputs):
                call.state.flops_saved += self.flops
                call.state.seconds_saved += self.seconds
                return entry.values
        values = self.body(*inputs)
        del kept[: max(0, len(kept) - MAX_GUIDANCE_BRANCHES + 1)]
        kept[:] = [k for k in kept if all(r() is not None for r in k.references)]
        keys, others = inputs[: self.guarded], inputs[self.guarded :]
        kept.append(_Kept(
            references=tuple(map(_reference, inputs)),
            versions=(*(None if t.is_inference() else t._version for t in keys), *(None,) * len(others)),
            copies=(*(t.clone() if t.is_inference() else None for t in keys), *(None,) * len(others)),
            values=values, guarded=self.guarded,
        ))  # fmt: skip
        return values


def _reference(value: Any) -> Callable[[], Any]:
    return TensorWeakRef(value) if isinstance(value, Tensor) else lambda: value


def _invariant_programs(graph: nn.Module) -> set[Program]:
    return {module.program for module in graph.modules() if isinstance(module, Invariant)}


class AudioWrites(nn.Module):
    """Adds up how strongly audio branches write to each token: the automatic person mask.

    Measures on the first step of a trajectory, which is always computed; weighs all later probes.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, call: Call, written: Tensor) -> None:
        if call.trajectory.step > 0 or written.dim() < 3:
            return
        size = written.detach().float().abs().mean(dim=-1).flatten(1)
        total = torch.zeros(size.shape[0], self.tokens, device=size.device)
        total[:, : size.shape[1]] = size
        call.state.writes = total if call.state.writes is None else call.state.writes + total


def bytes_held(trajectory: Trajectory, weights: Iterable[Tensor] = ()) -> int:
    """Bytes of everything a trajectory keeps on its device; memory shared by views counts once.

    Step-invariant values that are views of ``weights`` or of inputs take no memory of their own.
    """
    seen: dict[int, int] = {}
    plain = [w for w in weights if type(w) in (Tensor, nn.Parameter)]
    others = {w.untyped_storage()._cdata for w in plain}

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage._cdata] = storage.nbytes()
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)

    for entries in trajectory.kept.values():
        for entry in entries:
            add(entry.values)
            inputs = entry.references[: entry.guarded]
            given = [tensor for r in inputs if (tensor := r()) is not None]
            others |= {t.untyped_storage()._cdata for t in given if type(t) is Tensor}
    for memory in others & seen.keys():
        del seen[memory]
    add([c for entries in trajectory.kept.values() for e in entries for c in e.copies])
    add(trajectory.sibling)
    for state in trajectory.branches.values():
        for held in state.held.values():
            add(list(held.parts(Place.DEVICE)))
        for gate in state.gates.values():
            add(gate.tensors())
        for tokens in state.tokens.values():
            add(tokens.tensors())
        add(state.writes)
        add(state.owed.tensors())
        if state.by_frame is not None:
            add(state.by_frame.tensors())
    return sum(seen.values())


def host_bytes_held(trajectory: Trajectory) -> int:
    """Bytes that a plan keeps in main memory for a trajectory, beside its device."""
    held = [h for state in trajectory.branches.values() for h in state.held.values()]
    return sum(h.bytes_at(Place.HOST) for h in held)
