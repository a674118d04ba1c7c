"""Seconds of a recorded forward by a device's published rates, where nothing ran."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

from torch import nn
from torch.fx import Node

from synccache.fx import ops
from synccache.fx.capture import Captured
from synccache.planner.devices import Device

_CHECKS = (ops.check_value, ops.check_layout, ops.check_same, ops.check_shape, ops.after)


def estimate_seconds(model: nn.Module, captured: Captured, device: Device) -> None:
    """Writes ``seconds`` of every node by ``device``'s roofline, and the ``traffic_bytes`` used."""
    for node in captured.graph.nodes:
        node.meta["traffic_bytes"] = traffic_bytes(model, node)
        node.meta["seconds"] = device.seconds(
            node.meta.get("flops", 0), node.meta["traffic_bytes"], dtype_of(node)
        )


def dtype_of(node: Node) -> str:
    """The dtype that a node computes in, taken from its result: "bfloat16"."""
    found = [node, *node.users, *node.all_input_nodes]
    dtypes = [str(n.meta["dtype"]) for n in found if "dtype" in n.meta]
    return dtypes[0].removeprefix("torch.") if dtypes else "float32"


def traffic_bytes(model: nn.Module, node: Node) -> int:
    """Bytes that one operation reads and writes if each operand and result passes once."""
    return sum(itemsize * math.prod(shape) for itemsize, shape in traffic(model, node))


def traffic(model: nn.Module, node: Node) -> list[tuple[int, tuple[int, ...]]]:
    """(bytes of an element, shape) of each tensor that one operation reads or writes.

    Views, checks and places of values move nothing; a slice write moves the slice twice.
    """
    if node.op in ("placeholder", "get_attr", "output") or node.target in _CHECKS:
        return []
    if node.target is ops.setitem:
        value = node.args[2]
        return 2 * _moved([value]) if isinstance(value, Node) else _moved([node])
    if node.target in (operator.getitem, ops.field) and "shape" not in node.args[0].meta:  # type: ignore[union-attr]
        return []  # one of several results: counted where they are made
    made = [node] if "shape" in node.meta else [u for u in node.users if "shape" in u.meta]
    inputs = {n.meta.get("storage") for n in node.all_input_nodes}
    if made and "writes" not in node.meta and all(m.meta["storage"] in inputs for m in made):
        return []
    found = _moved([*node.all_input_nodes, *made])
    if node.op == "call_module":
        owner = model.get_submodule(str(node.target).removeprefix("model."))
        found += [(p.element_size(), tuple(p.shape)) for p in owner.parameters()]
    return found


def _moved(nodes: Iterable[Node]) -> list[tuple[int, tuple[int, ...]]]:
    return [(int(n.meta["dtype"].itemsize), n.meta["shape"]) for n in nodes if "shape" in n.meta]


def size_bytes(node: Node) -> int:
    """Bytes of one tensor of this node's shape and dtype; 0 for what is no tensor."""
    if "shape" not in node.meta:
        return 0
    count = 1
    for size in node.meta["shape"]:
        count *= size
    return count * int(node.meta["dtype"].itemsize)
