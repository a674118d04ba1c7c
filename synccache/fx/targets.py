"""How a seen torch call is written into a graph: targets that print well, where there are any.

Tensor.add(x, y), Tensor.__add__(x, y)   ->   x + y
Tensor.__setitem__(x, i, y)              ->   setitem(x, i, y), which returns x
Tensor.real.__get__(x)                   ->   getattr(x, 'real')
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, Node

from synccache.errors import CaptureError
from synccache.fx import ops
from synccache.fx.frames import user_line

_OPERATORS: dict[str, Callable[..., Any]] = {
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
_REVERSED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul,
    "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
}  # fmt: skip
LEAVES_TORCH = ("numpy", "__array__", "data_ptr", "__dlpack__")  # what gives memory away
OVERWRITES = ("copy_", "zero_", "fill_")
PLAIN = (  # what a graph writes down as it is
    int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format,
    range,
)  # fmt: skip
_CASTS = {"to", "float", "half", "bfloat16", "double", "type"}
_VALUE_SHAPED = {
    "nonzero", "masked_select", "unique", "unique_consecutive", "repeat_interleave", "argwhere",
    "bincount", "unique2",
}  # fmt: skip
_FACTS = {
    "__get__", "size", "stride", "dim", "numel", "is_contiguous", "is_floating_point", "is_complex",
    "get_device", "nelement", "ndimension", "element_size", "__len__", "type", "result_type",
    "is_storage", "is_pinned", "is_same_size", "is_signed", "storage_offset", "dim_order",
}  # fmt: skip


def write_call(graph: Graph, func: Any, name: str, args: Any, kwargs: Any) -> Node:
    """A node for one torch call whose tensors are nodes already."""
    if name == "__setitem__":
        return _call(graph, ops.setitem, args, kwargs)
    if name == "__get__":
        return _call(graph, getattr, (args[0], func.__self__.__name__), {})
    if name == "type_as":
        return _call(graph, "to", (args[0], args[1].meta["dtype"]), {})
    if name in _REVERSED and len(args) == 2:
        return _call(graph, _REVERSED[name], (args[1], args[0]), {})
    if name in _OPERATORS and not kwargs and len(args) in (1, 2) and isinstance(args[0], Node):
        return _call(graph, _OPERATORS[name], args, {})
    if getattr(torch.Tensor, name, None) is func and isinstance(args[0], Node):
        return _call(graph, name, args, kwargs)
    return _call(graph, func, args, kwargs)


def refuse_assignment(attribute: str) -> None:
    """Refuses ``x.data = y`` and its like, which give a tensor other memory."""
    if attribute not in ("requires_grad", "grad"):
        raise CaptureError(
            f"the forward assigns `.{attribute}` of a tensor ({user_line()}).",
            hint="Write with copy_() instead, or keep that module closed.",
        )


def _call(graph: Graph, target: Any, args: Any, kwargs: Any) -> Node:
    op = "call_method" if isinstance(target, str) else "call_function"
    return graph.create_node(op, target, args, kwargs, name=_name(target))


@cache
def _name(target: Any) -> str:
    """A node's name by its target; left to torch.fx, it is spelled anew for every node."""
    name = target if isinstance(target, str) else target.__name__
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name.strip("_")).lower() or "call"


def tells_facts(name: str) -> bool:
    """Whether a call may ask for what an input signature fixes, and give no tensor."""
    return name in _FACTS


def is_cast(node: Node) -> bool:
    return node.op == "call_method" and node.target in _CASTS


def shape_from_values(node: Node, args: Any) -> bool:
    """Whether the shape of a call's result depends on the values of its operands."""
    name = getattr(node.target, "__name__", str(node.target)).lstrip("_")
    if name in _VALUE_SHAPED or name == "where" and len(args) == 1:
        return True
    if node.target is operator.getitem:
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        dtypes = [i.meta.get("dtype") for i in indices if isinstance(i, Node)]
        return torch.bool in dtypes or torch.uint8 in dtypes
    return False


def is_plain(value: Any) -> bool:
    """Whether a value is made of tensors, ``PLAIN`` and the containers that a graph can hold."""
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    if type(value) is dict:
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (torch.Tensor, *PLAIN))
