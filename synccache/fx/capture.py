"""``capture(model, args, kwargs)``: one real forward, recorded; its result goes to the caller."""

from __future__ import annotations

import gc
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node

from synccache.errors import CaptureError
from synccache.fx.ages import ages
from synccache.fx.carried import attributes, refuse_counters, refuse_read_back, same_program
from synccache.fx.device_memory import DevicePeak
from synccache.fx.frames import Frame, Unplaceable, caching_hooks, has_hooks, own_forward
from synccache.fx.inputs import Path, Structure, bind, flatten
from synccache.fx.recorder import Recorder
from synccache.fx.tensors import Lifetime, storage_key
from synccache.fx.verify import Before
from synccache.fx.written import Written, written
from synccache.planner import MEASURED

_ATTEMPTS = 12  # modules closed one by one before giving up


@dataclass(frozen=True, slots=True)
class Captured:
    """A recorded forward: an opened graph, and what is needed to call it like the model.

    ``graph`` has one placeholder per input tensor and one flat output tuple; nodes carry
    ``shape, dtype, device, seconds, flops, frame, autocast`` in ``meta``.
    """

    graph: Graph
    frames: tuple[Frame, ...]
    depends: dict[Node, int]
    placeholders: tuple[Node, ...]
    input_paths: tuple[Path, ...]  # parameter name, then keys and indices inside it
    result: Structure
    constants: dict[str, Any]
    autocast: tuple[Any, ...]
    seconds: float
    closed: tuple[str, ...]
    lifetimes: tuple[Lifetime, ...]  # of its intermediates, in order of birth
    written: tuple[Written, ...] = ()  # containers of the caller; their tensors follow the results
    generators: dict[torch.Generator, torch.Tensor] = field(default_factory=dict)  # state before
    draws: bool = False  # random numbers
    shapes_only: bool = False  # recorded without values: for planning, never to run
    seconds_source: str = MEASURED
    device_peak: int | None = None  # bytes, by the device's allocator; None: not known
    split: tuple[str, ...] = ()  # branches taken apart: equal to the model but for rounding

    @property
    def rewinds(self) -> bool:
        """Whether a run that stops at a guard has changed inputs or random state by then."""
        nodes = self.graph.nodes
        inputs = {n.meta["storage"] for n in self.placeholders}
        return any("guard" in n.meta for n in nodes) and (
            self.draws or any("writes" in n.meta and n.meta.get("storage") in inputs for n in nodes)
        )

    def parameter_of(self, placeholder: Node) -> str:
        """The forward parameter that a placeholder came from."""
        return self.input_paths[self.placeholders.index(placeholder)][0]


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    closed: frozenset[str] = frozenset(),
) -> tuple[Any, Captured]:
    """The forward's own result, and its recording.

    Args:
        closed: paths of modules that must not be opened.

    Raises:
        CaptureError: a tensor appears that no recorded operation made, and closing the module it
            appears in does not help.
    """
    arguments = bind(own_forward(model), args, kwargs)
    marks, given = attributes(model, closed), Before(flatten(arguments)[0], arguments)
    dice = _dice()
    out, captured, recorder = _closing(model, args, kwargs, closed, frozenset(), given)
    left = attributes(model, captured.closed)
    kept = _kept(recorder, (out, arguments))
    inside = tuple(f"{path}." for path in captured.closed)
    drew = _dice() != dice
    if (
        left == {n: m for n, m in marks.items() if not n.startswith(inside)}
        and not kept
        and not drew
    ):
        return out, captured
    changed = Before(given.tensors)  # the caller sees one forward's writes, not two
    changed.generators = {g: g.get_state() for g in given.generators}
    given.restore()
    again = frozenset(captured.closed), frozenset(id(t) for t, _ in kept)
    _, second, later = _closing(model, args, kwargs, *again, given)
    changed.restore()
    where = type(model).__name__
    refuse_read_back(kept, later.read.values(), where)
    same = same_program(captured.graph, second.graph)
    refuse_counters(left, attributes(model, captured.closed), where, same=same)
    if drew and not same:
        raise CaptureError(
            "the forward draws numbers from Python's or numpy's random generator, which a recording "
            "would repeat.", where=where, hint="Draw with torch, or name that module in leaves=[...].",
        )  # fmt: skip
    return out, captured if same else second


def _dice() -> Any:
    """State of the random generators that torch does not see."""
    state: dict[str, Any] = np.random.get_state(legacy=False)
    inner = state["state"]
    return random.getstate(), inner["pos"], inner["key"].tobytes()


def _kept(recorder: Recorder, out: Any) -> list[tuple[torch.Tensor, bool]]:
    """Tensors that the forward made and something still holds, and whether inputs reach them."""
    results = flatten(out)[0]
    if any(t.requires_grad for t in results):
        return []  # the backward graph holds them
    own = {id(t) for r in results for t in (r, r._base)}
    memory = {storage_key(r) for r in results}

    def is_result(tensor: torch.Tensor) -> bool:  # a fake view's base is another object each time
        fake = isinstance(tensor, FakeTensor) and storage_key(tensor) in memory
        return id(tensor) in own or fake

    if all(is_result(t) for t, _ in recorder.survivors()):
        return []
    gc.collect(1)  # what only a circle of references holds is not kept
    return [(t, recorder.depends[n] != 0) for t, n in recorder.survivors() if not is_result(t)]


def _closing(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], closed: frozenset[str],
    fixed: frozenset[int], given: Before,
) -> tuple[Any, Captured, Recorder]:  # fmt: skip
    """Records, with modules closed one by one where tensors appear from nowhere."""
    for _ in range(_ATTEMPTS):
        try:
            with ages() as born_before:
                return _record(model, args, kwargs, closed, born_before, fixed, given)
        except Unplaceable as problem:
            if problem.path == "" or problem.path in closed:
                raise CaptureError(
                    f"a tensor appears at {problem.line} that {problem.what}.",
                    where=type(model).__name__,
                    hint="Move that code into a sub-module; synccache then calls it as a whole.",
                ) from problem
            closed = closed | {problem.path}
            given.restore()
    raise CaptureError(
        f"{len(closed)} modules had to stay closed and more are needed: {sorted(closed)}.",
        where=type(model).__name__,
    )


def _record(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], closed: frozenset[str],
    born_before: Callable[[torch.Tensor], bool], fixed: frozenset[int], given: Before,
) -> tuple[Any, Captured, Recorder]:  # fmt: skip
    forward = own_forward(model)
    arguments = bind(forward, args, kwargs)
    tensors, _, paths = flatten(arguments)

    recorder = Recorder(model, closed, born_before, fixed, given.generators)
    for tensor, path in zip(tensors, paths):
        recorder.add_input(_identifier("_".join(path)), tensor)
    if has_hooks(model):
        raise CaptureError(
            f"{type(model).__name__} has {len(model._forward_hooks) + len(model._forward_pre_hooks)} "
            "forward hooks on the model itself, which the captured forward would bypass.",
            hint="Remove them, or put them on a sub-module.",
        )
    watched = DevicePeak.begin(tensors)
    if caching_hooks(model):
        raise CaptureError(
            f"diffusers' own caching is enabled on the model ({', '.join(caching_hooks(model))}); two "
            "caches would answer for each other.",
            where=type(model).__name__, hint="Call model.disable_cache() first.",
        )  # fmt: skip
    started = time.perf_counter()
    with recorder.recording():
        out = forward(*args, **kwargs)
        results, structure, _ = flatten(out)
        recorder.paused = True
        further, writes = written(given.containers, type(model).__name__)
        nodes = tuple(recorder.node_of(t) for t in (*results, *further))
    seconds = time.perf_counter() - started
    recorder.graph.output(nodes)
    for position, node in enumerate(recorder.graph.nodes):
        node.meta["position"] = position
    captured = Captured(
        graph=recorder.graph, frames=tuple(recorder.frames), depends=recorder.depends,
        placeholders=tuple(recorder.placeholders), input_paths=tuple(paths), result=structure,
        constants=recorder.constants, autocast=recorder.autocast, seconds=seconds,
        closed=tuple(sorted(closed)), lifetimes=recorder.watch.lifetimes.stop(),
        device_peak=watched.end(), written=tuple(writes), generators=dict(given.generators),
        draws=given.drawn(),
    )  # fmt: skip
    return out, captured, recorder


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name) or "input"


class Constants(nn.Module):
    """Holds tensors and objects that the recorded forward met and that no module owns."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        for name, value in values.items():
            object.__setattr__(self, name, value)


def graph_module(
    model: nn.Module, constants: dict[str, Any], graph: Graph, name: str,
    children: dict[str, nn.Module] | None = None,
) -> GraphModule:  # fmt: skip
    """A ``GraphModule`` that refers to the model's own modules instead of copying them."""
    root = nn.Module()
    root.model = model
    root.constants = Constants(constants)
    for child, value in (children or {}).items():
        setattr(root, child, value)
    module = GraphModule(root, graph, class_name=name)
    for child, value in (("model", model), ("constants", root.constants)):
        module._modules.pop(child, None)
        setattr(module, child, value)
    return module
