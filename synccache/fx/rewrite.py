"""``rewrite``: a residual program with gates, skip regions and hoisted values, as a GraphModule.

    h1 = self.blocks.0(h, t)            h1 = self.blocks.0(h, t)
    h2 = self.blocks.1(h1, t)    ->     skip_0 = self.gate_0(call, h1)
    h3 = h2 + self.audio.1(h2, a)       h2 = self.region_0(call, skip_0, h1, t)
                                        h3 = h2 + self.audio_1(h2, k, v)

Legal graph in, legal graph out; the recorded program is not changed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from synccache.errors import MatchError
from synccache.fx.capture import Captured
from synccache.fx.drift import BoundaryTap
from synccache.fx.emit import (
    Emitter,
    Item,
    Key,
    assemble,
    call_graph,
    is_free,
    write_items,
)
from synccache.fx.live import live_nodes, refuse_lost_writes
from synccache.fx.match import RuleMatch
from synccache.fx.modules import moving
from synccache.fx.planning import Keep
from synccache.fx.program import ResidualProgram
from synccache.fx.region_lines import (
    cost,
    invariant_item,
    is_output,
    made_as,
    region_items,
    used_by,
)
from synccache.fx.runs import Layout, Region, Run
from synccache.fx.shadow import shadow_items
from synccache.fx.skip import Holding
from synccache.fx.tokens import token_branches
from synccache.fx.watchers import cluster_items, gate_items, tap_item, write_taps
from synccache.fx.writes import position
from synccache.policies import dsl

TOP = "top"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An emitted graph and what is known of it.

    ``module(call, *input tensors)`` returns the flat tuple of output tensors.
    """

    module: GraphModule
    regions: tuple[Region, ...]
    invariants: tuple[str, ...]
    gates: int


def rewrite(
    model: nn.Module, program: ResidualProgram | None, captured: Captured,
    matches: tuple[RuleMatch, ...], layout: Layout, hoisted: dict[Node, int],
    kept: tuple[Keep, ...], *, name: str, find_mask: bool, measure: bool = False,
    silent: frozenset[int] = frozenset(),
) -> Rewritten:  # fmt: skip
    """Emits the program with its regions guarded by gates.

    Args:
        hoisted: nodes to compute once, with the bit mask of the inputs they depend on.
        kept: for each region, how what it holds is stored and what predicts from it.
        find_mask: also watch what the audio branches write, for policies that weigh by a mask.
        measure: also show every region boundary to the call's drift meter.
        silent: rules whose gate stands elsewhere.
    """
    if layout.outer is not None:
        return _enclosed(
            model, program, captured, matches, layout, hoisted, kept, name=name,
            find_mask=find_mask, measure=measure,
        )  # fmt: skip
    live = live_nodes(captured, matches, layout)
    beside = {n for i, m in enumerate(matches) if program for n in _beside(i, m, program, layout)}
    unit_of = _units(captured, live, layout, hoisted, beside)
    for region in layout.regions:
        inside = [n for n, unit in unit_of.items() if unit == ("region", region.index)]
        refuse_lost_writes(inside, region.label)
    ends = {run.end: region.index for region in layout.regions for run in region.runs}

    def visible(node: Node, unit: Hashable) -> bool:
        if node.op == "placeholder":
            return not _is_invariant(unit) or bool(captured.depends[node] & unit[1])  # type: ignore[index]
        if node not in unit_of:
            return False
        where = unit_of[node]
        return (
            where == unit
            or where == TOP
            and not _is_invariant(unit)
            or _is_invariant(where)
            or node in ends
        )

    probed = frozenset(n for m in matches for taps in m.taps.values() for n in taps.nodes)
    emitter = Emitter(model, captured, unit_of, visible, probed)
    placed = emitter.place()
    items = list(placed.pop(TOP, []))
    uses = {unit: used_by(lines) for unit, lines in [(TOP, items), *placed.items()]}
    for region in layout.regions:  # a run may start at a value that its own branches do not read
        starts = {run.start for run in region.runs if run.start is not None}
        uses["region", region.index] = uses.get(("region", region.index), set()) | starts
    names: list[str] = []
    for unit, lines in sorted(placed.items(), key=lambda kv: min(i.position for i in kv[1])):
        if _is_invariant(unit):
            wanted = set().union(*(found for other, found in uses.items() if other != unit))
            guarded = any("guard" in n.meta for line in lines for n in line.inside)
            defined = {d for line in lines for d in line.defs}
            if not guarded and not any(d in wanted or is_output(d) for d in defined):
                continue  # an argument of modules that were opened, which nothing reads
            item, label = invariant_item(emitter, unit[1], lines, wanted)  # type: ignore[index]
            names.append(label)
            items.append(item)
        else:
            region = layout.regions[unit[1]]  # type: ignore[index]
            made = partial(made_as, matches[region.rule], program)
            taps = [t for rule in region.rules for t in matches[rule].taps.values()]
            decided = max((position(n) for t in taps for n in t.nodes), default=-1)
            items += region_items(emitter, region, kept[region.index], lines, made, decided)
    # what depends on no input of the loop is computed once, not skipped: nothing is held of it
    held = replace(
        layout, regions=tuple(r for r in layout.regions if ("region", r.index) in placed)
    )
    for i, matched in enumerate(matches):
        if i in silent:
            continue
        items += gate_items(i, matched, held, captured.graph, program)
        items += cluster_items(i, matched, program)
        if program is not None:
            items += shadow_items(emitter, i, matched, program, {d for x in items for d in x.defs})
    if find_mask and program is not None:
        items += write_taps(program, layout, {d for item in items for d in item.defs})
    if measure:
        items += [
            tap_item(node, BoundaryTap(side, region.index, i), f"drift_{side}_{region.index}_{i}")
            for region in layout.regions
            for i, run in enumerate(region.runs)
            for side, node in (("start", _measured_start(run)), ("end", run.end))
        ]
    module = _finished(model, captured, items, name)
    return Rewritten(module, layout.regions, tuple(names), len(matches) - len(silent))


def _finished(model: nn.Module, captured: Captured, items: list[Item], name: str) -> GraphModule:
    """A graph module of these lines, from a call and the input tensors to the output tensors."""
    graph = Graph()
    values: dict[Key, Node] = {"call": graph.placeholder("call")}
    for node in captured.placeholders:
        values[node] = graph.placeholder(node.name)
        values[node].meta.update(shape=node.meta["shape"], dtype=node.meta["dtype"], origin="")
    children = write_items(graph, items, values, captured.autocast)
    results: Any = captured.graph.output_node().args[0]
    for node in results:
        if is_free(node):
            values[node] = graph.get_attr(node.target)
    graph.output(tuple(values[node] for node in results))
    module = assemble(model, captured, graph, name, children)
    assert isinstance(module, GraphModule)
    return module


class Enclosed(nn.Module):
    """An emitted graph as the body of a region: ``forward(*starts, call, *input tensors)``."""

    def __init__(self, module: GraphModule, starts: int) -> None:
        super().__init__()
        self.module, self.starts = module, starts

    def forward(self, *inputs: Any) -> Any:
        out = self.module(*inputs[self.starts :])
        return out[0] if len(out) == 1 else out


def _enclosed(
    model: nn.Module, program: ResidualProgram | None, captured: Captured,
    matches: tuple[RuleMatch, ...], layout: Layout, hoisted: dict[Node, int],
    kept: tuple[Keep, ...], *, name: str, find_mask: bool, measure: bool,
) -> Rewritten:  # fmt: skip
    """A graph with one region, whose body is the graph that the other rules make."""
    outer = layout.outer
    assert outer is not None
    refuse_lost_writes(captured.graph.nodes, outer.label)
    ends = [run.end for run in outer.runs]
    if list(captured.graph.output_node().args[0]) != ends:  # type: ignore[arg-type]
        raise MatchError(
            "the network has outputs that are inputs, constants or one another, so it cannot be skipped "
            "beside other rules.", hint="Leave the rule for the network out.",
        )  # fmt: skip
    inner = rewrite(
        model, program, captured, matches, replace(layout, regions=layout.regions[:-1], outer=None),
        hoisted, kept, name=f"{name}Inside", find_mask=find_mask, measure=measure,
        silent=frozenset([outer.rule]),
    )  # fmt: skip
    starts = [run.start for run in outer.runs if run.start is not None]
    flops, seconds = cost(outer.body)
    keep, gate = kept[outer.index], f"gate {outer.rule}"
    module = made_as(matches[outer.rule], program, outer)(
        Enclosed(inner.module, len(starts)), outer.index, keep.predictor,
        tuple(
            Holding(None if run.start is None else starts.index(run.start), False, True,
                    run.end.meta["dtype"])
            for run in outer.runs
        ),
        tensors=keep.tensors, flops=flops, seconds=seconds, storage=keep.storage,
        visual_flops=sum(b.flops for b in outer.branches if dsl.AUDIO not in b.reads),
    )  # fmt: skip

    def write(graph, value):  # type: ignore[no-untyped-def]
        given = [*map(value, starts), value("call"), *map(value, captured.placeholders)]
        line = [value("call"), value(gate), *given]
        return call_graph(graph, f"region_{outer.index}", module, line, ends, outer.label)

    uses = frozenset([gate, *starts, *captured.placeholders])
    count = float(len(captured.graph.nodes))
    items = [
        *gate_items(outer.rule, matches[outer.rule], layout, captured.graph, program),
        Item(count, uses, frozenset(ends), frozenset(), write),
    ]
    return Rewritten(
        _finished(model, captured, items, name), layout.regions, inner.invariants, len(matches)
    )


def _is_invariant(unit: Hashable) -> bool:
    return isinstance(unit, tuple) and unit[0] == "invariant"


def _beside(rule: int, matched: RuleMatch, program: ResidualProgram, layout: Layout) -> set[Node]:
    """What a region that runs token by token makes without the latents (modulation, perhaps one row a
    token): made outside it, so that the region takes rows of it."""
    chosen, moves = token_branches(matched, program), moving(program)
    bodies = [r.body for r in layout.regions if r.rule == rule and r.branches[0].index in chosen]
    return {n for body in bodies for n in body if not moves(n)}


def _units(
    captured: Captured, live: set[Node], layout: Layout, hoisted: dict[Node, int],
    beside: set[Node],
) -> dict[Node, Hashable]:  # fmt: skip
    region_of = {n: r.index for r in layout.regions for n in r.body if n not in beside}
    ends = {run.end for r in layout.regions for run in r.runs}
    units: dict[Node, Hashable] = {}
    for node in captured.graph.nodes:
        if node not in live or node.op in ("placeholder", "get_attr", "output"):
            continue
        if node in hoisted:
            units[node] = ("invariant", hoisted[node])
        elif node in region_of:
            units[node] = ("region", region_of[node])
        else:
            units[node] = _unit_of_rest(node, units, ends)
    return units


def _unit_of_rest(node: Node, units: dict[Node, Hashable], ends: set[Node]) -> Hashable:
    """TOP, except for what only a guard needs and what reads the inside of a region."""
    inside = {units[n] for n in node.all_input_nodes if n in units and n not in ends}
    regions = sorted(u for u in inside if isinstance(u, tuple) and u[0] == "region")
    if len(regions) > 1:
        raise MatchError(
            f"{node.name} reads a number from values inside {len(regions)} regions.",
            hint="Skip fewer branches, so that one region holds them.",
        )
    return regions[0] if regions else TOP


def _measured_start(run: Run) -> Node:
    if run.start is None:
        raise MatchError(
            f"drift is measured on residuals, and the policy holds values: {run.label}.",
            hint="Calibrate a policy that skips segments(...) or selectors.",
        )
    return run.start
