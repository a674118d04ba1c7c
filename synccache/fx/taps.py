"""Where probes are read in a recorded forward, found by data flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.conditions import SAMPLE, nodes_tagged
from synccache.fx.dataflow import backward_closure, carried
from synccache.fx.modules import ungated
from synccache.fx.program import Branch, ResidualProgram
from synccache.policies import dsl

TIMESTEP = "timestep"


@dataclass(frozen=True, slots=True)
class Taps:
    """Where a probe is read: one value, and for a residual the value to subtract from it."""

    after: Node
    before: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.after,) if self.before is None else (self.after, self.before)


Select = Callable[[dsl.Selector, ResidualProgram], frozenset[int]]


def probes_of(rule: dsl.Rule) -> tuple[dsl.Probe, ...]:
    """The probes that a rule's gate reads before it decides, each once."""
    found: list[dsl.Probe] = []
    for signal in dsl.measured_signals(rule.when):
        for name in ("probe", "of", "per"):
            probe = getattr(signal, name, None)
            if isinstance(probe, dsl.PROBES) and not isinstance(probe, (dsl.Prediction, dsl.Given)):
                found.append(probe)
    if isinstance(rule.reuse, dsl.TwoAnchor):
        found.append(anchor_probe(rule))
    return tuple(dict.fromkeys(found))


def reads_prediction(rule: dsl.Rule) -> bool:
    """Whether a rule's gate needs the model's output, which is known only after the step."""
    return any(
        isinstance(getattr(signal, name, None), dsl.Prediction)
        for signal in dsl.measured_signals(rule.when)
        for name in ("probe", "of", "per")
    )


Transform = tuple[dsl.Weight, ...]  # the weights that change what is kept of a probe
Kept = tuple[dsl.Probe, dsl.Since | dsl.Forecast, Transform]


def kept_key(signal: dsl.RelativeL1 | dsl.MeanChange) -> Kept:
    """Under what the reference of a measurement is kept."""
    changing = (dsl.ChannelStride, dsl.Spectral)
    weights = tuple(w for w in dsl.weights_of(signal) if isinstance(w, changing))
    return signal.probe, signal.since, weights


def kept(signals: Iterable[dsl.Signal]) -> tuple[Kept, ...]:
    """What a gate keeps from step to step for these signals, each once."""
    found: list[Kept] = []
    for signal in signals:
        if isinstance(signal, (dsl.RelativeL1, dsl.MeanChange)):
            found.append(kept_key(signal))
        elif isinstance(signal, (dsl.MeanSize, dsl.SizeRatio)):
            found.append((signal.probe, signal.since, ()))
        elif isinstance(signal, dsl.Gain):
            found += [(probe, dsl.LAST_COMPUTED, ()) for probe in (signal.of, signal.per)]
    return tuple(dict.fromkeys(found))


def anchor_probe(rule: dsl.Rule) -> dsl.Residual:
    """The residual on which ``TwoAnchor`` measures how far it is: of the rule's first probe."""
    for signal in dsl.measured_signals(rule.when):
        probe = getattr(signal, "probe", None)
        if isinstance(probe, (dsl.Output, dsl.Residual)):
            return dsl.Residual(probe.of)
    raise AssertionError("Rule refuses TwoAnchor without such a probe")


def prediction_node(program: ResidualProgram) -> Node:
    """The model's output: the one shaped like the sample, or the first."""
    outputs = program.captured.graph.output_node().all_input_nodes
    shapes = [n.meta["shape"] for n in nodes_tagged(program.tags, SAMPLE)]
    return next((n for n in outputs if n.meta.get("shape") in shapes), outputs[0])


def main_stream(program: ResidualProgram) -> int:
    """The stream with the most FLOPs: the one that probes are read on."""
    return max(
        range(len(program.streams)), key=lambda i: sum(b.flops for b in program.of_stream(i))
    )


def find_taps(
    probe: dsl.Probe, skip: Iterable[int], program: ResidualProgram, select: Select, where: str
) -> Taps:
    """Where a probe is read.

    Raises:  MatchError: it names nothing on this model, or lies behind a branch that is skipped.
    """
    taps = _find(probe, program, select, where)
    taken = backward_closure(list(taps.nodes), set())
    skipped = set(skip)
    behind = [b for b in program.branches if b.index in skipped and b.sum in taken]
    if behind:
        raise MatchError(
            f"the probe {probe!r} lies behind {behind[0].label}: it needs {len(behind)} of the "
            f"{len(skipped)} branches that this rule skips.",
            where=where, hint="Probe blocks before the first skipped one, or skip whole(...).",
        )  # fmt: skip
    return taps


def _find(probe: dsl.Probe, program: ResidualProgram, select: Select, where: str) -> Taps:
    if isinstance(probe, dsl.Latent):
        return Taps(nodes_tagged(program.tags, SAMPLE)[0])
    if isinstance(probe, dsl.TimeEmbedding):
        return Taps(_time_embedding(probe, program, where))
    assert isinstance(probe, dsl.SELECTING)
    mine = on_main_stream(
        [b for b in program.branches if b.index in select(probe.of, program)], program
    )
    if not mine:
        raise MatchError(f"the probe {probe!r} names no branch.", where=where)
    if isinstance(probe, dsl.Output):
        return Taps(mine[-1].after)
    if isinstance(probe, dsl.Entering):
        return Taps(mine[0].before)
    if isinstance(probe, dsl.Residual):
        return Taps(mine[-1].after, mine[0].before)
    if isinstance(probe, dsl.Modulated):
        return Taps(_first_projected(mine[0], probe, where))
    return Taps(ungated(mine[0], program))


def on_main_stream(chosen: Sequence[Branch], program: ResidualProgram) -> list[Branch]:
    """Those of the branches that a probe reads: of the stream with the most FLOPs, where it is."""
    if not chosen:
        return []
    stream = main_stream(program)
    if not any(b.stream == stream for b in chosen):
        # the main stream begins later: another one goes into it
        weight = {b.stream: sum(c.flops for c in chosen if c.stream == b.stream) for b in chosen}
        stream = max(weight, key=lambda s: weight[s])
    return [b for b in chosen if b.stream == stream]


def _first_projected(branch: Branch, probe: dsl.Probe, where: str) -> Node:
    """The operand of the first matrix product on the way from the stream to what the branch adds."""
    body = backward_closure(branch.addends, {branch.before})
    reached = {branch.before}
    for node in sorted(body, key=lambda n: int(n.meta["position"])):
        found = [n for n in node.all_input_nodes if n in reached]
        if not found:
            continue
        if node.meta.get("flops", 0):
            return found[0]
        reached.add(node)
    raise MatchError(
        f"the probe {probe!r} finds no matrix product in {branch.label} that the stream reaches.",
        where=where, hint="Name a branch with an attention or an MLP, or use output(...).",
    )  # fmt: skip


def _time_embedding(probe: dsl.TimeEmbedding, program: ResidualProgram, where: str) -> Node:
    """The last tensor that all uses of the timestep go through: a common dominator of them."""
    times = nodes_tagged(program.tags, TIMESTEP)
    if not times:
        raise MatchError(
            "time_embedding needs a timestep, and no input is marked as one.", where=where,
            hint="Pass conditions={'timestep': ['<argument name>']} to compile().",
        )  # fmt: skip
    captured = program.captured
    pooled = {n for n in captured.placeholders if len(n.meta["shape"]) <= 2}
    bits = 0
    for node in captured.placeholders:
        if node not in pooled:
            bits |= captured.depends[node]
    bits &= ~sum(captured.depends[n] for n in times)
    own = sum(captured.depends[n] for n in times)
    made = [
        n for n in captured.graph.nodes
        if n.op not in ("output", "get_attr") and captured.depends.get(n, 0) & own
        and not captured.depends[n] & bits
    ]  # fmt: skip
    inside = set(made)
    uses = {n for n in made if any(u not in inside for u in n.users)}
    if probe.stage is dsl.PROJECTION:
        bodies = {n for b in program.branches for n in backward_closure(b.addends, {b.before})}
        uses = {n for n in uses if any(u in bodies and u not in inside for u in n.users)}
    web: nx.DiGraph = nx.DiGraph()
    for node in made:
        web.add_edges_from((a, node) for a in node.all_input_nodes if a in inside)
        if not any(a in inside for a in node.all_input_nodes):
            web.add_edge(_BEFORE, node)
    common = _common_dominator(web, uses)
    if not isinstance(common, Node) or _is_view_of_input(common):
        raise MatchError(
            f"{probe!r}: the {len(uses)} uses of the timestep have no tensor in common that is made "
            "from it.", where=where, hint="Probe modulated(...) of a block instead.",
        )  # fmt: skip
    return common


_BEFORE = "before"  # what stands before all that is made of the timestep


def _is_view_of_input(node: Node) -> bool:
    """Whether a value is the timestep itself, in another shape or dtype."""
    while node.op != "placeholder" and len(carried(node)) == 1:
        (node,) = carried(node)
    return node.op == "placeholder"


def _common_dominator(web: nx.DiGraph, uses: Iterable[Node]) -> Node | str | None:
    above = nx.immediate_dominators(web, _BEFORE)

    def line(node: Node) -> list[Node | str]:
        found: list[Node | str] = [node]
        while found[-1] != _BEFORE:
            found.append(above[found[-1]])
        return found

    lines = [line(n) for n in uses]
    if not lines:
        return None
    shared = set(lines[0]).intersection(*lines[1:])
    return next((n for n in lines[0] if n in shared), None)
