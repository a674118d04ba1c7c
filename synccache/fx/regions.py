"""Regions: runs of branches that are skipped together, split where somebody reads inside them.

A run ends at a value that a skip puts in place, and may start at one that the skip adds to:

    form       start              end                       held
    RESIDUAL   the stream before  the stream after          end - start
    VALUE      -                  the stream after          end
    MODULE     -                  a branch before its gate  end
    NETWORK    the sample         the model's output        end - start, or end without a start
    WHOLE      the stream before  the stream after          end - start, though a probe reads inside

Runs of several streams whose insides read each other form one region. networkx finds the circles
that would arise if a region were one node of the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import networkx as nx
from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.dataflow import ancestors
from synccache.fx.program import Branch, ResidualProgram
from synccache.fx.runs import Layout, Region, Run, RunForm, Skipped, make_run

_NO_WORK = ("placeholder", "get_attr", "output")
_ROUNDS = 1000  # each round splits a run at least once


def lay_out(program: ResidualProgram, rules: Sequence[Skipped], roots: Iterable[Node]) -> Layout:
    """Regions for what each rule skips.

    ``roots`` are values besides the output that every step needs: the probes.
    """
    whole = [i for i, s in enumerate(rules) if s.form is RunForm.NETWORK]
    if whole and len(rules) > 1:
        return _enclosed(program, rules, whole[0], roots)
    graph = program.captured.graph
    reach = ancestors(graph)
    outputs, probes = graph.output_node().all_input_nodes, list(roots)
    runs = [run for part in _by_rules(rules) for run in _runs(program, *part)]
    for _ in range(_ROUNDS):
        starts = [r.start for r in runs if r.start is not None]  # what is held is added to them
        starts += [b.before for r in runs if r.form is RunForm.MODULE for b in r.branches]
        jumps = {r.end: r.start for r in runs}
        needed = _needed([*probes, *outputs, *starts], jumps)
        cuts = _cuts(runs, needed, without_probes=_needed([*outputs, *starts], jumps))
        if cuts:
            runs = _split(runs, cuts)
            continue
        groups, bodies = _groups(runs, needed, reach)
        cuts = _circles(graph, runs, groups, bodies, needed)
        if not cuts:
            _check_whole(runs, _needed(probes, {}))
            return Layout(_regions(runs, groups, bodies, needed), frozenset(needed))
        runs = _split(runs, cuts)
    count = sum(len(s.branches) for s in rules)
    raise MatchError(f"regions did not settle within {_ROUNDS} splits of {count} branches.")


def _enclosed(
    program: ResidualProgram, rules: Sequence[Skipped], whole: int, roots: Iterable[Node]
) -> Layout:
    """The other rules' regions inside one region for the whole network."""
    nothing = Skipped(frozenset())
    inner = lay_out(program, [nothing if i == whole else s for i, s in enumerate(rules)], roots)
    runs = tuple(_runs(program, whole, (), rules[whole]))
    body = frozenset(n for n in program.captured.graph.nodes if n.op not in _NO_WORK)
    outer = Region(len(inner.regions), whole, runs, body)
    return Layout((*inner.regions, outer), inner.needed, outer)


def _by_rules(rules: Sequence[Skipped]) -> Iterator[tuple[int, tuple[int, ...], Skipped]]:
    """(rule, other rules, what they skip together): branches apart where other rules skip them."""
    owners: dict[int, list[int]] = defaultdict(list)
    for rule, skipped in enumerate(rules):
        if skipped.form is RunForm.NETWORK:
            yield rule, (), skipped
            continue
        for branch in skipped.branches:
            owners[branch].append(rule)
    for first, *also in sorted({tuple(found) for found in owners.values()}):
        mine = frozenset(b for b, found in owners.items() if found == [first, *also])
        ends = {b: end for b, end in rules[first].ends.items() if b in mine}
        yield first, tuple(also), replace(rules[first], branches=mine, ends=ends)


def _runs(
    program: ResidualProgram, rule: int, also: tuple[int, ...], skipped: Skipped
) -> list[Run]:
    if skipped.form is RunForm.NETWORK:
        pairs = skipped.whole
        return [Run(program.branches, rule, RunForm.NETWORK, start, end) for start, end in pairs]
    if skipped.form is RunForm.MODULE:
        modules = [(program.branches[i], end) for i, end in sorted(skipped.ends.items())]
        return [Run((branch,), rule, RunForm.MODULE, None, end, also) for branch, end in modules]
    runs: list[Run] = []
    for stream in program.streams:
        current: list[Branch] = []
        for branch in [*program.of_stream(stream.index), None]:
            fits = branch is not None and branch.index in skipped.branches and _same_shape(branch)
            if current and not fits:
                runs.append(make_run(tuple(current), rule, skipped.form, also))
                current = []
            if fits:
                current.append(branch)  # type: ignore[arg-type]
    return runs


def _same_shape(branch: Branch) -> bool:
    same = branch.before.meta["shape"] == branch.after.meta["shape"]
    return bool(same and branch.before.meta["dtype"] == branch.after.meta["dtype"])


def _needed(roots: Iterable[Node], jumps: Mapping[Node, Node | None]) -> set[Node]:
    """Backward from the roots; a run's end needs only its start, if it has one."""
    seen: set[Node] = set()
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in jumps:
            start = jumps[node]
            todo += [] if start is None else [start]
        else:
            todo.extend(node.all_input_nodes)
    return seen


def _cuts(runs: list[Run], needed: set[Node], without_probes: set[Node]) -> dict[Run, int]:
    """Run -> number of its branches before the first inner value that somebody outside reads."""
    cuts = {}
    for run in runs:
        if run.form in (RunForm.MODULE, RunForm.NETWORK):
            continue  # what others read of their inside is computed on every step, beside them
        for i, branch in enumerate(run.branches):
            last = i == len(run.branches) - 1
            inner = {branch.sum} if last else {branch.sum, branch.after}
            if last:
                inner.discard(branch.after)
            if inner & (without_probes if run.form is RunForm.WHOLE else needed):
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
        out.extend(
            make_run(p, run.rule, run.form, run.also) if at is not None else run for p in parts if p
        )
    return out


def _stream_bits(run: Run) -> int:
    bits = 0
    for branch in run.branches:
        bits |= 1 << branch.sum.meta["position"] | 1 << branch.before.meta["position"]
    return bits


def _groups(
    runs: list[Run], needed: set[Node], reach: Mapping[Node, int]
) -> tuple[list[set[int]], dict[Node, set[int]]]:
    """Runs that must be one region, and for each node not always needed the runs that need it."""
    demand: dict[Node, set[int]] = defaultdict(set)
    ends = {r.end for r in runs}
    for i, run in enumerate(runs):
        todo = [run.end]
        while todo:
            node = todo.pop()
            if i in demand[node]:
                continue
            demand[node].add(i)
            todo.extend(
                n for n in node.all_input_nodes
                if n not in needed and n not in ends and n is not run.start
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
    alive = {*needed, *demand}
    for node in alive:
        readers = [
            r for r in node.meta.get("after_reads", ()) if r in alive
        ]  # it writes after them
        for operand in [*node.all_input_nodes, *readers]:
            a, b = unit.get(operand, operand), unit.get(node, node)
            if a != b:
                web.add_edge(a, b)
    for component in nx.strongly_connected_components(web):
        if len(component) < 2:
            continue
        live = [n for n in component if isinstance(n, Node)]
        members = {n[1] for n in component if isinstance(n, tuple)}
        mine = [run for i, run in enumerate(runs) if group[i] in members]
        # nothing live between regions that need each other: one of them goes on behind another's end
        edges = live or sorted((run.branches[-1].sum for run in mine), key=_position)
        cuts: dict[Run, int] = {}
        for edge in [min(edges, key=_position)] if live else edges:
            cuts = cuts or _cut_behind(mine, edge)
        if not cuts:
            run = max(mine, key=lambda r: len(r.branches))
            if len(run.branches) == 1 or run.form is RunForm.NETWORK:
                raise MatchError(
                    f"{run.branches[0].label} cannot be skipped: {edges[0].name} needs part of it and "
                    "it needs that in turn.", hint="Leave this branch out of the rule.",
                )  # fmt: skip
            cuts[run] = len(run.branches) // 2
        return cuts
    return {}


def _position(node: Node) -> int:
    return int(node.meta["position"])


def _cut_behind(runs: Iterable[Run], edge: Node) -> dict[Run, int]:
    """Runs that can be split -> the number of their branches up to this node, where it is inside."""
    cuts = {}
    for run in runs:
        if run.form in (RunForm.RESIDUAL, RunForm.VALUE, RunForm.WHOLE):
            at = sum(_position(b.sum) <= _position(edge) for b in run.branches)
            if 0 < at < len(run.branches):
                cuts[run] = at
    return cuts


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
        if len({(r.rule, r.also) for r in members}) > 1:
            raise MatchError(
                f"{members[0].label} and {members[1].label} read each other "
                "inside, but different rules skip them.", hint="Skip both in one rule.",
            )  # fmt: skip
        read = [r for r in members if _read_outside(r, bodies[g], {*needed, *demand})]
        inner = [b for r in members if r not in read for b in r.branches if b.sum not in needed]
        read = [replace(r, branches=_not_probed(r, needed)) for r in read]
        out.append(
            Region(
                index,
                members[0].rule,
                tuple(read),
                frozenset(bodies[g]),
                tuple(inner),
                members[0].also,
            )
        )
    return tuple(out)


def _not_probed(run: Run, needed: set[Node]) -> tuple[Branch, ...]:
    """The branches of a run that a skip leaves out: of a whole one not those that a probe needs."""
    if run.form is not RunForm.WHOLE:
        return run.branches
    return tuple(b for b in run.branches if b.after is run.end or b.sum not in needed)


def _check_whole(runs: list[Run], probed: set[Node]) -> None:
    """Raises: MatchError where the probes need a run to its end, so that nothing of it is left."""
    for run in runs:
        if run.form is RunForm.WHOLE and run.end in probed:
            raise MatchError(
                f"{run.label} would be skipped whole, but the probes of its rule need all of it.",
                hint="Probe fewer blocks, or skip fewer streams.",
            )


def _read_outside(run: Run, body: set[Node], alive: set[Node]) -> bool:
    return any(u.op == "output" or u in alive and u not in body for u in run.end.users)
