"""Regions: runs of branches that are skipped together, split where somebody reads inside them.

A run starts at a stream's value ``before`` and ends at ``after``; what is held is their difference.
Runs of several streams whose insides read each other form one region. networkx finds the circles
that would arise if a region were one node of the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.dataflow import ancestors
from synccache.fx.match import label_run
from synccache.fx.program import Branch, ResidualProgram

_ROUNDS = 1000  # each round splits a run at least once


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Consecutive branches of one stream."""

    branches: tuple[Branch, ...]
    rule: int

    @property
    def before(self) -> Node:
        return self.branches[0].before

    @property
    def after(self) -> Node:
        return self.branches[-1].after


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Runs that are computed together or skipped together, and the nodes only they need.

    ``inner`` are branches of streams that nobody outside reads any more: nothing is held of them.
    """

    index: int
    rule: int
    runs: tuple[Run, ...]
    body: frozenset[Node]
    inner: tuple[Branch, ...] = ()

    @property
    def label(self) -> str:
        return ", ".join(label_run(r.branches) for r in self.runs)

    @property
    def held_bytes(self) -> int:
        """Bytes of one residual of each stream, in the stream's dtype."""
        return sum(_bytes(r.before) for r in self.runs)

    @property
    def branches(self) -> tuple[Branch, ...]:
        found = [*self.inner, *(b for r in self.runs for b in r.branches)]
        return tuple(sorted(found, key=lambda b: b.index))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All regions, and the nodes that a step with every region skipped still needs."""

    regions: tuple[Region, ...]
    needed: frozenset[Node]


def _bytes(node: Node) -> int:
    count = 1
    for size in node.meta["shape"]:
        count *= size
    return count * int(node.meta["dtype"].itemsize)


def lay_out(program: ResidualProgram, skip: Mapping[int, int], roots: Iterable[Node]) -> Layout:
    """Regions for the branches in ``skip`` (branch index -> rule).

    ``roots`` are values besides the output that every step needs: the probes.
    """
    graph = program.captured.graph
    reach = ancestors(graph)
    roots = [*roots, *graph.output_node().all_input_nodes]
    runs = _runs(program, skip)
    for _ in range(_ROUNDS):
        starts = [r.before for r in runs]  # what is held is added to them
        needed = _needed([*roots, *starts], {r.after: r.before for r in runs})
        cuts = _cuts(runs, needed)
        if cuts:
            runs = _split(runs, cuts)
            continue
        groups, bodies = _groups(runs, needed, reach)
        cuts = _circles(graph, runs, groups, bodies, needed)
        if not cuts:
            return Layout(_regions(runs, groups, bodies, needed), frozenset(needed))
        runs = _split(runs, cuts)
    raise MatchError(f"regions did not settle within {_ROUNDS} splits of {len(skip)} branches.")


def _runs(program: ResidualProgram, skip: Mapping[int, int]) -> list[Run]:
    runs: list[Run] = []
    for stream in program.streams:
        current: list[Branch] = []
        for branch in [*program.of_stream(stream.index), None]:
            fits = branch is not None and branch.index in skip and _same_shape(branch)
            if current and (not fits or skip[branch.index] != skip[current[0].index]):  # type: ignore[union-attr]
                runs.append(Run(tuple(current), skip[current[0].index]))
                current = []
            if fits:
                current.append(branch)  # type: ignore[arg-type]
    return runs


def _same_shape(branch: Branch) -> bool:
    same = branch.before.meta["shape"] == branch.after.meta["shape"]
    return bool(same and branch.before.meta["dtype"] == branch.after.meta["dtype"])


def _needed(roots: Iterable[Node], jumps: Mapping[Node, Node]) -> set[Node]:
    """Backward from the roots; a run's end needs only its start."""
    seen: set[Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        todo.extend([jumps[node]] if node in jumps else node.all_input_nodes)
    return seen


def _cuts(runs: list[Run], needed: set[Node]) -> dict[Run, int]:
    """Run -> number of its branches before the first inner value that somebody outside reads."""
    cuts = {}
    for run in runs:
        for i, branch in enumerate(run.branches):
            last = i == len(run.branches) - 1
            inner = {branch.sum} if last else {branch.sum, branch.after}
            if last:
                inner.discard(branch.after)
            if inner & needed:
                cuts[run] = i if last else i + 1
                break
    return cuts


def _split(runs: list[Run], cuts: Mapping[Run, int]) -> list[Run]:
    out: list[Run] = []
    for run in runs:
        at = cuts.get(run)
        parts = [run.branches] if at is None else [run.branches[:at], run.branches[at:]]
        if (
            at is not None
            and at == len(run.branches) - 1
            and run.branches[at].sum is not run.branches[at].after
        ):
            parts = [run.branches[:at]] if at == 0 or len(parts[1]) == 1 else parts
        out.extend(Run(p, run.rule) if at is not None else run for p in parts if p)
    return out


def _stream_bits(run: Run) -> int:
    bits = 1 << run.before.meta["position"]
    for branch in run.branches:
        bits |= 1 << branch.sum.meta["position"]
    return bits


def _groups(
    runs: list[Run], needed: set[Node], reach: Mapping[Node, int]
) -> tuple[list[set[int]], dict[Node, set[int]]]:
    """Runs that must be one region, and for each node not always needed the runs that need it."""
    demand: dict[Node, set[int]] = defaultdict(set)
    ends = {r.after for r in runs}
    for i, run in enumerate(runs):
        todo = [run.after]
        while todo:
            node = todo.pop()
            if i in demand[node]:
                continue
            demand[node].add(i)
            todo.extend(
                n for n in node.all_input_nodes
                if n not in needed and n not in ends and n is not run.before
            )  # fmt: skip
    values = [_stream_bits(r) for r in runs]
    graph = nx.Graph()
    graph.add_nodes_from(range(len(runs)))
    for node, who in demand.items():
        if len(who) > 1 and any(reach[node] & values[i] for i in who):
            first, *rest = sorted(who)
            graph.add_edges_from((first, other) for other in rest)
    groups = [set(c) for c in nx.connected_components(graph)]
    return groups, dict(demand)


def _group_of(groups: list[set[int]]) -> dict[int, int]:
    return {run: g for g, members in enumerate(groups) for run in members}


def _circles(
    graph: object, runs: list[Run], groups: list[set[int]], demand: Mapping[Node, set[int]], needed: set[Node]
) -> dict[Run, int]:  # fmt: skip
    """Where runs must be split because something live sits in the middle of their region."""
    group = _group_of(groups)
    unit: dict[Node, object] = {}
    for node, who in demand.items():
        found = {group[i] for i in who}
        unit[node] = ("region", found.pop()) if len(found) == 1 else node
    web: nx.DiGraph = nx.DiGraph()
    for node in {*needed, *demand}:
        for operand in node.all_input_nodes:
            ends_a_run = node in {r.after for r in runs} and node not in demand
            if ends_a_run:
                continue
            a, b = unit.get(operand, operand), unit.get(node, node)
            if a != b:
                web.add_edge(a, b)
    for component in nx.strongly_connected_components(web):
        if len(component) < 2:
            continue
        live = [n for n in component if isinstance(n, Node)]
        members = {n[1] for n in component if isinstance(n, tuple)}
        if not live:
            continue
        position = min(n.meta["position"] for n in live)
        cuts = {}
        for i, run in enumerate(runs):
            if group[i] in members:
                at = sum(b.sum.meta["position"] < position for b in run.branches)
                if 0 < at < len(run.branches):
                    cuts[run] = at
        if not cuts:
            run = max(
                (r for i, r in enumerate(runs) if group[i] in members),
                key=lambda r: len(r.branches),
            )
            if len(run.branches) == 1:
                raise MatchError(
                    f"{run.branches[0].label} cannot be skipped: {live[0].name} needs part of it and "
                    "it needs that in turn.", hint="Leave this branch out of the rule.",
                )  # fmt: skip
            cuts[run] = len(run.branches) // 2
        return cuts
    return {}


def _regions(
    runs: list[Run], groups: list[set[int]], demand: Mapping[Node, set[int]], needed: set[Node]
) -> tuple[Region, ...]:
    group = _group_of(groups)
    bodies: dict[int, set[Node]] = defaultdict(set)
    for node, who in demand.items():
        found = {group[i] for i in who}
        if len(found) == 1:
            bodies[found.pop()].add(node)
    ordered = sorted(
        range(len(groups)), key=lambda g: min(runs[i].branches[0].index for i in groups[g])
    )
    out = []
    for index, g in enumerate(ordered):
        members = tuple(runs[i] for i in sorted(groups[g]))
        if len({r.rule for r in members}) > 1:
            raise MatchError(
                f"{label_run(members[0].branches)} and {label_run(members[1].branches)} read each other "
                "inside, but different rules skip them.", hint="Skip both in one rule.",
            )  # fmt: skip
        read = [r for r in members if _read_outside(r, bodies[g], {*needed, *demand})]
        inner = [b for r in members if r not in read for b in r.branches]
        out.append(Region(index, members[0].rule, tuple(read), frozenset(bodies[g]), tuple(inner)))
    return tuple(out)


def _read_outside(run: Run, body: set[Node], alive: set[Node]) -> bool:
    return any(u.op == "output" or u in alive and u not in body for u in run.after.users)
