"""What need not be computed again: values that depend on no input that the loop changes.

    k = to_k(encode(audio))         ->  invariant_audio(audio)   once a trajectory
    freqs = table[:n].expand(...)   ->  constants()              once a trajectory

Exact: the same operations on the same tensors, kept while the inputs are the same objects with the
same version. A module that mixes such values with others is opened only where it pays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch.fx import Node

from synccache.fx.capture import Captured
from synccache.fx.conditions import changing_inputs
from synccache.fx.dataflow import ancestors
from synccache.fx.frames import Frame

MIN_SHARE = 0.01  # of a top-level module's FLOPs: opening it for less makes code longer for nothing
_RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial", "dropout", "exponential_",
    "random_",
}  # fmt: skip
_UNFILLED = {"empty", "empty_like", "new_empty"}


def draws(node: Node) -> bool:
    """Whether an operation takes random numbers, so that the next one finds others."""
    return _name(node) in _RANDOM


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def hoistable(captured: Captured, tags: Mapping[Node, str]) -> dict[Node, int]:
    """Node -> bit mask of the inputs it depends on, for nodes worth computing once."""
    free = _closed(captured, _worthwhile(captured, _free(captured, tags)))
    return {n: captured.depends[n] for n in free}


def _free(captured: Captured, tags: Mapping[Node, str]) -> set[Node]:
    """Nodes that could be computed once, worthwhile or not."""
    variant = 0
    for node in changing_inputs(captured, tags):
        variant |= captured.depends[node]
    free = _invariant_nodes(captured, variant)
    return free - (_written_later(captured, free) | _given_away(captured, free))


Margin = tuple[str, tuple[Node, ...], tuple[Node, ...]]
"""A top-level module, its invariant nodes that cost FLOPs, and all of its nodes that do."""


def margins(captured: Captured, tags: Mapping[Node, str]) -> list[Margin]:
    """The modules that are opened only if the invariant part is at least MIN_SHARE of their FLOPs."""
    free = _free(captured, tags)
    inside: dict[Frame, list[Node]] = defaultdict(list)
    for node in captured.graph.nodes:
        frame = node.meta.get("frame")
        if node.meta.get("flops", 0) and frame is not None and frame.parent is not None:
            inside[_top(frame)].append(node)
    found = []
    for top, nodes in inside.items():
        saved = tuple(n for n in nodes if n in free)
        if saved and len(saved) < len(nodes):
            found.append((top.path, saved, tuple(nodes)))
    return found


def _invariant_nodes(captured: Captured, variant: int) -> set[Node]:
    found: set[Node] = set()
    moving: set[Node] = set()
    for node in captured.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            if node.meta.get("opaque", False):
                moving.add(node)
            continue
        # a module called whole, not one of torch's own, may do what nobody sees: it runs every time
        if (
            draws(node)
            or _name(node) in _UNFILLED
            or node.meta.get("opaque", False)
            or captured.depends[node] & variant
            or any(n in moving for n in node.all_input_nodes)
        ):
            moving.add(node)
        else:
            found.add(node)
    return found


def _written_later(captured: Captured, free: set[Node]) -> set[Node]:
    """Values whose memory an operation of every step writes to, and what is made from them."""
    reach = ancestors(captured.graph)
    spoiled: set[Node] = set()
    for write in captured.graph.nodes:
        if "after_reads" not in write.meta or write in free:
            continue
        for node in free:
            same = node.meta.get("storage") == write.meta.get("storage")
            if same and reach[write] & (1 << node.meta["position"]):
                spoiled.add(node)
    return spoiled


def _given_away(captured: Captured, free: set[Node]) -> set[Node]:
    """Values in memory that the caller gets as a result, and may write to."""
    owned = {
        n.meta["storage"] for n in captured.graph.nodes if n.op in ("placeholder", "get_attr")
        and "storage" in n.meta
    }  # fmt: skip
    results = {n.meta.get("storage") for n in captured.graph.output_node().all_input_nodes} - owned
    return {n for n in free if n.meta.get("storage") in results}


def _closed(captured: Captured, chosen: set[Node]) -> set[Node]:
    """Without nodes that need an invariant value which is not itself chosen."""
    kept: set[Node] = set()
    for node in captured.graph.nodes:
        if node in chosen and all(
            n in kept or n.op in ("placeholder", "get_attr") for n in node.all_input_nodes
        ):
            kept.add(node)
    return kept


def _worthwhile(captured: Captured, free: set[Node]) -> set[Node]:
    """Drops invariant values inside top-level modules that would be opened for too little."""
    total: dict[Frame, int] = defaultdict(int)
    saved: dict[Frame, int] = defaultdict(int)
    mixed: set[Frame] = set()
    for node in captured.graph.nodes:
        frame = node.meta.get("frame")
        if frame is None or frame.parent is None or node.op in ("get_attr", "placeholder"):
            continue
        top = _top(frame)
        total[top] += node.meta.get("flops", 0)
        if node in free:
            saved[top] += node.meta.get("flops", 0)
        else:
            mixed.add(top)
    kept: set[Node] = set()
    costly: set[Node] = set()  # nodes that some FLOPs went into
    for node in captured.graph.nodes:
        if node not in free:
            continue
        if node.meta.get("flops", 0) or any(n in costly for n in node.all_input_nodes):
            costly.add(node)
        frame = node.meta["frame"]
        if (
            frame.parent is None
            or (top := _top(frame)) not in mixed
            or node in costly
            and saved[top] >= MIN_SHARE * total[top]
        ):
            kept.add(node)
    return kept


def _top(frame: Frame) -> Frame:
    return frame.stack()[1]
