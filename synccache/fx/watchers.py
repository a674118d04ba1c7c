"""Lines of an emitted graph that watch: gates, clusters of tokens, taps for drift and for masks."""

from __future__ import annotations

from torch import nn
from torch.fx import Graph, Node

from synccache.fx.emit import Item, Key, copy_item, written_between
from synccache.fx.gate import Gate, Settle
from synccache.fx.match import RuleMatch
from synccache.fx.program import ResidualProgram
from synccache.fx.runs import Layout
from synccache.fx.runtime import AudioWrites
from synccache.fx.taps import main_stream, prediction_node
from synccache.fx.tokens import Clusters, clustered
from synccache.policies import dsl


def gate_items(
    index: int, matched: RuleMatch, layout: Layout, graph: Graph, program: ResidualProgram | None
) -> list[Item]:
    """The gate's line, copies of probed values whose memory is written to before it runs, and a line
    behind the model's output where the gate watches that.

    What a gate keeps for later steps is copied where it lies in memory that is written to behind it,
    by the forward or, between two calls, by the loop (``latents.add_``).
    """
    probes = [n for taps in matched.taps.values() for n in taps.nodes]
    runs = tuple(
        (r.index, i) for r in layout.regions if index in r.rules for i in range(len(r.runs))
    )
    last = max((_position(n) for n in probes), default=-1)
    early = [n for n in dict.fromkeys(probes) if written_between(graph, n, _position(n), last)]
    foreign = _callers_memory(graph)
    late = any(
        n.meta.get("storage") in foreign or written_between(graph, n, last, len(graph.nodes))
        for n in probes
    )
    module = Gate(index, matched, runs, late)
    keys: list[Key] = [(f"copy for gate {index}", n) if n in early else n for n in probes]

    def write(graph: Graph, value):  # type: ignore[no-untyped-def]
        args = (value("call"), *map(value, keys))
        node = graph.create_node("call_module", f"gate_{index}", args, {}, name=f"skip_{index}")
        node.meta.update(module=module, origin="")
        return {f"gate {index}": node}

    gate = Item(last + 0.5, frozenset(keys), frozenset({f"gate {index}"}), frozenset(), write)
    behind = [] if program is None or not module.settles else [_settle_item(module, program)]
    return [*(copy_item(n, (f"copy for gate {index}", n)) for n in early), gate, *behind]


def _callers_memory(graph: Graph) -> set[object]:
    """Memory of the inputs and outputs of a forward: a loop may write to it between two calls."""
    given = [n for n in graph.nodes if n.op == "placeholder"]
    return {n.meta["storage"] for n in (*given, *graph.output_node().all_input_nodes)
            if "storage" in n.meta}  # fmt: skip


def _settle_item(gate: Gate, program: ResidualProgram) -> Item:
    output, skip = prediction_node(program), f"gate {gate.rule}"

    def write(graph: Graph, value):  # type: ignore[no-untyped-def]
        args = (value("call"), value(skip), value(output))
        name = f"after_{gate.rule}"
        graph.create_node("call_module", name, args, {}, name=name).meta.update(
            module=Settle(gate), origin=""
        )
        return {}

    position = len(program.captured.graph.nodes) + gate.rule
    return Item(float(position), frozenset([skip, output]), frozenset(), frozenset(), write)


def _position(node: Node) -> int:
    return int(node.meta["position"])


def write_taps(program: ResidualProgram, layout: Layout, visible: set[Key]) -> list[Item]:
    """One line behind each live audio branch of the main stream that measures what it adds; not
    behind branches inside a module that is called whole."""
    stream = main_stream(program)
    skipped = {b.index for r in layout.regions for b in r.branches}
    found = [
        b for b in program.of_stream(stream)
        if dsl.AUDIO in b.reads and b.index not in skipped and len(b.addends) == 1
        and b.addends[0] in visible
    ]  # fmt: skip
    return [
        tap_item(b.addends[0], AudioWrites(_tokens(b.before)), f"audio_writes_{i}")
        for i, b in enumerate(found)
    ]


def _tokens(node: Node) -> int:
    tokens = 1
    for size in node.meta["shape"][1:-1]:
        tokens *= size
    return tokens


def tap_item(node: Node, module: nn.Module, name: str) -> Item:
    """A line that shows a value to a module and makes nothing."""

    def write(graph: Graph, value):  # type: ignore[no-untyped-def]
        line = graph.create_node("call_module", name, (value("call"), value(node)), {}, name=name)
        line.meta.update(module=module, origin="")
        return {}

    return Item(node.meta["position"] + 0.25, frozenset([node]), frozenset(), frozenset(), write)


def cluster_items(index: int, matched: RuleMatch, program: ResidualProgram | None) -> list[Item]:
    """The line that groups tokens on computed steps, behind the stream that it groups."""
    tokens, last = matched.rule.tokens, None
    if program is not None:
        last = clustered(matched, program)
    if last is None or not isinstance(tokens, dsl.OnePerCluster):
        return []
    stream = last.after
    module = Clusters(index, tokens)

    def write(graph: Graph, value):  # type: ignore[no-untyped-def]
        given = (value("call"), value(f"gate {index}"), value(stream))
        name = f"clusters_{index}"
        line = graph.create_node("call_module", name, given, {}, name=name)
        line.meta.update(module=module, origin="")
        return {}

    uses = frozenset([stream, f"gate {index}"])
    return [Item(_position(stream) + 0.35, uses, frozenset(), frozenset(), write)]
