"""Skipped branches that run beside a skipped step, to see how wrong it is: ``exact_error(...)``.

    h4 = h3 + gate * predicted                  h4 = h3 + gate * predicted
                                        ->      exact_error_0_0(call, skip_0, h4, h3, ...)

The branches start from the stream as the skipped step has it. Nothing that the step computes changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from synccache.errors import MatchError
from synccache.fx import metrics
from synccache.fx.emit import Emitter, Item, Key, copy_item, is_free, written_between
from synccache.fx.match import RuleMatch, select
from synccache.fx.program import ResidualProgram
from synccache.fx.runtime import Call
from synccache.fx.taps import on_main_stream
from synccache.policies import dsl

_UNIT = "shadow"


class ExactError(nn.Module):
    """Measures one signal on the skipped steps that ask for it; the number stays on the device.

    ``forward(call, skip, draft, *inputs)``: the stream as the skipped step has it after the watched
    branches, and what these need. FLOPs that it costs are taken from those that the skip saved.
    """

    def __init__(
        self, body: nn.Module, rule: int, signal: dsl.ExactError, copied: tuple[bool, ...], *,
        flops: int, seconds: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body, self.rule, self.signal, self.copied = body, rule, signal, copied
        self.flops, self.seconds = flops, seconds

    def forward(self, call: Call, skip: bool, draft: Tensor, *inputs: Any) -> None:
        state = call.state.gate(self.rule)
        earlier = state.streak - 1  # skipped steps in a row before this one
        if not skip or not call.leads or earlier < self.signal.after:
            return
        exact = self.body(*(x.clone() if c else x for x, c in zip(inputs, self.copied)))
        call.state.flops_saved -= self.flops
        call.state.seconds_saved -= self.seconds
        signal = self.signal
        error = metrics.relative(exact, draft, signal.norm, signal.denominator, signal.eps)
        state.late[signal] = (call.trajectory.step, error)


@dataclass(frozen=True, slots=True)
class _Watched:
    """Where the watched branches start, where they end, and every operation in between."""

    starts: tuple[Node, ...]
    end: Node
    body: frozenset[Node]


def shadow_items(
    emitter: Emitter, index: int, matched: RuleMatch, program: ResidualProgram, made: set[Key]
) -> list[Item]:  # fmt: skip
    """A line for each ``exact_error`` of a rule.

    Args:
        made: the recorded values that can be read outside the regions.

    Raises:
        MatchError: the rule does not skip those branches, or the stream before them is not known on
            a skipped step.
    """

    def top(node: Node) -> bool:
        return node.op == "placeholder" or node in made

    signals = [s for s in dsl.measured_signals(matched.rule.when) if isinstance(s, dsl.ExactError)]
    return [
        item
        for n, signal in enumerate(signals)
        for item in _items(emitter, index, n, signal, _watched(signal, matched, program, top), top)
    ]


def _watched(
    signal: dsl.ExactError, matched: RuleMatch, program: ResidualProgram,
    top: Callable[[Node], bool],
) -> _Watched:  # fmt: skip
    chosen = [b for b in program.branches if b.index in select(signal.of, program)]
    mine = on_main_stream(chosen, program)
    if not mine or not any(b.index in matched.skip for b in chosen):
        raise MatchError(
            f"{signal!r} watches {len(chosen)} branches, of which the rule skips none.",
            hint="Watch branches that the rule skips, e.g. blocks[-1].",
        )
    first = {b.stream: b.before for b in reversed(chosen)}
    end = mine[-1].after
    hidden = [n for n in (*first.values(), end) if not top(n)]
    if hidden:
        raise MatchError(
            f"{signal!r} runs branches on the predicted stream, but a skipped step does not make "
            f"{hidden[0].name}, which they start from or end in.",
            hint="Skip modules(...), so that the stream is known between branches.",
        )
    behind = set(first.values())
    for node in program.captured.graph.nodes:
        if any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    starts = tuple(first.values())
    body: set[Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        outside = node in starts or node.op == "placeholder" or is_free(node)
        if outside or node in body or node not in behind and top(node):
            continue
        body.add(node)
        todo.extend(node.all_input_nodes)
    return _Watched(starts, end, frozenset(body))


def _items(
    emitter: Emitter, index: int, number: int, signal: dsl.ExactError, watched: _Watched,
    top: Callable[[Node], bool],
) -> list[Item]:  # fmt: skip
    """The line, and copies of what the skipped step writes to before the line runs."""
    own = Emitter(
        emitter.model, emitter.captured, dict.fromkeys(watched.body, _UNIT),
        lambda node, _: node in watched.body or top(node),
    )  # fmt: skip
    lines = own.place()[_UNIT]
    defs = {d for i in lines for d in i.defs}
    uses = {
        u for i in lines for u in i.uses if isinstance(u, Node) and u not in defs and not is_free(u)
    }
    inputs = sorted(uses, key=lambda n: int(n.meta["position"]))
    name = f"exact_error_{index}_{number}"
    writes = {n.meta.get("storage") for n in watched.body if "after_reads" in n.meta}
    flops = sum(n.meta.get("flops", 0) for n in watched.body)
    module = ExactError(
        own.build(lines, inputs, [watched.end], name), index, signal,
        tuple(n.meta.get("storage") in writes for n in inputs), flops=flops,
        seconds=float(sum(n.meta.get("seconds", 0.0) for n in watched.body)),
    )  # fmt: skip

    graph, last = emitter.captured.graph, int(watched.end.meta["position"])
    early = {
        n: ("copy", name, n)
        for n in inputs
        if n.op != "placeholder" and written_between(graph, n, int(n.meta["position"]), last)
    }
    keys: list[Key] = [early.get(n, n) for n in inputs]

    def write(graph: Graph, value: Callable[[Key], Node]) -> dict[Key, Node]:
        given = (value("call"), value(f"gate {index}"), *map(value, [watched.end, *keys]))
        line = graph.create_node("call_module", name, given, {}, name=name)
        line.meta.update(module=module, origin="")
        return {}

    uses_all = frozenset([*keys, watched.end, f"gate {index}"])
    line = Item(last + 0.3, uses_all, frozenset(), frozenset(), write)
    return [*(copy_item(n, key) for n, key in early.items()), line]
