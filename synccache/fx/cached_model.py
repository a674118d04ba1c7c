"""``CachedModel``: the compiled model, called as the model is called."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from synccache.errors import StateError
from synccache.fx import draw, report, windows
from synccache.fx.begin import begun
from synccache.fx.capture import Captured, capture
from synccache.fx.drift import DriftMeter
from synccache.fx.fake import fake_capture, has_values, refuse_to_run
from synccache.fx.frames import own_forward
from synccache.fx.gram import GramMeter
from synccache.fx.inputs import bind, flatten, signature_key
from synccache.fx.measured_on import check_run
from synccache.fx.model_state import ModelState
from synccache.fx.ops import ValueChanged
from synccache.fx.order import know_again
from synccache.fx.program import ResidualProgram
from synccache.fx.progress import Level, Said, no_timestep, step_of
from synccache.fx.reasons import with_mask
from synccache.fx.repay import paid_back
from synccache.fx.replan import replanned
from synccache.fx.runtime import Call, Trajectory
from synccache.fx.subject import closed_paths
from synccache.fx.variant import Variant
from synccache.fx.variants import Variants
from synccache.fx.verify import Before, verify
from synccache.fx.written import write
from synccache.planner import Plan
from synccache.planner.devices import DEFAULT_DEVICE, device
from synccache.planner.samplers import Sampler

_OWN = (
    "_model", "_request", "_builder", "_variants", "_trajectories", "_key", "_said", "_captures",
    "_capture_seconds", "_stride", "_state", "meter", "gram", "_window",
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
            own[registry] = vars(model)[registry]  # the same objects: nothing is copied
        own["_request"], own["_builder"] = request, builder
        own["_variants"] = Variants(type(model).__name__)
        own["_trajectories"] = {None: Trajectory()}
        own["_key"] = contextvars.ContextVar("synccache_trajectory", default=None)
        own["_said"] = contextvars.ContextVar("synccache_said", default=Said())  # noqa: B039 - frozen
        own["_window"] = contextvars.ContextVar("synccache_window", default=None)
        own["_captures"], own["_capture_seconds"] = 0, 0.0
        own["_stride"], own["meter"], own["gram"] = None, None, None
        own["_state"] = ModelState(model)

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
    def training(self) -> bool:
        return bool(self.__dict__["_model"].training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "_model" in self.__dict__:  # nn.Module's constructor sets it before there is a model
            self.__dict__["_model"].training = mode

    @property
    def model(self) -> nn.Module:
        """The original model."""
        return self._model

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedModel:
        return CachedModel(copy.deepcopy(self._model, memo), self._request, self._builder)

    def __reduce__(self) -> Any:
        return CachedModel, (self._model, self._request, self._builder)

    def __repr__(self) -> str:
        return f"CachedModel({self._request.policy.name}, {type(self._model).__name__})"

    # ---- running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One forward of one guidance branch, with what the policy skips replaced."""
        hook = vars(self._model).get("_hf_hook")  # accelerate's, which brings the model's weights
        if hook is None:
            return self._forward(args, kwargs)
        args, kwargs = hook.pre_forward(self._model, *args, **kwargs)
        with torch.no_grad() if hook.no_grad else contextlib.nullcontext():
            out = self._forward(args, kwargs)
        return hook.post_forward(self._model, out)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors, names, key = self._inputs(args, kwargs)
        known = self._variants.find(key)
        if known and known[0].captured.shapes_only:  # the weights may be there now
            self._variants.forget(key)
            known = []
        try:
            if not known:
                return self._record_and_run(None, key, names, tensors, args, kwargs)
            call = self._enter(known[0], tensors)
            change: ValueChanged | None = None
            for variant in sorted(known, key=lambda v: v.layout is not call.state.layout):
                before, kept = variant.before(tensors), call.trajectory.kept_now()
                try:
                    return self._run(call, variant, tensors, (args, kwargs))
                except ValueChanged as found:
                    change, call.trajectory.kept = found, kept
                    if before is not None:
                        before.restore()
            assert change is not None
            self._variants.check_room(key, change)
            return self._record_and_run(call, key, names, tensors, args, kwargs, change)
        except BaseException:
            self._forget_trajectory()  # half a forward has left its caches in no defined state
            raise

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Records one forward with these inputs now; no trajectory begins.

        Without weights, or with inputs on the meta device, shapes alone are recorded: the plan is
        the same, and the first call with values records again.
        """
        _, names, key = self._inputs(args, kwargs)
        if not self._variants.find(key):
            _, captured = self._capture(args, kwargs)
            self._variants.add(key, names, self._build(captured, 1), None, self._state.change)

    def _inputs(self, args: Any, kwargs: Any) -> tuple[list[Tensor], list[str], Hashable]:
        self._state.look()
        arguments = bind(own_forward(self._model), args, kwargs)
        tensors, structure, paths = flatten(arguments)
        key = signature_key(tensors, structure, self._state.structure)
        return tensors, ["_".join(p) for p in paths], key

    def _record_and_run(
        self, call: Call | None, key: Any, names: list[str], tensors: list[Tensor], args: Any,
        kwargs: Any, change: ValueChanged | None = None,
    ) -> Any:  # fmt: skip
        """Records the forward, whose result is returned, and fills the caches by a replay of it."""
        refuse_to_run(self._model, tensors, names)
        before = Before(tensors) if self._request.verify else None
        out, captured = self._capture(args, kwargs)
        variant = self._build(captured, self._branches_so_far())
        self._variants.add(key, names, variant, change, self._state.change)
        call = self._enter(variant, tensors) if call is None else call
        if before is None:
            call.state.belong_to(variant.layout, variant.captured)
            call.state.decisions.append("C")
            return out
        after, before.generators = torch.get_rng_state(), captured.generators
        before.restore()
        replayed = self._run(call, variant, tensors)
        torch.set_rng_state(after)
        where = f"{self._request.policy.name} on {type(self._model).__name__}"
        verify(out, replayed, where, split=bool(variant.captured.split))
        return out

    def _branches_so_far(self) -> int:
        """Guidance branches to plan for: what the caller said, or what the last call had."""
        run, last = self._trajectories.get(self._key.get()), self._variants.last
        return max(last.guidance_branches if last else 1, (run.calls_a_step if run else 0) or 1)

    def _capture(self, args: Any, kwargs: Any) -> tuple[Any, Captured]:
        started = time.perf_counter()
        closed = closed_paths(self._model, self._request.leaves)
        if has_values(self._model, flatten((args, kwargs))[0]):
            out, captured = capture(self._model, args, kwargs, closed)
        else:
            rates = device(DEFAULT_DEVICE)
            out, captured = None, fake_capture(self._model, args, kwargs, rates, closed)
        self._state.settle(captured.closed)
        self.__dict__["_captures"] += 1
        self.__dict__["_capture_seconds"] += time.perf_counter() - started
        return out, captured

    def _build(self, captured: Captured, branches: int) -> Variant:
        name = f"Compiled{type(self._model).__name__}{self._captures or 1}"
        return self._builder(self._model, self._request, captured, branches, name)

    def _run(self, call: Call, variant: Variant, tensors: list[Tensor], given: Any = None) -> Any:
        variant = replanned(self, call, variant)
        self._variants.last = variant
        emitted, layout = variant.emitted, variant.layout
        if call.trajectory.warm_up is not None and variant.warm_up is not None:
            emitted, layout = variant.warm_up.emitted, variant.warm_up.layout
            call.meter = call.trajectory.warm_up
        call.state.belong_to(layout, variant.captured)
        call.masks = dict(variant.masks)
        if self._stride is not None:
            if self.meter is None:
                self.__dict__["meter"] = DriftMeter(len(variant.layout.regions), self._stride)
                self.__dict__["gram"] = GramMeter(self._stride)
            call.meter, call.gram = self.meter, self.gram
        outputs = windows.run(self, call, variant, emitted.module, tensors)
        outputs = paid_back(self._request.policy, call, variant, tensors, outputs)
        if call.gram is not None:
            call.gram.finish_call(call)
            if call.trajectory.step == 0:
                self.meter.before.pop(call.key, None)  # another clip: nothing to compare with
        if call.meter is not None:
            call.meter.finish_call(call.key)
        call.state.decisions.append("S" if call.skipped else "C")
        call.trajectory.syncs += call.syncs
        if given is not None and variant.captured.written:
            write(bind(own_forward(self._model), *given), variant.captured, outputs)
        return variant.captured.result.fill(list(outputs))

    def _enter(self, variant: Variant, tensors: list[Tensor]) -> Call:
        """The call's place in its trajectory."""
        name = self._key.get()
        trajectory = self._trajectories.setdefault(name, Trajectory())
        said, level, syncs = self._said.get(), self._level(variant, tensors), trajectory.syncs
        step = step_of(trajectory, said, level)
        if step is None:
            waited = trajectory.syncs - syncs
            trajectory.syncs = syncs
            trajectory = self._trajectories[name] = trajectory.again()
            trajectory.syncs, step = waited, step_of(trajectory, said, level)
            assert step is not None
        trajectory.steps = trajectory.steps if said.steps is None else said.steps
        trajectory.rely_on(self._state.weights, self._state.structure)
        key, state = trajectory.enter(step, level, said.branch, self._window.get())
        know_again(trajectory, key, tensors, variant, named=said.branch is not None)
        if self._stride is None:
            check_run(self._request, [m.rule for m in variant.matches], trajectory)
        return Call(trajectory, state, key, self._request.policy.leader, {}, given=trajectory.given)

    def _level(self, variant: Variant, tensors: list[Tensor]) -> Level | None:
        """This call's noise level: what the caller said, or the timestep input, not yet read."""
        said = self._said.get()
        timestep = said.timestep if said.timestep is not None else variant.timestep(tensors)
        if timestep is not None or said.sigma is not None:
            return Level(timestep, said.sigma)
        if variant.matches and said.step is None:
            raise no_timestep(f"{self._request.policy.name} on {type(self._model).__name__}")
        return None

    # ---- trajectories

    def measure(self, stride: int) -> None:
        """From now on skip nothing and record in ``meter`` how residuals drift."""
        self.__dict__["_stride"] = stride

    def reset(self) -> None:
        """Forgets every trajectory and what is held for it; recordings are kept."""
        self._trajectories.clear()
        self._trajectories[None] = Trajectory()

    def begin(
        self, *, steps: int | None = None, branches: int | None = None,
        sigmas: Sequence[float] | None = None, sampler: Sampler | None = None,
    ) -> None:  # fmt: skip
        """Begins a new trajectory now; later ones keep the number of steps.

        Args:
            steps: how many steps it will have.
            branches: how many calls a step takes (guidance branches). Calls are then counted: the
                timestep is not read from the device to tell steps apart, and another trajectory
                begins by itself after ``steps`` steps.
            sigmas: the noise levels of all steps and the one after the last, falling, as
                ``scheduler.sigmas`` has them; they say the number of steps too.
            sampler: what turns outputs into the next latents, EULER if left out; paying errors back needs it.

        Raises:
            StateError: for what is no number of steps, no falling row of levels of that length, so
                few steps that the policy could skip nothing, or a run that its numbers do not fit.
        """
        run = begun(self._request, steps, branches, sigmas, sampler)
        self._trajectories[self._key.get()] = run

    def give(self, **values: Any) -> None:
        """What the policy's ``given(name)`` reads on the step that begins with the next call.

        A number or a tensor by name; for one step: the step after it needs another ``give``.
        """
        self._trajectories.setdefault(self._key.get(), Trajectory()).next_given.update(values)

    def _forget_trajectory(self) -> None:
        name = self._key.get()
        known = self._trajectories.get(name)
        self._trajectories[name] = Trajectory() if known is None else known.again()

    @contextmanager
    def trajectory(self, key: Hashable) -> Iterator[None]:
        """Calls inside belong to the trajectory of this key; other keys do not see its state."""
        token = self._key.set(key)
        try:
            yield
        finally:
            self._key.reset(token)

    @contextmanager
    def cache_context(
        self, name: str | None = None, *, step_index: int | None = None,
        num_inference_steps: int | None = None, timestep: float | Tensor | None = None,
        sigma: float | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Calls inside belong to the guidance branch of this name (diffusers' own protocol).

        Args:
            step_index: the step, from 0; a smaller one than before begins a new trajectory. Without
                it steps are told apart by the timestep input, which is read from the device.
            num_inference_steps: how many steps there are.
            timestep, sigma: the noise level as a plain number, so that nothing is read for it.
        """
        said = Said.of(name, step_index, num_inference_steps, timestep, sigma)
        token = self._said.set(said)
        try:
            yield
        finally:
            self._said.reset(token)

    # ---- looking inside

    @property
    def variant(self) -> Variant:
        """The compiled form that the last call used."""
        if self._variants.last is None:
            raise StateError(
                "nothing is compiled yet: the first forward is recorded while it computes.",
                hint="Call the model once, or pass example=(args, kwargs) to compile().",
            )
        return self._variants.last

    @property
    def plan(self) -> Plan:
        """What is held, at what cost, and what the alternatives were; prints as a table."""
        plan = self.variant.plan
        if plan is None:
            raise StateError("there is no plan: no stream was found and the policy skips nothing.")
        return with_mask(plan, self.variant, self._trajectories[self._key.get()].steps)

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
        return report.explained(self, self._trajectories[self._key.get()])

    draw, frames = draw.draw, windows.frames

    def stats(self) -> report.Stats:
        """Figures of the present trajectory, or of the last if a new one has not begun."""
        return report.stats(self, self._trajectories[self._key.get()])

    @property
    def captures(self) -> int:
        """Forwards recorded so far, re-captures included."""
        return int(self._captures)
