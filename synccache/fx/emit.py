"""Recorded operations written out as graphs again, whole modules as one call wherever possible.

An opened module is emitted as ``call_module`` of the model's own module if nothing cuts it (so that
hooks, LoRA and compiled blocks keep working), as a call of a small graph of its own if only
invariant parts were taken out of it, and operation by operation otherwise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from synccache.fx import ops
from synccache.fx.capture import Captured, graph_module
from synccache.fx.frames import Frame
from synccache.fx.inputs import Leaf, index_paths

Key = Hashable  # a recorded node, or the name of a gate


@dataclass(eq=False, slots=True)
class Item:
    """One line of an emitted graph.

    Attributes:
        position: place in the recorded program; the order is kept where data flow leaves a choice.
        uses, defs: recorded nodes (or gate names) needed and made.
        inside: recorded nodes that run as part of it.
        write: emits the line into a graph, given where needed values are found; returns new values.
    """

    position: float
    uses: frozenset[Key]
    defs: frozenset[Key]
    inside: frozenset[Node]
    write: Callable[[Graph, Callable[[Key], Node]], dict[Key, Node]]
    autocast: tuple[Any, ...] | None = None


def is_free(node: Node) -> bool:
    """Whether a node can be repeated wherever it is needed: a reference to a weight or constant."""
    return node.op == "get_attr"


def node_item(node: Node) -> Item:
    """One recorded operation as it was."""

    def write(graph: Graph, value: Callable[[Key], Node]) -> dict[Key, Node]:
        called = node.op == "call_module"
        path = str(node.target).removeprefix("model.").replace(".", "_")
        name = path if called else node.name
        new = graph.create_node(
            node.op, node.target, map_arg(node.args, value), map_arg(node.kwargs, value), name=name
        )
        _carry_facts(node, new)
        return {node: new}

    uses = frozenset(n for n in node.all_input_nodes)
    return Item(
        node.meta["position"],
        uses,
        frozenset({node}),
        frozenset({node}),
        write,
        node.meta.get("autocast"),
    )


def call_item(frame: Frame, inside: frozenset[Node]) -> Item:
    """A whole module call."""
    assert frame.result is not None
    made = [n for n in frame.result_nodes if n in inside]

    def write(graph: Graph, value: Callable[[Key], Node]) -> dict[Key, Node]:
        args, kwargs = map_arg(frame.arguments, value)
        call = graph.create_node(
            "call_module", f"model.{frame.path}", args, kwargs, name=frame.path.replace(".", "_")
        )
        call.meta["origin"] = frame.path
        out: dict[Key, Node] = {}
        assert frame.result is not None
        for node, path in zip(frame.result_nodes, index_paths(frame.result.tree)):
            if node not in inside:
                continue
            part = call
            for step in path:
                function = ops.field if isinstance(step, str) else ops.item
                part = graph.call_function(function, (part, step))
            if node not in out:
                out[node] = part
                _carry_facts(node, part)
        return out

    uses = frozenset(nodes_in(frame.arguments))
    return Item(
        min(n.meta["position"] for n in inside),
        uses,
        frozenset(made),
        inside,
        write,
        frame.autocast,
    )


def _carry_facts(old: Node, new: Node) -> None:
    for key in ("shape", "dtype"):
        if key in old.meta:
            new.meta[key] = old.meta[key]
    frame = old.meta.get("frame")
    new.meta.setdefault("origin", frame.path if frame is not None else "")


def nodes_in(value: Any) -> list[Node]:
    found: list[Node] = []

    def see(node: Node) -> Node:
        found.append(node)
        return node

    map_arg(value, see)
    return found


class Emitter:
    """Places recorded nodes into units (top, regions, invariants) and builds a graph per unit."""

    def __init__(self, model: nn.Module, captured: Captured, unit_of: dict[Node, Hashable],
                 visible: Callable[[Node, Hashable], bool], probed: frozenset[Node] = frozenset()) -> None:  # fmt: skip
        """``probed`` nodes are read by what is not recorded: they stay visible, wherever they are."""
        self.model, self.captured, self.unit_of, self.visible = model, captured, unit_of, visible
        self.probed = probed
        self.contents: dict[Frame, list[Node | Frame]] = {f: [] for f in captured.frames}
        self.inside: dict[Frame, set[Node]] = {f: set() for f in captured.frames}
        entered: set[Frame] = set()
        for node in captured.graph.nodes:
            if node in unit_of:
                self._enter(node.meta["frame"], entered)
                self.contents[node.meta["frame"]].append(node)
                for frame in node.meta["frame"].stack():
                    self.inside[frame].add(node)

    def _enter(self, frame: Frame, entered: set[Frame]) -> None:
        if frame in entered:
            return
        entered.add(frame)
        if frame.parent is not None:
            self._enter(frame.parent, entered)
            self.contents[frame.parent].append(frame)

    def place(self) -> dict[Hashable, list[Item]]:
        """Unit -> its lines."""
        return self._place(self.captured.frames[0])

    def _place(self, frame: Frame) -> dict[Hashable, list[Item]]:
        units = {self.unit_of[n] for n in self.inside[frame]}
        if (
            frame.parent is not None
            and len(units) == 1
            and self._callable_whole(frame, next(iter(units)))
        ):
            return {next(iter(units)): [call_item(frame, frozenset(self.inside[frame]))]}
        placed: dict[Hashable, list[Item]] = {}
        for part in self.contents[frame]:
            found = (
                self._place(part)
                if isinstance(part, Frame)
                else {self.unit_of[part]: [node_item(part)]}
            )
            for unit, items in found.items():
                placed.setdefault(unit, []).extend(items)
        kept = [u for u in placed if not (isinstance(u, tuple) and u[0] == "invariant")]
        if frame.parent is not None and len(kept) == 1 and len(placed[kept[0]]) > 2:
            placed[kept[0]] = [self._outlined(frame, placed[kept[0]])]
        return placed

    def _callable_whole(self, frame: Frame, unit: Hashable) -> bool:
        if frame.arguments is None or frame.result is None:
            return False
        inside, given = self.inside[frame], set(nodes_in(frame.arguments))
        if any("guard" in n.meta for n in inside):
            return False  # called whole, it would read another number and nobody outside would know
        if any(n in self.probed and n not in frame.result_nodes for n in inside):
            return False
        for node in inside:
            if any(
                u not in inside and u in self.unit_of and node not in frame.result_nodes
                for u in node.users
            ):
                return False
            if any(u.op == "output" for u in node.users) and node not in frame.result_nodes:
                return False
            if any(
                n not in inside and n not in given and not is_free(n) for n in node.all_input_nodes
            ):
                return False
            if "after_reads" in node.meta and self._writes_outside(node, inside):
                return False
        if not any(n in inside for n in frame.result_nodes):
            return False
        return all(is_free(n) or self.visible(n, unit) for n in given)

    def _writes_outside(self, write: Node, inside: set[Node]) -> bool:
        """Whether memory that came from outside the module is written to."""
        target = write.meta.get("writes")
        seen: set[Node] = set()
        todo = [target] if target is not None else list(write.all_input_nodes)
        while todo:
            node = todo.pop()
            if node in seen or node.meta.get("storage") != write.meta.get("storage"):
                continue
            seen.add(node)
            if node not in inside:
                return True
            todo.extend(node.all_input_nodes)
        return False

    def _outlined(self, frame: Frame, items: list[Item]) -> Item:
        """A small graph of its own, called as one line."""
        inside = frozenset(n for i in items for n in i.inside)
        defs = {d for i in items for d in i.defs}
        uses = frozenset(u for i in items for u in i.uses if u not in defs and not is_free(u))  # type: ignore[arg-type]
        outside = [
            n for n in sorted((d for d in defs if isinstance(d, Node)), key=_position)
            if any(u not in inside for u in n.users) or n in frame.result_nodes or n in self.probed
        ]  # fmt: skip
        inputs = sorted((u for u in uses if isinstance(u, Node)), key=_position)
        name = frame.path.replace(".", "_")

        def write(graph: Graph, value: Callable[[Key], Node]) -> dict[Key, Node]:
            return call_graph(graph, name, inner, [value(n) for n in inputs], outside, frame.path)

        inner = self.build(items, inputs, outside, name)
        return Item(min(i.position for i in items), uses, frozenset(outside), inside, write)

    def build(
        self, items: list[Item], inputs: list[Node], outputs: list[Node], name: str
    ) -> nn.Module:
        """A graph module from ``inputs`` to the tuple of ``outputs`` (or the only one)."""
        graph = Graph()
        values: dict[Key, Node] = {}
        for node in inputs:
            values[node] = graph.placeholder(node.name)
            _carry_facts(node, values[node])
        children = write_items(graph, items, values, self.captured.autocast)
        results = tuple(values[n] for n in outputs)
        graph.output(results[0] if len(results) == 1 else results)
        return assemble(self.model, self.captured, graph, name, children)


def call_graph(
    graph: Graph, name: str, module: nn.Module, inputs: list[Any], outputs: list[Node], origin: str
) -> dict[Key, Node]:  # fmt: skip
    """A call of a graph made by ``Emitter.build``; its results by recorded node."""
    call = graph.create_node("call_module", name, tuple(inputs), {}, name=name)
    call.meta["module"] = module
    call.meta["origin"] = origin
    if len(outputs) == 1:
        _carry_facts(outputs[0], call)
        return {outputs[0]: call}
    short = name.removeprefix("invariant_").removesuffix("_once")
    out: dict[Key, Node] = {}
    for i, node in enumerate(outputs):
        out[node] = graph.create_node("call_function", ops.item, (call, i), {}, name=f"{short}_{i}")
        _carry_facts(node, out[node])
    return out


def assemble(
    model: nn.Module, captured: Captured, graph: Graph, name: str, children: dict[str, nn.Module]
) -> nn.Module:
    module = graph_module(model, captured.constants, graph, name, children)
    graph.lint()
    return module


def write_items(
    graph: Graph, items: list[Item], values: dict[Key, Node], ambient: tuple[Any, ...]
) -> dict[str, nn.Module]:  # fmt: skip
    """Writes lines in an order that data flow and writes to memory allow; the new child modules."""
    children: dict[str, nn.Module] = {}
    repeated: dict[str, Node] = {}
    open_contexts: list[Node] = []
    current = ambient

    def value(key: Key) -> Node:
        if isinstance(key, Node) and is_free(key):
            if key.target not in repeated:
                repeated[key.target] = graph.get_attr(key.target)  # type: ignore[index,arg-type]
            return repeated[key.target]  # type: ignore[index]
        return values[key]

    for item in in_order(items):
        wanted = item.autocast if item.autocast is not None else ambient
        if wanted != current:
            _close(graph, open_contexts)
            if wanted != ambient:
                open_contexts += [graph.call_function(ops.enter_autocast, state)
                                  for state, base in zip(wanted, ambient) if state != base]  # fmt: skip
            current = wanted
        values.update(item.write(graph, value))
    _close(graph, open_contexts)
    for node in graph.nodes:
        if "module" in node.meta:
            children[node.target] = node.meta.pop("module")
    return children


def _close(graph: Graph, contexts: list[Node]) -> None:
    while contexts:
        graph.call_function(ops.exit_autocast, (contexts.pop(),))


def _position(node: Node) -> int:
    return int(node.meta["position"])


def written_between(graph: Graph, node: Node, first: int, last: int) -> bool:
    """Whether memory that ``node`` lives in is written to after ``first`` and up to ``last``."""
    return any(
        "after_reads" in n.meta and n.meta.get("storage") == node.meta.get("storage")
        and first < _position(n) <= last
        for n in graph.nodes
    )  # fmt: skip


def copy_item(node: Node, key: Key) -> Item:
    """A copy of a value right behind it, found under ``key``."""

    def write(graph: Graph, value):  # type: ignore[no-untyped-def]
        return {key: graph.call_method("clone", (value(node),))}

    return Item(_position(node) + 0.125, frozenset([node]), frozenset([key]), frozenset(), write)


def in_order(items: Iterable[Item]) -> list[Item]:
    """Topological order; recorded order where there is a choice; readers before later writers."""
    items = sorted(items, key=lambda i: i.position)
    maker = {key: n for n, item in enumerate(items) for key in item.defs}
    holder = {node: n for n, item in enumerate(items) for node in item.inside}
    after: dict[int, set[int]] = {n: set() for n in range(len(items))}
    for n, item in enumerate(items):
        earlier = {maker[key] for key in item.uses if key in maker}
        for node in item.inside:
            earlier |= {holder[r] for r in node.meta.get("after_reads", ()) if r in holder}
        for other in earlier - {n}:
            after[other].add(n)
    waiting = dict.fromkeys(after, 0)
    for followers in after.values():
        for n in followers:
            waiting[n] += 1
    ready = [n for n, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        n = heapq.heappop(ready)
        order.append(items[n])
        for follower in after[n]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    assert len(order) == len(items), "emitted items form a circle"
    return order


__all__ = [
    "Emitter", "Item", "Leaf", "assemble", "call_graph", "copy_item", "is_free", "write_items",
    "written_between",
]  # fmt: skip
