"""Streams: hidden states that a model adds to, found by data flow alone.

    x = embed(z)                      root
    x = x + gate * attn(norm(x))      first sum: x reaches its own addend, so a stream begins
    x[:, :n] = x[:, :n] + a           a part of the stream is added to; the whole goes on
    x = x + mlp(norm(x))

No module or block names are read. Additions that compete for one stream (a position added for a
side path) form a tree; the stream is its heaviest path, the rest belongs to branch bodies.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch.fx import Graph, Node

from synccache.fx.dataflow import addition, ancestors, backward_closure, carried, index_of, origin

MIN_SHARE = 0.01  # of the forward's FLOPs: what is lighter is not a stream of the model


@dataclass(frozen=True, slots=True)
class Sum:
    """One addition to a stream: ``node = base + sum of addends``."""

    node: Node
    base: Node
    addends: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """A stream as found: where it starts and what is added to it, in order."""

    root: Node
    sums: tuple[Sum, ...]
    flops: int


def find_lineages(graph: Graph) -> tuple[Lineage, ...]:
    """Streams in order of their roots; recurrences nested in another stream's branch are left out."""
    trees = _sum_trees(graph)
    total = sum(n.meta.get("flops", 0) for n in graph.nodes) or 1
    found = [_heaviest_path(root, children) for root, children in trees.items()]
    found = [f for f in found if len(f.sums) >= 2 and f.flops >= MIN_SHARE * total]
    return tuple(_outermost(graph, found))


def _sum_trees(graph: Graph) -> dict[Node, dict[Node, list[Sum]]]:
    """Root -> (stream value -> sums that add to it)."""
    reach, order = ancestors(graph), index_of(graph)
    trunk: dict[Node, Node] = {}  # stream value -> its root
    children: dict[Node, dict[Node, list[Sum]]] = {}
    memo: dict[Node, tuple[int, Node | None]] = {}

    def value_of(node: Node) -> Node | None:
        """The latest stream value that ``node`` carries."""
        if node in trunk:
            return node
        cached = memo.get(node)
        if cached is not None and cached[0] == len(trunk):
            return cached[1]
        values = [v for v in map(value_of, carried(node)) if v is not None]
        best = max(values, key=lambda v: order[v]) if values else None
        memo[node] = (len(trunk), best)
        return best

    def reaches(source: Node, targets: tuple[Node, ...]) -> bool:
        bit = 1 << order[source]
        return any(reach[t] & bit for t in targets)

    for node in graph.nodes:
        ways = [(base, addends, value_of(base)) for base, addends in addition(node)]
        known = [w for w in ways if w[2] is not None]
        # among two stream values the one that the other side was computed from is the trunk
        known.sort(key=lambda w: (not reaches(w[2], w[1]), order[w[2]]))
        if known:
            base, addends, parent = known[0]
        else:
            starts = [(b, a, origin(b)) for b, a, _ in ways if reaches(origin(b), a)]
            if not starts:
                continue
            base, addends, parent = starts[0]
            trunk[parent] = parent
            children[parent] = defaultdict(list)
        root = trunk[parent]
        trunk[node] = root
        children[root][parent].append(Sum(node, base, addends))
    return children


def _heaviest_path(root: Node, children: dict[Node, list[Sum]]) -> Lineage:
    weight: dict[Node, int] = {}
    best: dict[Node, Sum] = {}
    values = [root, *(s.node for sums in children.values() for s in sums)]
    stop = set(values)
    for value in reversed(values):
        weight[value] = 0
    # children are always later in program order: visit in reverse
    for value in sorted(values, key=lambda n: -_position(n)):
        for item in children.get(value, ()):
            body = backward_closure(item.addends, stop)
            total = sum(n.meta.get("flops", 0) for n in body) + weight[item.node] + 1
            if total > weight[value]:
                weight[value], best[value] = total, item
    sums, value = [], root
    while value in best:
        sums.append(best[value])
        value = best[value].node
    own = [n for s in sums for n in backward_closure(s.addends, stop)]
    return Lineage(root, tuple(sums), sum(n.meta.get("flops", 0) for n in set(own)))


def _position(node: Node) -> int:
    return int(node.meta["position"])


def _outermost(graph: Graph, found: list[Lineage]) -> list[Lineage]:
    """Without the recurrences that live inside one branch of another stream."""
    kept = []
    for lineage in found:
        inside = False
        for other in found:
            if other is lineage:
                continue
            values = {other.root, *(s.node for s in other.sums)}
            inside |= any(
                all(s.node in body for s in lineage.sums) and lineage.root in body
                for body in (backward_closure(s.addends, values) for s in other.sums)
                if lineage.sums[0].node in body
            ) and other.flops > lineage.flops
        if not inside:
            kept.append(lineage)
    return sorted(kept, key=lambda item: _position(item.root))
