"""What of a recorded forward an emitted graph still needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import Node

from synccache.fx.capture import Captured
from synccache.fx.emit import nodes_in
from synccache.fx.frames import Frame
from synccache.fx.match import RuleMatch
from synccache.fx.regions import Layout


def live_nodes(captured: Captured, matches: Sequence[RuleMatch], layout: Layout) -> set[Node]:
    """Nodes that the output, the probes or a lasting write need; guards on them; call arguments."""
    graph = captured.graph
    roots = [graph.output_node(), *(n for m in matches for t in m.taps.values() for n in t.nodes)]
    roots += [n for n in graph.nodes if "after_reads" in n.meta and _lasting(n)]
    roots += [n for n in graph.nodes if "guard" in n.meta]
    live = _closure(roots)
    hidden = {n for r in layout.regions for n in r.body} - {
        run.end for r in layout.regions for run in r.runs
    }
    called = {f for n in live if "frame" in n.meta for f in n.meta["frame"].stack()}
    for frame in captured.frames:
        # a module called whole is called with all its arguments, also those it does not use
        if frame.arguments is None or frame.parent is None or frame not in called:
            continue
        more = _closure([n for n in nodes_in(frame.arguments) if n not in live]) - live
        if not any(n in hidden for m in more for n in (m, *m.all_input_nodes)):
            live |= more
    live.discard(graph.output_node())
    return live


def _closure(roots: list[Node]) -> set[Node]:
    seen: set[Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return seen


def _lasting(write: Node) -> bool:
    """Whether a write reaches memory that outlives the forward: an input, a weight, a buffer."""
    seen: set[Node] = set()
    todo = list(write.all_input_nodes)
    while todo:
        node = todo.pop()
        if node in seen or node.meta.get("storage") != write.meta.get("storage"):
            continue
        seen.add(node)
        if node.op in ("placeholder", "get_attr"):
            return True
        todo.extend(node.all_input_nodes)
    return False


def passed_whole(captured: Captured, live: set[Node], hoisted: Mapping[Node, int]) -> set[Node]:
    """Values that are arguments of modules that may be called whole.

    A module of which something is computed once a trajectory is opened: it is not.
    """
    called: set[Frame] = set()
    opened: set[Frame] = set()
    for node in live:
        if "frame" in node.meta:
            (opened if node in hoisted else called).update(node.meta["frame"].stack())
    return {
        node
        for frame in called - opened
        if frame.arguments is not None and frame.parent is not None
        for node in nodes_in(frame.arguments)
    }
