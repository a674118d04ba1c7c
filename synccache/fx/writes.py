"""Writes to memory that recorded values live in: what a region must copy because others write to it."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

from synccache.fx.runs import Region, Run, RunForm


def written_too_early(
    region: Region, inputs: list[Node], inside: frozenset[Node], decided: int, graph: Graph
) -> frozenset[Node]:
    """Inputs of a region in memory that others write to before it runs: behind its gate, at ``decided``,
    and what a run starts from until the run ends."""
    until = dict.fromkeys(inputs, decided)
    for run in region.runs:
        if run.start is not None:
            until[run.start] = max(decided, position(run.end))
    others = [n for n in graph.nodes if "after_reads" in n.meta and n not in inside]
    return frozenset(
        n for n in inputs
        if written_in(n, [o for o in others if position(n) < position(o) < until[n] + 1])
    )  # fmt: skip


def position(node: Node) -> int:
    return int(node.meta["position"])


def written_in(node: Node, inside: Iterable[Node]) -> bool:
    """Whether one of these operations writes to the memory that ``node`` lives in."""
    return any(
        "after_reads" in n.meta and n.meta.get("storage") == node.meta.get("storage")
        for n in inside
    )  # fmt: skip


def written_outside(run: Run, inside: frozenset[Node], graph: Graph) -> bool:
    """Whether what a run ends in is written to later; callers may write to what they are given."""
    later = [n for n in graph.nodes if n not in inside and n.op != "output"]
    home = run.end.meta.get("storage")
    returned = any(o.meta.get("storage") == home for o in graph.output_node().all_input_nodes)
    return run.form is RunForm.NETWORK or returned or written_in(run.end, later)
