"""``CachedModel``: the compiled model, called as the model is called."""

from __future__ import annotations

import contextvars
import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from synccache.errors import CaptureError, StateError, VerifyError
from synccache.fx import report
from synccache.fx.capture import Captured, capture
from synccache.fx.conditions import nodes_tagged
from synccache.fx.inputs import bind, describe_key_change, flatten, signature_key
from synccache.fx.ops import ValueChanged
from synccache.fx.program import ResidualProgram
from synccache.fx.runtime import Call, Trajectory
from synccache.fx.variant import Variant
from synccache.planner import Plan

MAX_VARIANTS = 8  # input signatures kept; a denoising loop has one or two
MAX_RECAPTURES = 4  # of one signature, because a number read from a tensor changed

_OWN = (
    "_model", "_request", "_builder", "_variants", "_last", "_trajectories", "_key", "_branch",
    "_captures", "_recaptures", "_capture_seconds", "_stale_keys",
)  # fmt: skip


Builder = Callable[[nn.Module, Any, Captured, int, str], Variant]


class CachedModel(nn.Module):
    """A model with a caching policy compiled into it; made by ``synccache.compile``.

    Shares the model's parameters, buffers and sub-modules: ``state_dict`` keys, ``config``,
    ``dtype``, ``device`` and every other attribute are the model's own. One call is one forward of
    one guidance branch. A trajectory (one denoising run) begins with the first call and again when
    the timestep rises; ``reset()``, ``begin()`` and ``trajectory(key)`` say it explicitly.
    """

    def __init__(self, model: nn.Module, request: Any, builder: Builder) -> None:
        super().__init__()
        own = self.__dict__
        own["_model"] = model
        for registry in ("_parameters", "_buffers", "_modules"):
            own[registry] = model.__dict__[registry]  # the same objects: nothing is copied
        own["_request"], own["_builder"] = request, builder
        own["_variants"] = OrderedDict()
        own["_last"] = None
        own["_trajectories"] = {None: Trajectory()}
        own["_key"] = contextvars.ContextVar("synccache_trajectory", default=None)
        own["_branch"] = contextvars.ContextVar("synccache_branch", default=None)
        own["_captures"], own["_recaptures"], own["_capture_seconds"] = 0, 0, 0.0
        own["_stale_keys"] = 0

    # ---- being the model

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self.__dict__["_model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            self.__dict__[name] = value
        else:
            setattr(self.__dict__["_model"], name, value)

    @property
    def training(self) -> bool:  # type: ignore[override]
        return bool(self.__dict__["_model"].training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "_model" in self.__dict__:  # nn.Module's constructor sets it before there is a model
            self.__dict__["_model"].training = mode

    @property
    def model(self) -> nn.Module:
        """The original model."""
        return self._model  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedModel:
        return CachedModel(copy.deepcopy(self._model, memo), self._request, self._builder)

    def __reduce__(self) -> Any:
        return CachedModel, (self._model, self._request, self._builder)

    def __repr__(self) -> str:
        return f"CachedModel({self._request.policy.name}, {type(self._model).__name__})"

    # ---- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One forward of one guidance branch, with what the policy skips replaced."""
        tensors, names, key = self._inputs(args, kwargs)
        found = self._variants.get(key)
        if found is None:
            return self._first(key, names, tensors, args, kwargs)
        self._variants.move_to_end(key)
        own = self.__dict__
        own["_stale_keys"] = 0
        try:
            return self._run(key, found, tensors)
        except ValueChanged as change:
            return self._again(change, key, names, tensors, args, kwargs)

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Records one forward with these inputs now; no trajectory begins."""
        tensors, names, key = self._inputs(args, kwargs)
        if key not in self._variants:
            _, captured = self._capture(args, kwargs)
            self._keep(key, names, self._build(captured, 1))

    def _inputs(self, args: Any, kwargs: Any) -> tuple[list[Tensor], list[str], Hashable]:
        arguments = bind(self._model.forward, args, kwargs)
        tensors, structure, paths = flatten(arguments)
        return tensors, ["_".join(p) for p in paths], signature_key(tensors, structure, self.training)

    def _first(self, key: Any, names: list[str], tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        rng, before = torch.get_rng_state(), [_copy(t) for t in tensors] if self._request.verify else []
        versions = [None if t.is_inference() else t._version for t in tensors]
        out, captured = self._capture(args, kwargs)
        branches = max((v.guidance_branches for v in self._variants.values()), default=1)
        variant = self._build(captured, branches)
        self._keep(key, names, variant)
        if not self._request.verify:
            self._enter(key, variant, tensors).state.decisions.append("C")
            return out
        for tensor, version, copied in zip(tensors, versions, before):
            if version is not None and tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(copied)  # the forward wrote to its input: replay on what it was given
        after = torch.get_rng_state()
        torch.set_rng_state(rng)
        replay = self._run(key, variant, tensors)
        torch.set_rng_state(after)
        self._verify(out, replay)
        return out

    def _capture(self, args: Any, kwargs: Any) -> tuple[Any, Captured]:
        started = time.perf_counter()
        out, captured = capture(self._model, args, kwargs)
        self.__dict__["_captures"] += 1
        self.__dict__["_capture_seconds"] += time.perf_counter() - started
        return out, captured

    def _keep(self, key: Any, names: list[str], variant: Variant) -> None:
        own = self.__dict__
        if self._variants:
            own["_stale_keys"] += 1
        if own["_stale_keys"] >= MAX_VARIANTS:
            last = next(reversed(self._variants))
            raise CaptureError(
                f"the last {own['_stale_keys']} calls all had a signature of their own; this one "
                f"differs from the one before in: {describe_key_change(last, key, names)}.",
                where=type(self._model).__name__,
                hint="Pass what changes every step as a tensor, not as a Python number.",
            )
        self._variants[key] = variant
        own["_last"] = variant
        while len(self._variants) > MAX_VARIANTS:
            self._variants.popitem(last=False)

    def _build(self, captured: Captured, branches: int) -> Variant:
        name = f"Compiled{type(self._model).__name__}{self._captures or 1}"
        variant: Variant = self._builder(self._model, self._request, captured, branches, name)
        return variant

    def _verify(self, expected: Any, found: Any) -> None:
        for i, (a, b) in enumerate(zip(flatten(expected)[0], flatten(found)[0])):
            if not torch.equal(torch.isnan(a), torch.isnan(b)) or not torch.equal(
                torch.nan_to_num(a), torch.nan_to_num(b)
            ):
                worst = (a.double() - b.double()).abs().max().item() if a.is_floating_point() else "?"
                raise VerifyError(
                    f"output {i} of the recorded graph differs from the model's own by up to {worst}.",
                    where=f"{self._request.policy.name} on {type(self._model).__name__}",
                    hint="The forward has a side effect or a source of values that was not seen; "
                    "please report the model.",
                )

    def _again(self, change: ValueChanged, key: Any, names: Any, tensors: Any, args: Any, kwargs: Any) -> Any:
        own = self.__dict__
        own["_recaptures"] += 1
        if own["_recaptures"] > MAX_RECAPTURES:
            raise CaptureError(
                f"the forward reads a number from a tensor that changes from call to call: {change} "
                f"(recorded again {MAX_RECAPTURES} times).",
                where=type(self._model).__name__,
                hint="Put the code that reads it into a sub-module that is called whole.",
            ) from change
        del self._variants[key]
        self._trajectories[self._key.get()] = Trajectory()
        return self._first(key, names, tensors, args, kwargs)

    def _run(self, key: Any, variant: Variant, tensors: list[Tensor]) -> Any:
        call = self._enter(key, variant, tensors)
        variant = self._last
        outputs = variant.emitted.module(call, *tensors)
        call.state.decisions.append("S" if call.skipped else "C")
        call.trajectory.syncs += call.syncs
        return variant.captured.result.fill(list(outputs))

    def _enter(self, key: Any, variant: Variant, tensors: list[Tensor]) -> Call:
        """The call's place in its trajectory; plans anew when another guidance branch appears."""
        own = self.__dict__
        name = self._key.get()
        trajectory = self._trajectories.setdefault(name, Trajectory())
        noise = self._noise(variant, tensors)
        if noise is not None:
            trajectory.syncs += 1
            if trajectory.step >= 0 and noise > trajectory.noise:
                trajectory = self._trajectories[name] = Trajectory(steps=trajectory.steps)
        state = trajectory.enter(noise, self._branch.get())
        if len(trajectory.branches) > variant.guidance_branches:
            variant = self._replanned(key, variant, len(trajectory.branches))
        own["_last"] = variant
        branch = next(k for k, v in trajectory.branches.items() if v is state)
        state.belong_to(variant.layout)
        return Call(trajectory, state, branch, self._request.policy.leader, variant.masks)

    def _replanned(self, key: Any, variant: Variant, branches: int) -> Variant:
        fresh = self._build(variant.captured, branches)
        same = variant.plan is None or fresh.plan is None or variant.plan.cuts == fresh.plan.cuts
        if same:
            fresh = variant.with_plan_of(fresh)
        self._variants[key] = fresh
        return fresh

    def _noise(self, variant: Variant, tensors: list[Tensor]) -> float | None:
        """This call's timestep, from the timestep input: one device sync."""
        found = nodes_tagged(variant.tags, "timestep")
        if not found:
            if variant.matches:
                raise StateError(
                    "no input is marked as the timestep, so steps cannot be told apart.",
                    where=f"{self._request.policy.name} on {type(self._model).__name__}",
                    hint="Pass conditions={'timestep': ['<argument name>']} to compile().",
                )
            return None
        return float(tensors[variant.captured.placeholders.index(found[0])].detach().float().max())

    # ---- trajectories

    def reset(self) -> None:
        """Forgets every trajectory and what is held for it; recordings are kept."""
        self._trajectories.clear()
        self._trajectories[None] = Trajectory()

    def begin(self, *, steps: int | None = None) -> None:
        """Begins a new trajectory now. ``steps``: how many steps it will have."""
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise StateError(f"begin(steps=...) takes a positive integer, got {steps!r}.")
        self._trajectories[self._key.get()] = Trajectory(steps=steps)

    @contextmanager
    def trajectory(self, key: Hashable) -> Iterator[None]:
        """Calls inside belong to the trajectory of this key; other keys do not see its state."""
        token = self._key.set(key)
        try:
            yield
        finally:
            self._key.reset(token)

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """Calls inside belong to the guidance branch of this name (diffusers' own protocol)."""
        token = self._branch.set(name)
        try:
            yield
        finally:
            self._branch.reset(token)

    # ---- looking inside

    @property
    def variant(self) -> Variant:
        """The compiled form that the last call used."""
        if self._last is None:
            raise StateError(
                "nothing is compiled yet: the first forward is recorded while it computes.",
                hint="Call the model once, or pass example=(args, kwargs) to compile().",
            )
        return self._last  # type: ignore[no-any-return]

    @property
    def plan(self) -> Plan:
        """What is held, at what cost, and what the alternatives were; prints as a table."""
        plan = self.variant.plan
        if plan is None:
            raise StateError("there is no plan: no stream was found and the policy skips nothing.")
        return plan

    @property
    def graph_module(self) -> GraphModule:
        """The emitted graph. Its first input is the call's state; see ``code``."""
        return self.variant.emitted.module

    @property
    def program(self) -> ResidualProgram:
        """Streams and branches as found."""
        if self.variant.program is None:
            raise StateError("no stream was found in this model; only policy='exact' applies.")
        return self.variant.program

    @property
    def code(self) -> str:
        """The emitted forward as Python, with shapes and origins as comments."""
        return report.listing(self.variant)

    def explain(self) -> str:
        """What matched, what will be skipped and why, and what it costs."""
        return report.explanation(self.variant, self._request)

    def stats(self) -> report.Stats:
        """Figures of the present trajectory, or of the last if a new one has not begun."""
        trajectory = self._trajectories[self._key.get()]
        return report.stats(self, trajectory)

    @property
    def captures(self) -> int:
        """Forwards recorded so far, re-captures included."""
        return int(self._captures)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()

