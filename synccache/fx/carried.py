"""What a forward leaves behind on its model, and whether a later forward would read it.

A recorded graph runs operations, not the Python between them: ``self.step += 1`` and
``self.cache = h`` would be lost. Harmless if nobody reads them; right to keep as constants where a
table is filled once; refused where one forward hands values to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from synccache.errors import CaptureError
from synccache.fx import ops
from synccache.fx.frames import is_leaf, user_line
from synccache.fx.outside import outside, shallow

_OWN = frozenset(vars(nn.Module()))
_DEPTH = 3  # of containers inside an attribute
_MANY = 1000  # items of a container that are looked at
_OVERWRITES = ("copy_", "zero_", "fill_")
_HINT = "Pass such values as arguments, or reset them inside forward."


def attributes(model: nn.Module, closed: Collection[str] = ()) -> dict[str, Any]:
    """Plain attributes of opened modules by path, in a form that is equal while they are; and what
    their forwards refer to outside them.

    Modules called whole, and all inside them, keep their state alive themselves.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()
    known: set[Any] = set()

    def visit(path: str, module: nn.Module) -> None:
        if id(module) in seen or path and (path in closed or is_leaf(module)):
            return
        seen.add(id(module))
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if name not in _OWN:
                found[prefix + name] = _mark(value, 0)
        for name, get in outside(module, known):
            found[name] = shallow(get())
        for name, child in module._modules.items():
            if child is not None:
                visit(prefix + name, child)

    visit("", model)
    return found


def _mark(value: Any, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return _Tensor(id(value))
    if isinstance(value, dict) and depth < _DEPTH:
        items = list(value.items())[:_MANY]
        return (len(value), tuple((str(k), _mark(v, depth + 1)) for k, v in items))
    if isinstance(value, (list, tuple, set)) and depth < _DEPTH:
        return (len(value), tuple(_mark(v, depth + 1) for v in list(value)[:_MANY]))
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    return id(value)


class _Tensor(int):
    """Identity of a tensor."""


def _without_tensors(mark: Any) -> Any:
    if isinstance(mark, _Tensor):
        return "tensor"
    if isinstance(mark, tuple):
        return tuple(_without_tensors(m) for m in mark)
    return mark


def refuse_counters(
    first: Mapping[str, Any], second: Mapping[str, Any], where: str, *, same: bool
) -> None:
    """Refuses plain attributes that two equal forwards left different.

    A list or dict that only grew (a log) is let pass where both forwards were the ``same`` program.
    """
    for name, mark in second.items():
        before, now = _without_tensors(first.get(name)), _without_tensors(mark)
        if before != now and not (same and _grew(before, now)):
            raise CaptureError(
                f"every forward changes `{name}`, which a later forward may read.",
                where=where, hint=_HINT,
            )  # fmt: skip


def _grew(before: Any, now: Any) -> bool:
    """Whether a container's mark has the earlier items first, and more."""
    both = isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now) == 2
    if not both or not all(
        isinstance(m[0], int) and isinstance(m[1], tuple) for m in (before, now)
    ):
        return False
    return before[0] < now[0] and now[1][: len(before[1])] == before[1]


def refuse_read_back(
    kept: Iterable[tuple[torch.Tensor, bool]], read: Iterable[torch.Tensor], where: str
) -> None:
    """Refuses tensors that one forward made from its inputs (True) and the next one reads."""
    made = {id(tensor) for tensor, from_inputs in kept if from_inputs}
    for tensor in read:
        if id(tensor) in made:
            raise CaptureError(
                f"a forward keeps a tensor {list(tensor.shape)} made from its inputs, and the next "
                "forward reads it.", where=where, hint=_HINT,
            )  # fmt: skip


def refuse_changed_state(owner: str, node: Node, readers: Iterable[Node]) -> None:
    """Refuses a write ``node`` to the model's tensor ``owner``, unless it is written whole before
    anything but its mention (``readers``) has used it."""
    overwrites = node.target is ops.setitem or node.target in _OVERWRITES
    if not overwrites or any(n.op != "get_attr" for n in readers):
        raise CaptureError(
            f"the forward changes `{owner.removeprefix('model.')}` of the model in place "
            f"({user_line()}), which a later forward would read.",
            hint="Keep such state outside forward, or put the code into a sub-module of torch.nn's own kind.",
        )


def same_program(a: Graph, b: Graph) -> bool:
    """Whether two recordings are the same operations on the same things."""
    return _text(a) == _text(b)


def _text(graph: Graph) -> list[str]:
    return [f"{n.name} {n.op} {n.target} {n.args} {n.kwargs}" for n in graph.nodes]
