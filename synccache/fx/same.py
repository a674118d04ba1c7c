"""Whether two emitted graphs are the same program, so that one may use what the other has kept.

    recording 1:  cos = table[:4].cos()    \\
    recording 2:  t = table[:4]; t.cos()   /  one program: kept once, whatever the values are called
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node


class Program:
    """What a graph does with its inputs, without the names in it; equal where the text is equal.

    Weights and modules of the model count by their path, other objects by identity.
    """

    __slots__ = ("_hash", "_lines")

    def __init__(self, body: nn.Module, *context: Hashable) -> None:
        assert isinstance(body, GraphModule)
        self._lines = (_lines(body), repr(context))
        self._hash = hash(self._lines)  # once: the lines may be thousands

    def __eq__(self, other: object) -> bool:
        return self is other or isinstance(other, Program) and self._lines == other._lines

    def __hash__(self) -> int:
        return self._hash


class _Thing:
    """An object that equals nothing but itself; kept, so that no other takes its identity."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Thing) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _lines(body: GraphModule) -> tuple[Hashable, ...]:
    number: dict[Node, int] = {}
    lines = []
    for node in body.graph.nodes:
        number[node] = len(number)
        target = () if node.op in ("placeholder", "output") else _target(body, node)
        lines.append((node.op, target, _plain(node.args, number), _plain(node.kwargs, number)))
    return tuple(lines)


def _target(body: GraphModule, node: Node) -> Hashable:
    path = node.target
    if not isinstance(path, str):
        return _Thing(path)
    if node.op == "call_module" and not path.startswith("model."):
        child = body.get_submodule(path)
        return _lines(child) if isinstance(child, GraphModule) else _Thing(child)
    if node.op == "get_attr" and path.startswith("constants."):
        return _Thing(getattr(body.constants, path.removeprefix("constants.")))
    return path


def _plain(value: Any, number: dict[Node, int]) -> Hashable:
    """An argument in a form that is equal only where type and value are."""
    if isinstance(value, Node):
        return ("node", number[value])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(_plain(v, number) for v in value))
    if isinstance(value, dict):
        return ("dict", *((k, _plain(v, number)) for k, v in value.items()))
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return ("slice", *(_plain(v, number) for v in parts))
    return (type(value), repr(value))
