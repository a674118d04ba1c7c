"""Record one running forward as a torch.fx graph.

    h = self.proj(x)            %proj : call_module[target=model.proj](%x)
    h[:, :2] = a       ->       %setitem : call_function[setitem](%proj, (:, :2), %a)
    return h.float()            %float_1 : call_method[float](%setitem)

A ``TorchFunctionMode`` sees every torch call; tensors are known by weak identity, so that the
recording keeps no intermediate alive. Modules of ``torch.nn`` without children stay leaves.
"""

from __future__ import annotations

import operator
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from synccache.errors import CaptureError
from synccache.fx import ops
from synccache.fx.inputs import Leaf, Structure, flatten

_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "__add__": operator.add, "__sub__": operator.sub, "__mul__": operator.mul,
    "__truediv__": operator.truediv, "__floordiv__": operator.floordiv, "__mod__": operator.mod,
    "__pow__": operator.pow, "pow": operator.pow, "__matmul__": operator.matmul,
    "__neg__": operator.neg, "__getitem__": operator.getitem, "__and__": operator.and_,
    "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
    "__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge,
    "__eq__": operator.eq, "__ne__": operator.ne, "eq": operator.eq, "ne": operator.ne,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul,
    "__itruediv__": operator.itruediv, "__idiv__": operator.itruediv,
}  # fmt: skip
_REVERSED = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul,
    "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
}  # fmt: skip
_VALUE_SHAPED = {
    "nonzero", "masked_select", "unique", "unique_consecutive", "repeat_interleave", "argwhere",
    "bincount", "unique2",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Frame:
    """One call of a module that was opened: what went in, what came out, and who called it."""

    path: str
    parent: Frame | None
    arguments: Any = None  # (args, kwargs) with nodes for tensors; None if not expressible
    result: Structure | None = None
    result_nodes: list[Node] = field(default_factory=list)
    kind: str = ""
    autocast: tuple[Any, ...] = ()

    def stack(self) -> list[Frame]:
        """The frames from the outermost to this one."""
        return (self.parent.stack() if self.parent else []) + [self]


class Unplaceable(Exception):
    """A tensor that no recorded operation made; the module called at ``path`` must stay closed."""

    def __init__(self, path: str, line: str) -> None:
        super().__init__(path)
        self.path, self.line = path, line


class _FlopMode(TorchDispatchMode):
    """Adds up matrix-product FLOPs, attention on CPU included (torch's own table has it as 0)."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif "scaled_dot_product" in packet.__name__ and "backward" not in packet.__name__:
            self.total += sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
        return out


_active = threading.local()
_patch_lock = threading.Lock()
_patch_depth = 0
_module_call = nn.Module.__call__


def _recorded_module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    recorder = getattr(_active, "recorder", None)
    if recorder is None or recorder.paused:
        return _module_call(module, *args, **kwargs)
    return recorder.call_module(module, args, kwargs)


@contextmanager
def _module_calls_seen(recorder: Recorder) -> Iterator[None]:
    """``nn.Module.__call__`` reports to the recorder of its own thread; undone at the end."""
    global _patch_depth
    with _patch_lock:
        _patch_depth += 1
        nn.Module.__call__ = _recorded_module_call  # type: ignore[method-assign]
    _active.recorder = recorder
    try:
        yield
    finally:
        _active.recorder = None
        with _patch_lock:
            _patch_depth -= 1
            if _patch_depth == 0:
                nn.Module.__call__ = _module_call  # type: ignore[method-assign]


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called, not opened: torch's own, compiled, scripted or offloaded ones."""
    if isinstance(module, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule)):
        return True
    if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_hf_hook"):
        return True
    own = type(module).__module__.startswith("torch.nn.") or type(module).__module__.startswith("torch.ao.")
    return own and (isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children()))


def storage_key(tensor: torch.Tensor) -> int | None:
    """Identity of the memory a tensor lives in; None where it has none (sparse, meta subclasses)."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class Recorder(TorchFunctionMode):
    """Builds ``graph`` while a forward runs inside it. One recorder records one call."""

    def __init__(self, model: nn.Module, closed: frozenset[str], born_before: Callable[[torch.Tensor], bool]):
        super().__init__()
        self.graph = Graph()
        self.paused = False
        self.closed = closed
        self.paths = {id(m): path for path, m in model.named_modules(remove_duplicate=False)}
        self.live = _live_tensors(model)
        self.born_before = born_before
        self.constants: dict[str, Any] = {}
        self.autocast = self._autocast_state()
        self.frame = Frame("", None, autocast=self.autocast)
        self.frames = [self.frame]
        self.depends: dict[Node, int] = {}  # bit mask of placeholders that reach a node's value
        self.placeholders: list[Node] = []
        self._known: dict[int, tuple[Any, Node, Node | None]] = {}
        self._writes: dict[int, Node] = {}
        self._readers: dict[int, list[Node]] = {}
        self._flops = _FlopMode()

    # ---- running

    @contextmanager
    def recording(self) -> Iterator[None]:
        with _module_calls_seen(self), self._flops, self:
            yield

    def add_input(self, name: str, tensor: torch.Tensor) -> None:
        node = self.graph.placeholder(name)
        self.depends[node] = 1 << len(self.placeholders)
        self.placeholders.append(node)
        self._describe(node, tensor)
        self._know(tensor, node)

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.paths.get(id(module))
        if path is None:
            # a module made during the forward, or kept outside the model: its calls are seen
            return _module_call(module, *args, **kwargs)
        if path in self.closed or is_leaf(module):
            return self._call_leaf(module, path, args, kwargs)
        frame = Frame(path, self.frame, kind=type(module).__name__, autocast=self._autocast_state())
        frame.arguments = self._expressible((args, kwargs))
        self.frames.append(frame)
        self.frame = frame
        try:
            out = _module_call(module, *args, **kwargs)
        finally:
            self.frame = frame.parent  # type: ignore[assignment]
        tensors, frame.result, _ = flatten(out)
        frame.result_nodes = [self.node_of(t) for t in tensors]
        return out

    def _call_leaf(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        mapped = self._map((args, kwargs))
        self.paused = True
        try:
            return self._run(lambda: _module_call(module, *args, **kwargs), (args, kwargs), mapped,
                             lambda a, k: self.graph.call_module(f"model.{path}", a, k))  # fmt: skip
        finally:
            self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("set_grad_enabled", "_set_grad_enabled"):
            return func(*args, **kwargs)
        tensors, _, _ = flatten((args, kwargs))
        if name in ops.READERS or name in ("equal", "allclose"):
            return self._read_value(func, name, args, kwargs)
        if name in ("numpy", "__array__", "data_ptr") and any(self._depends_on(t) for t in tensors):
            raise Unplaceable(self.frame.path, _user_line())
        if name == "__deepcopy__":
            return self._run(lambda: func(*args, **kwargs), args, self._map(((args[0],), {})),
                             lambda a, k: self.graph.call_method("clone", a, k))  # fmt: skip
        probe = None
        if not tensors or _maybe_tensor_free(func, name):
            probe = func(*args, **kwargs)
            if not flatten(probe)[0]:
                return probe  # shapes, strides, dtypes: fixed by the signature
        mapped = self._map((args, kwargs))
        run = (lambda: func(*args, **kwargs)) if probe is None else (lambda: probe)
        return self._run(run, (args, kwargs), mapped, lambda a, k: self._emit(func, name, a, k))

    # ---- one operation

    def _run(self, call: Callable[[], Any], inputs: Any, mapped: Any, emit: Callable[..., Node]) -> Any:
        before, _, _ = flatten(inputs)
        versions = [_version(t) for t in before]
        flops, started = self._flops.total, time.perf_counter()
        out = call()
        seconds = time.perf_counter() - started
        written = [t for t, v in zip(before, versions) if v is not None and _version(t) != v]
        tensors, structure, _ = flatten(out)
        if not tensors and not written:
            return out
        node = emit(*mapped)
        node.meta.update(seconds=seconds, flops=self._flops.total - flops)
        reads = [self.node_of(t) for t in before]
        self.depends[node] = 0
        for read in reads:
            self.depends[node] |= self.depends[read]
        for tensor in before:
            self._readers.setdefault(storage_key(tensor) or 0, []).append(node)
        keys = {storage_key(t) for t in before}
        for tensor in written:
            self._wrote(tensor, node)
        if before and tensors and tensors[0] is before[0] and not written and _is_cast(node):
            self._forget(node)
            return out  # a cast to the type it has: dtypes are part of the signature
        self._name_results(node, tensors, structure, keys)
        if self._shape_from_values(node, mapped):
            for tensor in tensors:
                self._guard(ops.check_shape, tensor, tuple(tensor.shape))
        return out

    def _forget(self, node: Node) -> None:
        for readers in self._readers.values():
            if readers and readers[-1] is node:
                readers.pop()
        self.graph.erase_node(node)

    def _name_results(self, node: Node, tensors: list[torch.Tensor], out: Structure, keys: set[Any]) -> None:
        for tensor in tensors:
            key = storage_key(tensor)
            if key not in keys:
                self._writes.pop(key or 0, None)  # new memory: an old write there is another tensor's
        if isinstance(out.tree, Leaf):
            self._describe(node, tensors[0])
            self._know(tensors[0], node)
            return
        node.meta.update(frame=self.frame, autocast=self._autocast_state())
        for item, path in zip(tensors, _index_paths(out.tree)):
            part = node
            for step in path:
                target = getattr if isinstance(step, str) and not isinstance(out.tree, dict) else operator.getitem
                part = self.graph.call_function(target, (part, step))
                self.depends[part] = self.depends[node]
                part.meta.update(seconds=0.0, flops=0)
                self._describe(part, item)
            self._know(item, part)

    def _wrote(self, tensor: torch.Tensor, node: Node) -> None:
        key = storage_key(tensor) or 0
        node.meta["after_reads"] = [n for n in self._readers.get(key, []) if n is not node]
        node.meta["writes"] = self._known[id(tensor)][1] if id(tensor) in self._known else None
        self._readers[key] = []
        self._writes[key] = node
        self._describe(node, tensor)
        self._know(tensor, node)

    def _emit(self, func: Any, name: str, args: Any, kwargs: Any) -> Node:
        if name == "__setitem__":
            return self.graph.call_function(ops.setitem, args, kwargs)
        if name == "__get__":
            return self.graph.call_function(getattr, (args[0], func.__self__.__name__))
        if name == "__set__":
            raise CaptureError(
                f"the forward assigns `.{func.__self__.__name__}` of a tensor ({_user_line()}).",
                hint="Write with copy_() instead, or keep that module closed.",
            )
        if name == "type_as":
            return self.graph.call_method("to", (args[0], args[1].meta["dtype"]))
        if name in _REVERSED and len(args) == 2:
            return self.graph.call_function(_REVERSED[name], (args[1], args[0]))
        if name in _OPERATORS and not kwargs and len(args) in (1, 2) and isinstance(args[0], Node):
            return self.graph.call_function(_OPERATORS[name], args)
        if getattr(torch.Tensor, name, None) is func and isinstance(args[0], Node):
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def _read_value(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        if name in ("equal", "allclose"):
            if any(self._depends_on(t) for t in flatten((args, kwargs))[0]):
                mapped, extra = self._map((args, kwargs))
                if extra or len(mapped) != 2:
                    raise Unplaceable(self.frame.path, _user_line())
                node = self.graph.call_function(ops.check_same, (*mapped, name, value))
                self._mark(node, self.depends[mapped[0]])
                node.meta["guard"] = _user_line()
        elif self._depends_on(args[0]):
            self._guard(ops.check_value, args[0], name, value)
        return value

    def _guard(self, check: Callable[..., Any], tensor: torch.Tensor, *expected: Any) -> None:
        source = self.node_of(tensor)
        node = self.graph.call_function(check, (source, *expected))
        self._mark(node, self.depends[source])
        node.meta["guard"] = _user_line()
        self._describe(node, tensor)
        self._know(tensor, node)

    def _shape_from_values(self, node: Node, mapped: Any) -> bool:
        if not self.depends[node]:
            return False
        name = getattr(node.target, "__name__", str(node.target)).lstrip("_")
        if name in _VALUE_SHAPED:
            return True
        if node.target is operator.getitem:
            indices = mapped[0][1] if isinstance(mapped[0][1], tuple) else (mapped[0][1],)
            return any(isinstance(i, Node) and i.meta.get("dtype") == torch.bool for i in indices)
        return False

    # ---- tensors and nodes

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node that stands for a tensor's present value."""
        entry = self._known.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return self._find(tensor)
        reference, node, seen = entry
        write = self._writes.get(storage_key(tensor) or 0)
        if write is not None and write is not seen and write is not node:
            fresh = self.graph.call_function(ops.after, (node, write))
            self._mark(fresh, self.depends[node] | self.depends[write])
            self._describe(fresh, tensor)
            self._known[id(tensor)] = (reference, fresh, write)
            return fresh
        return node

    def _find(self, tensor: torch.Tensor) -> Node:
        target = self.live.get(id(tensor))
        if target is None or not self._still(target, tensor):
            if not self.born_before(tensor):
                raise Unplaceable(self.frame.path, _user_line())
            target = f"constants.tensor_{len(self.constants)}"
            self.constants[target.split(".")[1]] = tensor
        node = self.graph.get_attr(target)
        self._mark(node, 0)
        node.meta["frame"] = self.frames[0]
        self._describe(node, tensor, frame=self.frames[0])
        self._know(tensor, node)
        return node

    def _still(self, target: str, tensor: torch.Tensor) -> bool:
        return True

    def _know(self, tensor: torch.Tensor, node: Node) -> None:
        write = self._writes.get(storage_key(tensor) or 0)
        self._known[id(tensor)] = (torch.utils.weak.TensorWeakRef(tensor), node, write)

    def _depends_on(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, torch.Tensor) and self.depends[self.node_of(tensor)] != 0

    def _mark(self, node: Node, depends: int) -> None:
        self.depends[node] = depends
        node.meta.update(seconds=0.0, flops=0, frame=self.frame, autocast=self._autocast_state())

    def _describe(self, node: Node, tensor: torch.Tensor, frame: Frame | None = None) -> None:
        node.meta.update(
            shape=tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device,
            storage=storage_key(tensor), storage_bytes=_storage_bytes(tensor),
            frame=frame or self.frame, autocast=self._autocast_state(),
        )  # fmt: skip
        node.meta.setdefault("seconds", 0.0)
        node.meta.setdefault("flops", 0)

    def _autocast_state(self) -> tuple[Any, ...]:
        return tuple(
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in ("cpu", "cuda")
        )

    def _map(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._map(v) for v in value))
        if isinstance(value, (list, tuple)):
            return type(value)(self._map(v) for v in value)
        if isinstance(value, dict):
            return {k: self._map(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self._map(value.start), self._map(value.stop), self._map(value.step))
        if value is None or value is Ellipsis or isinstance(value, _PLAIN):
            return value
        name = f"object_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.get_attr(f"constants.{name}")
        self._mark(node, 0)
        return node

    def _expressible(self, value: Any) -> Any:
        try:
            return self._map(value) if _is_plain(value) else None
        except Unplaceable:
            return None


_PLAIN = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format, range)


def _is_cast(node: Node) -> bool:
    return node.op == "call_method" and node.target in ("to", "float", "half", "bfloat16", "double", "type")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (torch.Tensor, *_PLAIN))


def _maybe_tensor_free(func: Any, name: str) -> bool:
    return name in ("__get__", "size", "stride", "dim", "numel", "is_contiguous", "is_floating_point",
                    "is_complex", "get_device", "nelement", "ndimension", "element_size", "__len__",
                    "type", "result_type", "is_storage", "is_pinned")  # fmt: skip


def _index_paths(tree: Any) -> list[tuple[Any, ...]]:
    if isinstance(tree, Leaf):
        return [()]
    if isinstance(tree, (list, tuple)):
        return [(i, *rest) for i, v in enumerate(tree) for rest in _index_paths(v)]
    if isinstance(tree, dict):
        return [(k, *rest) for k, v in tree.items() for rest in _index_paths(v)]
    if hasattr(tree, "values") and hasattr(tree, "kind"):
        return [(k, *rest) for k, v in tree.values.items() for rest in _index_paths(v)]
    return []


def _storage_bytes(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return tensor.numel() * tensor.element_size()


def _live_tensors(model: nn.Module) -> dict[int, str]:
    """Parameters, buffers and plain tensor attributes, by identity, with the path that reads them."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        prefix = f"model.{path}." if path else "model."
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(id(value), prefix + name)
    return found


def _user_line() -> str:
    """The innermost line that is neither torch's nor ours."""
    for entry in reversed(traceback.extract_stack()):
        if "/torch/" not in entry.filename and "/synccache/fx/" not in entry.filename:
            return f"{entry.filename.rsplit('/', 1)[-1]}:{entry.lineno} `{entry.line}`"
    return "an unknown line"
