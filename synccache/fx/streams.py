"""Streams: hidden states that a model adds to, found by data flow alone.

    x = embed(z)                      root
    x = x + gate * attn(norm(x))      first sum: x reaches its own addend, so a stream begins
    x[:, :n] = x[:, :n] + a           a part of the stream is added to; the whole goes on
    x = x + mlp(norm(x))
    h = cat([x, text])                two streams joined: the join is the root of a third
    h = h + f(h)

No module or block names are read. Additions that compete for one value form a tree. Its heaviest
path is a stream; what else hangs on it is a stream where it is heavy itself (a control tower that
starts from x, text and video cut from one tensor), and part of branch bodies otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from synccache.fx.dataflow import (
    addition,
    ancestors,
    backward_closure,
    carried,
    index_of,
    numel,
)

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

    @property
    def values(self) -> set[Node]:
        return {self.root, *(s.node for s in self.sums)}


@dataclass(slots=True)
class _Trees:
    """Sums by the stream value they add to."""

    children: dict[Node, list[Sum]] = field(default_factory=lambda: defaultdict(list))
    above: dict[Node, Node | None] = field(default_factory=dict)  # value -> what it was added to
    roots: list[Node] = field(default_factory=list)

    def under(self, value: Node, other: Node) -> bool:
        """Whether ``other`` is ``value`` or one of the values that it was built up from."""
        at: Node | None = value
        while at is not None and at is not other:
            at = self.above[at]
        return at is other


def find_lineages(graph: Graph) -> tuple[Lineage, ...]:
    """Streams in order of their roots; recurrences nested in another stream's branch are left out."""
    trees = _grow(graph)
    total = sum(n.meta.get("flops", 0) for n in graph.nodes) or 1
    alive = backward_closure([graph.output_node()], set())
    values = frozenset(trees.above)
    flops = _body_flops(trees, values)
    found = [
        Lineage(
            path.root, path.sums, sum(n.meta.get("flops", 0) for n in _bodies(path.sums, values))
        )
        for root in trees.roots
        for path in _paths(root, trees, flops, alive)
    ]
    found = [f for f in found if f.flops >= MIN_SHARE * total]
    return tuple(sorted(_outermost(found), key=lambda f: _position(f.root)))


def _grow(graph: Graph) -> _Trees:
    reach, order, trees = ancestors(graph), index_of(graph), _Trees()
    memo: dict[Node, tuple[int, Node | None]] = {}

    def value_of(node: Node) -> Node | None:
        """The latest stream value that ``node`` carries; None where it joins two streams."""
        if node in trees.above:
            return node
        cached = memo.get(node)
        if cached is not None and cached[0] == len(trees.above):
            return cached[1]
        values = [v for v in map(value_of, carried(node)) if v is not None]
        best = max(values, key=lambda v: order[v]) if values else None
        if best is not None and not all(trees.under(best, v) for v in values):
            best = None
        memo[node] = (len(trees.above), best)
        return best

    def start_of(node: Node) -> Node:
        """Where the content of ``node`` comes from: what was made anew, joined, or written into."""
        while len(carried(node)) == 1:
            node = carried(node)[0]
        return node

    def reaches(source: Node, targets: Iterable[Node]) -> bool:
        bit = 1 << order[source]
        return any(reach[t] & bit for t in targets)

    for node in graph.nodes:
        ways = [(base, addends, value_of(base)) for base, addends in addition(node)]
        known = [(b, a, v) for b, a, v in ways if v is not None]
        # among two stream values the one that the other side was computed from is the trunk
        known.sort(key=lambda w: (not reaches(w[2], w[1]), order[w[2]]))
        parent: Node | None
        if known:
            base, addends, parent = known[0]
        else:
            starts = [(b, a, start_of(b)) for b, a, _ in ways if reaches(start_of(b), a)]
            if not starts:
                continue
            base, addends, parent = starts[0]
            trees.above[parent] = None
            trees.roots.append(parent)
        assert parent is not None
        trees.above[node] = parent
        trees.children[parent].append(Sum(node, base, addends))
    return trees


def _bodies(sums: Iterable[Sum], values: frozenset[Node]) -> set[Node]:
    return {n for s in sums for n in backward_closure(s.addends, values)}


def _body_flops(trees: _Trees, values: frozenset[Node]) -> dict[Node, int]:
    sums = [s for children in trees.children.values() for s in children]
    return {s.node: sum(n.meta.get("flops", 0) for n in _bodies([s], values)) for s in sums}


def _paths(
    root: Node, trees: _Trees, flops: dict[Node, int], alive: set[Node], least: int = 2
) -> Iterator[Lineage]:
    """The heaviest path from a root, then those of what else hangs on it; ``least`` sums or more."""
    path = _heaviest(root, trees, flops)
    last = max((i for i, s in enumerate(path) if s.node in alive), default=-1)
    kept = tuple(path[: last + 1])
    if len(kept) >= least:
        yield Lineage(_beginning(root, kept), kept, 0)
    taken = {s.node for s in path}
    for value in [root, *(s.node for s in path)]:
        for item in trees.children.get(value, ()):
            if item.node in taken:
                continue
            if _cuts(item, value):
                yield from _cut_off(item, trees, flops, alive)
            else:
                yield from _paths(item.node, trees, flops, alive)


def _cut_off(
    first: Sum, trees: _Trees, flops: dict[Node, int], alive: set[Node]
) -> Iterator[Lineage]:
    """A path that begins with a part of another stream's value, such as text cut from text|video."""
    for i, lineage in enumerate(_paths(first.node, trees, flops, alive, least=1)):
        if i == 0 and lineage.sums[0].base is not None and _follows(lineage, first, trees):
            sums = (first, *lineage.sums)
            yield Lineage(_beginning(first.base, sums), sums, 0)
        else:
            yield lineage


def _follows(lineage: Lineage, first: Sum, trees: _Trees) -> bool:
    return trees.above[lineage.sums[0].node] is first.node


def _heaviest(root: Node, trees: _Trees, flops: dict[Node, int]) -> list[Sum]:
    under = [root]
    for value in under:
        under.extend(s.node for s in trees.children.get(value, ()))
    weight: dict[Node, int] = {}
    best: dict[Node, Sum] = {}
    for value in sorted(under, key=lambda n: -_position(n)):  # what is added later comes first
        weight[value] = 0
        for item in trees.children.get(value, ()):
            if _cuts(item, value) and not _written_back(item, value):
                continue  # the parts of a stream that is parted are streams of their own
            total = flops[item.node] + weight[item.node] + 1
            if total > weight[value]:
                weight[value], best[value] = total, item
    path, value = [], root
    while value in best:
        path.append(best[value])
        value = best[value].node
    return path


def _cuts(item: Sum, value: Node) -> bool:
    """Whether an addition is to a part of ``value`` alone."""
    return numel(item.node) < numel(value) and numel(item.base) == numel(item.node)


def _written_back(item: Sum, value: Node) -> bool:
    """Whether the part goes into the whole again: by a write to a slice, or joined to the rest."""
    seen: set[Node] = set()
    todo = [item.node]
    while todo:
        node = todo.pop()
        for user in node.users:
            if user in seen or user.op == "output" or node not in carried(user):
                continue
            if numel(user) >= numel(value):
                return True
            seen.add(user)
            todo.append(user)
    return False


def _beginning(root: Node, sums: tuple[Sum, ...]) -> Node:
    """The first value that has the whole stream's shape, from the root to what is first added to."""
    whole = max(sums, key=lambda s: numel(s.node)).node.meta["shape"]
    chain = [sums[0].base]
    while chain[-1] is not root and carried(chain[-1]):
        chain.append(carried(chain[-1])[0])
    return next((n for n in reversed(chain) if n.meta.get("shape") == whole), root)


def _position(node: Node) -> int:
    return int(node.meta["position"])


def _outermost(found: list[Lineage]) -> list[Lineage]:
    """Without the recurrences that live inside one branch of another stream."""
    return [f for f in found if not any(_inside(f, o, found) for o in found if o is not f)]


def _inside(inner: Lineage, outer: Lineage, found: list[Lineage]) -> bool:
    if outer.flops <= inner.flops:
        return False
    stop = set().union(*(f.values for f in found if f is not inner))
    bodies = [backward_closure(s.addends, stop) for s in outer.sums]
    readers = [body for body in bodies if (inner.values | _layouts(inner.root)) & body]
    return len(readers) == 1 and inner.values <= readers[0]


def _layouts(root: Node) -> set[Node]:
    """The same value in other layouts, before it got the shape that the stream has."""
    seen = set()
    while len(carried(root)) == 1 and numel(carried(root)[0]) == numel(root):
        root = carried(root)[0]
        seen.add(root)
    return seen
