"""Seconds of a recorded forward by a device's published rates, where nothing ran."""

from __future__ import annotations

import operator

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
    """Bytes that one operation reads and writes if each operand and result passes once.

    Views, checks and places of values move nothing; a slice write moves the slice twice.
    """
    if node.op in ("placeholder", "get_attr", "output") or node.target in _CHECKS:
        return 0
    if node.target is ops.setitem:
        value = node.args[2]
        return 2 * size_bytes(value) if isinstance(value, Node) else size_bytes(node)
    if node.target in (operator.getitem, ops.field) and "shape" not in node.args[0].meta:  # type: ignore[union-attr]
        return 0  # one of several results: counted where they are made
    read = sum(size_bytes(n) for n in node.all_input_nodes)
    made = [node] if "shape" in node.meta else [u for u in node.users if "shape" in u.meta]
    inputs = {n.meta.get("storage") for n in node.all_input_nodes}
    if made and "writes" not in node.meta and all(m.meta["storage"] in inputs for m in made):
        return 0
    if node.op == "call_module":
        owner = model.get_submodule(str(node.target).removeprefix("model."))
        read += sum(p.numel() * p.element_size() for p in owner.parameters())
    return read + sum(size_bytes(m) for m in made)


def size_bytes(node: Node) -> int:
    """Bytes of one tensor of this node's shape and dtype; 0 for what is no tensor."""
    if "shape" not in node.meta:
        return 0
    count = 1
    for size in node.meta["shape"]:
        count *= size
    return count * int(node.meta["dtype"].itemsize)
