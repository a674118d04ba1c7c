"""What a module's forward refers to outside the module: class attributes, globals, closures.

COUNT = [0]                          class Block(nn.Module):
def forward(self, x):                    scale = 2.0
    COUNT[0] += 1                        def forward(self, x): return x * self.scale
"""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CODE = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type,
    property, staticmethod, classmethod, logging.Logger, nn.Module, Tensor,
)  # fmt: skip
_MANY = 100  # items of a container that are looked at

Getter = Callable[[], Any]


def outside(module: nn.Module, seen: set[Any]) -> Iterator[tuple[str, Getter]]:
    """Names and getters of plain values; each class and function is looked at once (``seen``)."""
    for kind in type(module).__mro__:
        if kind in (nn.Module, object) or kind.__module__.startswith("torch.") or kind in seen:
            continue
        seen.add(kind)
        for name, value in vars(kind).items():
            if not name.startswith("__") and _is_data(value):
                yield f"{kind.__qualname__}.{name}", partial(vars(kind).get, name)
    function = _function(module)
    if function is None or function in seen:
        return
    seen.add(function)
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or ()):
        if name != "__class__" and _is_data(_of_cell(cell)):
            yield f"{name} of {function.__qualname__}", partial(_of_cell, cell)
    for name in code.co_names:
        if name in function.__globals__ and _is_data(function.__globals__[name]):
            yield f"{name} of {function.__module__}", partial(function.__globals__.get, name)


def _function(module: nn.Module) -> types.FunctionType | None:
    """The Python function behind a module's forward, without its decorators."""
    found = vars(module).get("forward", type(module).forward)
    found = getattr(inspect.unwrap(found), "func", inspect.unwrap(found))
    found = getattr(found, "__func__", found)
    return found if isinstance(found, types.FunctionType) else None


def _is_data(value: Any) -> bool:
    if isinstance(value, (*_PLAIN, list, dict, tuple, set)):
        return True
    inside = getattr(value, "__dict__", None)
    return isinstance(inside, dict) and not isinstance(value, _CODE) and not callable(value)


def _of_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def shallow(value: Any, depth: int = 2) -> Any:
    """A value in a form that is equal while it says the same; what lies deep counts by identity."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if depth and isinstance(value, dict):
        items = list(value.items())[:_MANY]
        return (len(value), tuple((str(k), shallow(v, depth - 1)) for k, v in items))
    if depth and isinstance(value, (list, tuple)):
        return (len(value), tuple(shallow(v, depth - 1) for v in value[:_MANY]))
    inside = getattr(value, "__dict__", None)
    if depth and isinstance(inside, dict) and not isinstance(value, _CODE):
        return (id(value), shallow(inside, depth - 1))
    return "tensor" if isinstance(value, Tensor) else id(value)
