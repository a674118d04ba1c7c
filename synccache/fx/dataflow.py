"""What each recorded operation does to a hidden state: carries it, adds to it, or uses it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from synccache.fx import ops

_CARRYING_METHODS = {
    "view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze",
    "contiguous", "clone", "to", "float", "half", "bfloat16", "double", "type", "type_as", "cpu",
    "cuda", "movedim", "swapaxes", "swapdims", "detach", "narrow", "select", "view_as",
    "reshape_as", "chunk", "split", "split_with_sizes", "unbind", "tensor_split", "requires_grad_",
    "t", "copy_",
}  # fmt: skip
_CARRYING_FUNCTIONS = {
    torch.reshape, torch.permute, torch.transpose, torch.flatten, torch.unflatten, torch.squeeze,
    torch.unsqueeze, torch.clone, torch.movedim, torch.narrow, torch.chunk, torch.split,
    torch.tensor_split, torch.unbind, torch.swapaxes, torch.select, torch.detach, operator.getitem,
    ops.check_value, ops.check_shape, ops.check_layout, ops.field,
}  # fmt: skip
_ADDITIONS = {operator.add, operator.iadd, torch.add}
_JOINS = {torch.cat, torch.concat, torch.concatenate}


def index_of(graph: Graph) -> dict[Node, int]:
    """Program order."""
    return {node: i for i, node in enumerate(graph.nodes)}


def ancestors(graph: Graph) -> dict[Node, int]:
    """For each node the set of nodes that reach it, itself included, as bits in program order."""
    reach: dict[Node, int] = {}
    for i, node in enumerate(graph.nodes):
        bits = 1 << i
        for operand in node.all_input_nodes:
            bits |= reach[operand]
        reach[node] = bits
    return reach


def carried(node: Node) -> tuple[Node, ...]:
    """The operands whose content passes through unchanged in value: views, casts, slices, joins,
    writes into part of a tensor. Empty where the operation makes something new."""
    if node.op == "call_method" and node.target in _CARRYING_METHODS:
        first = node.args[0]
        return (first,) if isinstance(first, Node) else ()
    if node.op != "call_function":
        return ()
    if node.target in _CARRYING_FUNCTIONS or node.target is getattr:
        first = node.args[0]
        return (first,) if isinstance(first, Node) else ()
    if node.target is ops.setitem:
        value = node.args[2]
        return (node.args[0], value) if isinstance(value, Node) else (node.args[0],)  # type: ignore[return-value]
    if node.target is ops.after:
        return (node.args[0], node.args[1])  # type: ignore[return-value]
    if node.target in _JOINS:
        parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
        return tuple(p for p in parts if isinstance(p, Node))  # type: ignore[union-attr]
    return ()


def addition(node: Node) -> tuple[tuple[Node, tuple[Node, ...]], ...]:
    """For a sum, each way to read it as (what is added to, what is added); empty otherwise.

    Only operands of the sum's own shape can be what is added to.
    """
    if (
        node.op == "call_function"
        and node.target in _ADDITIONS
        or (node.op == "call_method" and node.target in ("add", "add_", "__iadd__"))
    ):
        pair = list(node.args[:2])
    elif (
        node.op == "call_function"
        and node.target in (torch.addcmul,)
        or (node.op == "call_method" and node.target in ("addcmul", "addcmul_"))
    ):
        pair = [node.args[0]]
        if not isinstance(pair[0], Node) or pair[0].meta.get("shape") != node.meta.get("shape"):
            return ()
        rest = tuple(a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, Node))
        return ((pair[0], rest),)
    else:
        return ()
    if len(pair) != 2 or not all(isinstance(a, Node) for a in pair):
        return ()
    left, right = pair
    assert isinstance(left, Node) and isinstance(right, Node)
    shape = node.meta.get("shape")
    ways = []
    if left.meta.get("shape") == shape:
        ways.append((left, (right,)))
    if right.meta.get("shape") == shape:
        ways.append((right, (left,)))
    return tuple(ways)


def numel(node: Node) -> int:
    return math.prod(node.meta["shape"])


def is_attention(node: Node) -> bool:
    """Whether the operation mixes tokens by softmax weights."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return node.meta.get("attention", False)
    return any(word in name for word in ("attention", "softmax", "flash_attn", "sageattn"))


def backward_closure(starts: Iterable[Node], stop: frozenset[Node] | set[Node]) -> set[Node]:
    """Nodes that reach ``starts``, these included, not going through ``stop`` (which stay out)."""
    seen: set[Node] = set()
    todo = [n for n in starts if n not in stop]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        todo.extend(n for n in value_inputs(node) if n not in stop and n not in seen)
    return seen


_SHAPE_ONLY = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty",
}  # fmt: skip


def value_inputs(node: Node) -> tuple[Node, ...]:
    """Operands whose values matter; ``zeros_like(x)`` reads the shape of x alone."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    inputs = tuple(node.all_input_nodes)
    return inputs[1:] if name in _SHAPE_ONLY and inputs and inputs[0] is node.args[0] else inputs
