"""Record one running forward as a torch.fx graph.

    h = self.proj(x)            %proj : call_module[target=model.proj](%x)
    h[:, :2] = a       ->       %setitem : call_function[setitem](%proj, (:, :2), %a)
    return h.float()            %float_1 : call_method[float](%setitem)

A ``TorchFunctionMode`` sees every torch call; tensors are known by weak identity, so that the
recording keeps no intermediate alive. Modules of ``torch.nn`` without children stay leaves.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from synccache.fx import ops
from synccache.fx.carried import refuse_changed_state
from synccache.fx.frames import (
    Frame,
    Unplaceable,
    autocast_state,
    is_leaf,
    is_offloaded,
    is_opaque,
    module_calls_seen,
    plain_module_call,
    stance,
    user_line,
)
from synccache.fx.inputs import flatten, index_paths, tensors_of
from synccache.fx.subject import main_module
from synccache.fx.targets import (
    LEAVES_TORCH,
    PLAIN,
    is_cast,
    is_plain,
    refuse_assignment,
    shape_from_values,
    tells_facts,
    write_call,
)
from synccache.fx.tensors import Memories, facts, live_tensors, storage_key, version_of, watch

_Unseen = torch._C.DisableTorchFunction  # bookkeeping asks tensors for facts; no mode need see it
_ATOMS = frozenset((*PLAIN, type(None), bool))
_Operand = tuple[torch.Tensor, Node]


class Recorder(TorchFunctionMode):
    """Builds ``graph`` while a forward runs inside it. One recorder records one call."""

    def __init__(
        self, model: nn.Module, closed: frozenset[str], born_before: Callable[[torch.Tensor], bool],
        fixed: frozenset[int], generators: dict[torch.Generator, torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.graph = Graph()
        self.paused = False
        self.closed = closed
        self.paths = {id(m): path for path, m in model.named_modules(remove_duplicate=False)}
        self.live = {k: v for k, v in live_tensors(model).items() if k not in fixed}
        self._given: set[int] = set()  # inputs
        self.read: dict[str, torch.Tensor] = {}  # weights and constants that were used, by target
        self.born_before = born_before
        self.constants: dict[str, Any] = {}
        self.autocast = autocast_state()
        self.frames = [Frame("", None, autocast=self.autocast)]
        self.frame = self.frames[0]
        self.depends: dict[Node, int] = {}  # bit mask of placeholders that reach a node's value
        self.placeholders: list[Node] = []
        self._known: dict[int, tuple[Any, Node, Node | None]] = {}
        self._memories = Memories()
        self._writes: dict[int, Node] = {}  # memory -> the last write to it
        self._readers: dict[int, list[Node]] = {}  # memory -> who read it since
        self._hidden: dict[int, Node] = {}  # storage key -> the call that wrote to it unasked
        self._owned: dict[int, str] = {}  # memory -> the model's tensor in it
        self.watch = watch()
        self._main, self.generators = main_module(model), generators
        self._brought = {f"model.{name}" for name in model._parameters if is_offloaded(model)}

    @contextmanager
    def recording(self) -> Iterator[None]:
        with stance("force_eager"), module_calls_seen(self), self.watch, self:
            yield

    def add_input(self, name: str, tensor: torch.Tensor) -> None:
        node = self.graph.placeholder(name)
        self.depends[node] = 1 << len(self.placeholders)
        self.placeholders.append(node)
        self._given.add(id(tensor))
        self._describe(node, tensor)
        self._know(tensor, node)

    def survivors(self) -> list[tuple[torch.Tensor, Node]]:
        """Tensors made by the forward that something still holds, with their nodes."""
        old = self._given | {id(t) for t in self.read.values()}
        found = ((reference(), node) for reference, node, _ in self._known.values())
        return [(t, n) for t, n in found if t is not None and id(t) not in old]

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.paths.get(id(module))
        if path is not None and (path in self.closed or is_leaf(module)):
            return self._call_leaf(module, path, args, kwargs)
        if path is None or path == self._main:  # made meanwhile, or the function's own model
            return plain_module_call(module, *args, **kwargs)
        with _Unseen():
            frame = Frame(path, self.frame, kind=type(module).__name__, autocast=autocast_state())
            frame.arguments = self._expressible((args, kwargs))
        self.frames.append(frame)
        self.frame = frame
        try:
            out = plain_module_call(module, *args, **kwargs)
        finally:
            self.frame = frame.parent  # type: ignore[assignment]
        with _Unseen():
            tensors, frame.result, _ = flatten(out)
            frame.result_nodes = [self.node_of(t) for t in tensors]
        return out

    def _call_leaf(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        with _Unseen():
            mapped, operands = self._operands((args, kwargs))
            known = {id(t) for t, _ in operands}
            if any(id(t) not in known and self._depends_on(t) for t in tensors_of((args, kwargs))):
                raise Unplaceable(self.frame.path, user_line(), f"an object carries into {path}")
        opaque = path in self.closed or is_opaque(module)

        def emit(a: Any, k: Any) -> Node:
            node = self.graph.call_module(f"model.{path}", a, k)
            node.meta["opaque"] = opaque
            return node

        self.paused = True
        try:
            with stance("default") if opaque or module._compiled_call_impl else nullcontext():
                out = self._run(lambda: plain_module_call(module, *args, **kwargs), mapped, operands, emit)  # fmt: skip
        finally:
            self.paused = False
        for tensor in flatten(out)[0] if path in self.closed else ():
            if self._depends_on(tensor):
                self._guard(ops.check_shape, tensor, tuple(tensor.shape))
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.paused:
            return func(*args, **kwargs)
        if name == "__set__" and id(args[0]) not in self.live and self._depends_on(args[0]):
            refuse_assignment(func.__self__.__name__)
        if name == "__get__":  # x.shape, x.dtype, x.device: fixed by the signature; x.T, x.real
            probe = func(*args, **kwargs)
            if not isinstance(probe, torch.Tensor):
                return probe
            return self._run_function(func, name, args, kwargs, probe)
        if name in ops.READERS or name in ops.COMPARISONS:
            return self._read_value(func, name, args, kwargs)
        if name in LEAVES_TORCH and any(self._depends_on(t) for t in tensors_of((args, kwargs))):
            func(*args, **kwargs)  # refused there, where the recording has shapes only
            raise Unplaceable(self.frame.path, user_line())
        if name == "__deepcopy__":
            return self._run(lambda: func(*args, **kwargs), *self._operands(((args[0],), {})),
                             lambda a, k: self.graph.call_method("clone", a, k))  # fmt: skip
        probe, generator = None, kwargs.get("generator")
        if generator is not None:
            self.generators.setdefault(generator, generator.get_state())
        if tells_facts(name) or not tensors_of((args, kwargs)):
            probe = func(*args, **kwargs)
            if not tensors_of(probe):
                if name in ops.LAYOUTS and self._depends_on(args[0]):
                    self._guard(ops.check_layout, args[0], name, probe, *args[1:])
                return probe  # shapes and dtypes are fixed by the signature
        return self._run_function(func, name, args, kwargs, probe)

    def _run_function(self, func: Any, name: str, args: Any, kwargs: Any, probe: Any) -> Any:
        run = (lambda: func(*args, **kwargs)) if probe is None else (lambda: probe)
        return self._run(run, *self._operands((args, kwargs)),
                         lambda a, k: write_call(self.graph, func, name, a, k))  # fmt: skip

    def _run(
        self, call: Callable[[], Any], mapped: Any, operands: list[_Operand], emit: Callable[..., Node]
    ) -> Any:  # fmt: skip
        watching = self.watch
        with _Unseen():
            versions = [version_of(t) for t, _ in operands]
        watching.written.clear()
        flops, started = watching.flops, time.perf_counter()
        out = call()
        seconds = time.perf_counter() - started
        with _Unseen():
            written = [
                t for (t, _), v in zip(operands, versions)
                if watching.written and storage_key(t) in watching.written
                or v is not None and version_of(t) != v
            ]  # fmt: skip
            tensors = tensors_of(out)
            if not tensors and not written:
                return out
            node = emit(*mapped)
            node.meta.update(seconds=seconds, flops=watching.flops - flops)
            self._record(node, operands, out, tensors, written)
            if self.depends.get(node) and shape_from_values(node, mapped[0]):
                for tensor in tensors:
                    self._guard(ops.check_shape, tensor, tuple(tensor.shape))
        return out

    def _record(
        self, node: Node, operands: list[_Operand], out: Any, tensors: list[torch.Tensor],
        written: list[torch.Tensor],
    ) -> None:  # fmt: skip
        if operands and out is operands[0][0] and not written and is_cast(node):
            self.graph.erase_node(node)
            return  # a cast to the type it has: dtypes are part of the signature
        depends = 0
        for _, read in operands:
            depends |= self.depends[read]
            self._readers.setdefault(read.meta["storage"], []).append(node)
        self.depends[node] = depends
        if self.watch.written:
            self._hide(node, self.watch.written - {storage_key(t) for t, _ in operands})
        self._wrote(node, written)
        self._name_results(node, tensors, out)
        self._name_written(node, written, tensors)

    def _name_results(self, node: Node, tensors: list[torch.Tensor], out: Any) -> None:
        if isinstance(out, torch.Tensor):
            self._describe(node, out)
            self._know(out, node)
            return
        node.meta.update(frame=self.frame, autocast=autocast_state())
        for item, path in zip(tensors, index_paths(flatten(out)[1].tree)):
            part = node
            for step in path:
                function = ops.field if isinstance(step, str) else operator.getitem
                part = self.graph.call_function(function, (part, step))
                self.depends[part] = self.depends[node]
                part.meta.update(seconds=0.0, flops=0)
                self._describe(part, item)
            self._know(item, part)

    def _wrote(self, node: Node, written: list[torch.Tensor]) -> None:
        """Notes an in-place write: who read that memory before, and that it is newer now."""
        for tensor in written:
            memory = self._memories.of(tensor)
            readers = [n for n in self._readers.get(memory, []) if n is not node]
            if memory in self._owned:
                refuse_changed_state(self._owned[memory], node, readers)
            node.meta["after_reads"] = [*node.meta.get("after_reads", ()), *readers]
            node.meta["writes"] = self._known[id(tensor)][1]
            self._readers[memory] = []
            self._writes[memory] = node

    def _name_written(
        self, node: Node, written: list[torch.Tensor], results: list[torch.Tensor]
    ) -> None:
        """A written tensor's present value: the call itself where it returns that tensor."""
        returned = {id(t) for t in results}
        for tensor in written:
            if id(tensor) in returned:
                continue
            if node.target is ops.setitem and tensor is written[0]:
                self._describe(node, tensor)
                self._know(tensor, node)
            else:
                node.meta.setdefault("frame", self.frame)
                node.meta.setdefault("autocast", autocast_state())
                self.node_of(tensor)

    def _hide(self, node: Node, keys: set[int]) -> None:
        """Writes to memory that is no operand: whoever reads it later reads it after this call."""
        for key in keys:
            self._hidden[key] = node
            memory = self._memories.number(key)
            if memory is not None:
                self._writes[memory] = node

    def _read_value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        if name in ops.COMPARISONS:
            if any(self._depends_on(t) for t in flatten((args, kwargs))[0]):
                mapped, extra = self._map((args, kwargs), [])
                if extra or len(mapped) != 2:
                    raise Unplaceable(self.frame.path, user_line())
                node = self.graph.call_function(ops.check_same, (*mapped, name, value))
                nodes = [m for m in mapped if isinstance(m, Node)]
                self._mark(node, self.depends[nodes[0]] | self.depends[nodes[-1]])
                node.meta["guard"] = user_line()
        elif self._depends_on(args[0]):
            self._guard(ops.check_value, args[0], name, value)
        return value

    def _guard(self, check: Callable[..., Any], tensor: torch.Tensor, *expected: Any) -> None:
        source = self.node_of(tensor)
        node = self.graph.call_function(check, (source, *expected))
        self._mark(node, self.depends[source])
        node.meta["guard"] = user_line()
        self._describe(node, tensor)
        self._know(tensor, node)

    # ---- tensors and nodes

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node that stands for a tensor's present value."""
        entry = self._known.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return self._find(tensor)
        _, node, seen = entry
        write = self._writes.get(node.meta["storage"])
        if write is not None and write is not seen and write is not node:
            return self._renew(tensor, node, write)
        return node

    def _renew(self, tensor: torch.Tensor, node: Node, write: Node) -> Node:
        fresh = self.graph.call_function(ops.after, (node, write))
        self._mark(fresh, self.depends[node] | self.depends[write])
        self._describe(fresh, tensor)
        self._known[id(tensor)] = (TensorWeakRef(tensor), fresh, write)
        return fresh

    def _find(self, tensor: torch.Tensor) -> Node:
        target = self.live.get(id(tensor))
        if target is None:
            if not self.born_before(tensor):
                raise Unplaceable(self.frame.path, user_line())
            target = f"constants.tensor_{len(self.constants)}"
            self.constants[target.split(".")[1]] = tensor
        self.read[target] = tensor
        node = self.graph.get_attr(target)
        self._mark(node, 0)
        self._describe(node, tensor, frame=self.frames[0])
        node.meta["opaque"] = target in self._brought
        self._owned[node.meta["storage"]] = target
        self._know(tensor, node)
        write = self._hidden.get(storage_key(tensor) or 0)
        return node if write is None else self._renew(tensor, node, write)

    def _know(self, tensor: torch.Tensor, node: Node) -> None:
        write = self._writes.get(node.meta["storage"])
        self._known[id(tensor)] = (TensorWeakRef(tensor), node, write)

    def _depends_on(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, torch.Tensor) and self.depends[self.node_of(tensor)] != 0

    def _mark(self, node: Node, depends: int) -> None:
        self.depends[node] = depends
        node.meta.update(seconds=0.0, flops=0, frame=self.frame, autocast=autocast_state())

    def _describe(self, node: Node, tensor: torch.Tensor, frame: Frame | None = None) -> None:
        where = {"frame": frame or self.frame, "birth": self.watch.lifetimes.birth(tensor)}
        node.meta.update(facts(tensor, self._memories), autocast=autocast_state(), **where)
        node.meta = {"seconds": 0.0, "flops": 0, **node.meta}

    def _operands(self, value: Any) -> tuple[Any, list[_Operand]]:
        """A value with nodes for its tensors, and the tensors with their nodes."""
        met: list[_Operand] = []
        return self._map(value, met), met

    def _map(self, value: Any, met: list[_Operand]) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if isinstance(value, torch.Tensor):
            node = self.node_of(value)
            met.append((value, node))
            return node
        if kind is tuple or kind is list:
            return kind([self._map(v, met) for v in value])
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._map(v, met) for v in value))
        if isinstance(value, (list, tuple)):
            return type(value)([self._map(v, met) for v in value])
        if isinstance(value, dict):
            return {k: self._map(v, met) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*(self._map(v, met) for v in (value.start, value.stop, value.step)))
        if value is None or value is Ellipsis or isinstance(value, PLAIN):
            return value
        name = f"object_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.get_attr(f"constants.{name}")
        self._mark(node, 0)
        return node

    def _expressible(self, value: Any) -> Any:
        try:
            return self._map(value, []) if is_plain(value) else None
        except Unplaceable:
            return None
