"""What of a recorded forward an emitted graph still needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.capture import Captured
from synccache.fx.emit import nodes_in
from synccache.fx.frames import Frame
from synccache.fx.hoist import draws
from synccache.fx.match import RuleMatch
from synccache.fx.runs import Layout


def live_nodes(captured: Captured, matches: Sequence[RuleMatch], layout: Layout) -> set[Node]:
    """Nodes that the output, the probes or a lasting write need; guards; what draws; call arguments."""
    graph = captured.graph
    roots = [graph.output_node(), *(n for m in matches for t in m.taps.values() for n in t.nodes)]
    roots += [n for n in graph.nodes if "after_reads" in n.meta and _lasting(n)]
    roots += [n for n in graph.nodes if "guard" in n.meta or draws(n)]
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


def refuse_lost_writes(nodes: Iterable[Node], label: str) -> None:
    """Raises: MatchError where one of these operations, which a skip leaves out, writes to an input or a
    buffer: whoever reads that after the forward would miss it."""
    for node in nodes:
        target = _lasting(node) if "after_reads" in node.meta else None
        if target is not None:
            what = "the input" if target.op == "placeholder" else "the model's own"
            raise MatchError(
                f"skipping {label} would leave out a write to {what} {target.target}, which lasts beyond the "
                "forward.", hint="Leave these branches out of the rule, or write to a copy in the model.",
            )  # fmt: skip


def _lasting(write: Node) -> Node | None:
    """The input, weight or buffer whose memory a write reaches: what outlives the forward."""
    seen: set[Node] = set()
    todo = list(write.all_input_nodes)
    while todo:
        node = todo.pop()
        if node in seen or node.meta.get("storage") != write.meta.get("storage"):
            continue
        seen.add(node)
        if node.op in ("placeholder", "get_attr"):
            return node
        todo.extend(node.all_input_nodes)
    return None


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
