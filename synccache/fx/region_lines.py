"""Lines of an emitted graph that compute or skip: regions, and values kept once a trajectory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch.fx import Node

from synccache.fx.capture import Captured
from synccache.fx.emit import Emitter, Item, Key, call_graph, copy_item, is_free
from synccache.fx.match import RuleMatch
from synccache.fx.planning import Keep
from synccache.fx.program import ResidualProgram
from synccache.fx.runs import Region
from synccache.fx.runtime import Invariant
from synccache.fx.same import Program
from synccache.fx.siblings import SiblingRegion
from synccache.fx.skip import Holding, SkipRegion
from synccache.fx.tokens import TokenRegion, token_branches
from synccache.fx.writes import written_in, written_outside, written_too_early
from synccache.policies import dsl


def _external(items: list[Item]) -> tuple[list[Node], set[Key], frozenset[Node]]:
    """What a group of lines needs from outside, makes, and contains."""
    defs = {d for i in items for d in i.defs}
    uses = {
        u for i in items for u in i.uses if u not in defs and isinstance(u, Node) and not is_free(u)
    }
    inside = frozenset(n for i in items for n in i.inside)
    return sorted(uses, key=lambda n: n.meta["position"]), defs, inside


def _names(captured: Captured, inputs: list[Node]) -> list[str]:
    """Parameters where all their tensors are among the inputs, the tensors' own names elsewhere."""
    whole = {captured.parameter_of(n) for n in captured.placeholders} - {
        captured.parameter_of(n) for n in captured.placeholders if n not in inputs
    }
    owners = [(n, captured.parameter_of(n)) for n in inputs]
    return list(dict.fromkeys(owner if owner in whole else n.name for n, owner in owners))


def invariant_item(
    emitter: Emitter, bits: int, items: list[Item], wanted: set[Key]
) -> tuple[Item, str]:
    inputs, defs, inside = _external(items)
    captured = emitter.captured
    guards = [n for n in captured.placeholders if captured.depends[n] & bits]
    others = [n for n in inputs if n not in guards]
    outputs = [
        n for n in sorted((d for d in defs if isinstance(d, Node)), key=lambda n: n.meta["position"])
        if n in wanted or is_output(n)
    ]  # fmt: skip
    label = "_and_".join(_names(captured, guards))
    name = f"invariant_{label}" if label else "constants_once"
    body = emitter.build(items, [*guards, *others], outputs, name)
    flops, seconds = cost(inside)
    program = Program(body, captured.autocast, len(guards))
    module = Invariant(body, program, len(guards), flops=flops, seconds=seconds)

    def write(graph, value):  # type: ignore[no-untyped-def]
        return call_graph(
            graph, name, module, [value("call"), *map(value, [*guards, *others])], outputs, ""
        )

    uses = frozenset([*guards, *others])
    return Item(-1.0, uses, frozenset(outputs), inside, write), name


def cost(nodes: Iterable[Node]) -> tuple[int, float]:
    """FLOPs and seconds of recorded operations."""
    listed = list(nodes)
    flops = sum(n.meta.get("flops", 0) for n in listed)
    return flops, float(sum(n.meta.get("seconds", 0.0) for n in listed))


def used_by(items: list[Item]) -> set[Key]:
    """What a group of lines needs, from inside and outside."""
    return {u for i in items for u in i.uses}


def made_as(matched: RuleMatch, program: ResidualProgram | None, region: Region) -> Any:
    """The class of a region's module, and what to tell it: token by token where the rule says so."""
    if isinstance(matched.rule.reuse, dsl.FromSibling):
        return SiblingRegion
    chosen = token_branches(matched, program) if program is not None else {}
    branch = region.branches[0]
    if len(region.branches) > 1 or branch.index not in chosen:
        return SkipRegion
    tokens, aside = matched.rule.tokens, chosen[branch.index]
    assert tokens is not None

    def make(*args: Any, **kwargs: Any) -> TokenRegion:
        region_module = TokenRegion(*args, **kwargs)
        return region_module.set_tokens(tokens, aside=aside, rule=region.rule, label=branch.label)

    return make


def region_items(
    emitter: Emitter, region: Region, keep: Keep, items: list[Item], made: Callable[[Region], Any],
    decided: int,
) -> list[Item]:  # fmt: skip
    """The region's line, behind copies of what it reads where others write to that first.

    decided: position of the last value that its gate reads.
    """
    inputs, _, inside = _external(items)
    starts = list(dict.fromkeys(run.start for run in region.runs if run.start is not None))
    ends = [run.end for run in region.runs]
    ordered = [*starts, *(n for n in inputs if n not in starts)]
    name = f"region_{region.index}"
    holds = tuple(
        Holding(
            start=None if run.start is None else starts.index(run.start),
            copy_start=run.start is not None and written_in(run.start, inside),
            copy_end=run.start is None and written_outside(run, inside, emitter.captured.graph),
            dtype=run.end.meta["dtype"],
        )
        for run in region.runs
    )
    visual = sum(b.flops for b in region.branches if dsl.AUDIO not in b.reads)
    body = emitter.build(items, ordered, ends, name)
    flops, seconds = cost(inside)
    module = made(region)(
        body,
        region.index,
        keep.predictor,
        holds,
        tensors=keep.tensors,
        flops=flops,
        visual_flops=visual,
        seconds=seconds,
        storage=keep.storage,
    )
    gates = [f"gate {rule}" for rule in region.rules]
    early = written_too_early(region, ordered, inside, decided, emitter.captured.graph)
    keys: list[Key] = [(name, n) if n in early else n for n in ordered]
    reading = frozenset(n for n in inside if early.isdisjoint(n.all_input_nodes))

    def write(graph, value):  # type: ignore[no-untyped-def]
        skip = value(gates[0])
        for other in gates[1:]:
            skip = graph.call_function(operator.or_, (skip, value(other)))
        inner = [value("call"), skip, *map(value, keys)]
        return call_graph(graph, name, module, inner, ends, region.label)

    line = Item(
        min(i.position for i in items), frozenset([*keys, *gates]), frozenset(ends), reading, write
    )
    return [*(copy_item(n, (name, n)) for n in ordered if n in early), line]


def is_output(key: Key) -> bool:
    """Whether a recorded value is an output of the model."""
    return isinstance(key, Node) and any(u.op == "output" for u in key.users)
