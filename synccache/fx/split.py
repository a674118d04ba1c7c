"""One condition merged with others in one branch, taken apart where a projection of a sum is linear.

    s  = text + audio                       a  = o(text)
    x' = x + gate * o(s)          ->        x1 = x + gate * a
                                            x' = x1 + gate * linear(audio, o.weight)

``o(a + b) = o(a) + o(b) - bias``: equal but for rounding, so the form above is only used where it is
asked for (``compile(split=...)``) and a policy skips one part and keeps the other.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from synccache.errors import MatchError
from synccache.fx.capture import Captured
from synccache.fx.dataflow import addition, backward_closure, carried
from synccache.fx.frames import Frame, has_hooks
from synccache.fx.program import Branch, ResidualProgram

_UNWRITTEN = itertools.count(-2, -1)  # memory numbers of values that nothing recorded writes to


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A branch whose addend is linear in ``total``, a sum of which only some terms read a condition."""

    branch: Branch
    total: Node
    chain: tuple[Node, ...]  # from what reads the sum to the addend
    heard: frozenset[Node]  # the terms of the sum that the conditions reach


def merged_branches(
    model: nn.Module, program: ResidualProgram, conditions: frozenset[str]
) -> tuple[Merged, ...]:
    """The branches that can be taken apart into what reads these conditions and what does not."""
    found = (
        _merged(model, program, b, conditions) for b in program.branches if b.reads & conditions
    )
    return tuple(m for m in found if m is not None)


def _merged(
    model: nn.Module, program: ResidualProgram, branch: Branch, conditions: frozenset[str]
) -> Merged | None:
    plain = branch.sum.target in (operator.add, torch.add, "add") and not branch.sum.kwargs
    if len(branch.addends) != 1 or not plain or "after_reads" in branch.sum.meta:
        return None
    inputs = {n for n, tag in program.tags.items() if tag in conditions}
    owned = set(program.owner)

    def hears(node: Node) -> bool:
        return bool(backward_closure([node], owned) & inputs)

    chain: list[Node] = []
    node: Node | None = branch.addends[0]
    while node is not None:
        if len(node.users) != 1 or "after_reads" in node.meta:
            return None  # somebody else reads it
        terms = _terms(node)
        heard = frozenset(t for t in terms if hears(t))
        if heard and len(heard) < len(terms):
            return Merged(branch, node, tuple(reversed(chain)), heard)
        chain.append(node)
        node = _linear_in(model, node, hears)
    return None


def _terms(node: Node) -> list[Node]:
    """The summands of a sum of tensors of one shape; the node itself where it is none."""
    ways = addition(node)
    if len(ways) != 2 or "after_reads" in node.meta or node.kwargs:
        return [node]
    return [t for base, _ in ways for t in (_terms(base) if len(base.users) == 1 else [base])]


def _linear_in(model: nn.Module, node: Node, hears: Callable[[Node], bool]) -> Node | None:
    """The operand that a linear operation is linear in and that audio reaches; None otherwise."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target).removeprefix("model."))
        linear = type(module) is nn.Linear or isinstance(module, (nn.Dropout, nn.Identity))
        asleep = not module.training and not has_hooks(module) and "forward" not in vars(module)
        return node.all_input_nodes[0] if linear and asleep else None
    if len(carried(node)) == 1 and _keeps_number(node):
        return carried(node)[0]
    if node.target in (operator.mul, torch.mul, "mul"):
        heard = [a for a in node.args[:2] if isinstance(a, Node) and hears(a)]
        return heard[0] if len(heard) == 1 and node.args[0] is not node.args[1] else None
    return None


def _keeps_number(node: Node) -> bool:
    return bool(node.meta["dtype"].is_floating_point and node.meta["shape"] is not None)


def split_where_cut(
    model: nn.Module, program: ResidualProgram, conditions: frozenset[str],
    read: Callable[[Captured], ResidualProgram],
    skipped: Callable[[ResidualProgram], frozenset[int]],
) -> ResidualProgram:  # fmt: skip
    """The program with those merged branches taken apart of which a policy skips only a part.

    Args:
        read: a recording's program; skipped: the branches of a program that the policy skips.

    Raises:
        MatchError: there is no such branch.
    """
    merged = merged_branches(model, program, conditions)
    names = ", ".join(sorted(conditions))
    if not merged:
        reading = sum(bool(b.reads & conditions) for b in program.branches)
        raise MatchError(
            f"split={names}: of {reading} branches that read it, none is linear in a sum of which "
            "only some terms do.", hint="Leave split out: such branches are whole already.",
        )  # fmt: skip
    apart = read(split(program.captured, model, merged))
    gone = skipped(apart)
    cut = tuple(m for m in merged if _is_cut(m, apart, gone))
    if not cut:
        raise MatchError(
            f"split={names}: the policy skips all or nothing of each of the {len(merged)} branches that "
            "could be split.", hint="Leave split out, or select with branches.reading(...).",
        )  # fmt: skip
    return apart if len(cut) == len(merged) else read(split(program.captured, model, cut))


def _is_cut(merged: Merged, apart: ResidualProgram, gone: frozenset[int]) -> bool:
    fates = [b.index in gone for b in apart.branches if b.sum.meta.get("part_of") is merged.branch]
    return len(set(fates)) == 2


def split(captured: Captured, model: nn.Module, merged: tuple[Merged, ...]) -> Captured:
    """The recording with these branches taken apart; the recording itself is not changed."""
    copied: dict[Node, Node] = {}
    graph = Graph()
    graph.output(graph.graph_copy(captured.graph, copied))
    depends = {copied[n]: bits for n, bits in captured.depends.items() if n in copied}
    for item in merged:
        _take_apart(graph, model, item, copied, depends)
    frames = _copied_frames(captured, copied)
    for node in graph.nodes:
        if "frame" in node.meta:
            node.meta["frame"] = frames[node.meta["frame"]]
        if "after_reads" in node.meta:
            node.meta["after_reads"] = [copied[n] for n in node.meta["after_reads"] if n in copied]
        if node.meta.get("writes") is not None:
            node.meta["writes"] = copied[node.meta["writes"]]
    for position, node in enumerate(graph.nodes):
        node.meta["position"] = position
    return replace(
        captured, graph=graph, depends=depends, frames=tuple(frames[f] for f in captured.frames),
        placeholders=tuple(copied[n] for n in captured.placeholders),
        split=tuple(m.branch.label for m in merged),
    )  # fmt: skip


def _copied_frames(captured: Captured, copied: dict[Node, Node]) -> dict[Frame, Frame]:
    frames: dict[Frame, Frame] = {}
    for old in captured.frames:
        frames[old] = Frame(
            old.path, frames[old.parent] if old.parent else None,
            arguments=map_arg(old.arguments, copied.__getitem__) if old.arguments else old.arguments,
            result=old.result, result_nodes=[copied[n] for n in old.result_nodes], kind=old.kind,
            autocast=old.autocast,
        )  # fmt: skip
    return frames


def _take_apart(
    graph: Graph, model: nn.Module, item: Merged, copied: dict[Node, Node], depends: dict[Node, int]
) -> None:
    total, chain = copied[item.total], [copied[n] for n in item.chain]
    audio = {copied[n] for n in item.heard}
    sum_ = copied[item.branch.sum]

    def like(node: Node, op: str, target: object, args: tuple[object, ...]) -> Node:
        new = graph.create_node(op, target, args)  # type: ignore[arg-type]
        new.meta = {**node.meta, "storage": next(_UNWRITTEN)}
        depends[new] = 0
        for operand in new.all_input_nodes:
            depends[new] |= depends[operand]
        return new

    def part(node: Node, heard: bool) -> Node | None:
        """The terms with audio, or those without, summed in the model's order."""
        terms = _terms(node)
        if len(terms) == 1:
            return node if (node in audio) == heard else None
        sides = [part(n, heard) for n in node.args[:2]]  # type: ignore[arg-type]
        kept = [s for s in sides if s is not None]
        if len(kept) < 2:
            return kept[0] if kept else None
        return like(node, "call_function", operator.add, tuple(kept))

    first = chain[0] if chain else sum_
    with graph.inserting_before(first):
        rest, value = part(total, False), part(total, True)
        assert rest is not None and value is not None
        rest, value = (_in_dtype_of(total, part, like) for part in (rest, value))
    with graph.inserting_before(sum_):
        read = total
        for node in chain:
            value = _without_bias(graph, model, node, read, value, like)
            read = node
    first.replace_input_with(total, rest)
    with graph.inserting_after(sum_):
        whole = like(sum_, "call_function", operator.add, (sum_, value))
    sum_.meta["part_of"] = whole.meta["part_of"] = item.branch
    sum_.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
    todo = [total]
    while todo:  # sums that nobody reads any more
        node = todo.pop()
        if not node.users and node not in audio and addition(node):
            todo += node.all_input_nodes
            graph.erase_node(node)
            del depends[node]


def _in_dtype_of(total: Node, part: Node, like: Callable[..., Node]) -> Node:
    """A term in the dtype that the sum was promoted to."""
    if part.meta["dtype"] == total.meta["dtype"]:
        return part
    return like(total, "call_method", "to", (part, total.meta["dtype"]))


def _without_bias(
    graph: Graph, model: nn.Module, node: Node, read: Node, value: Node,
    like: Callable[..., Node],
) -> Node:  # fmt: skip
    """One linear operation on ``value`` in place of ``read``; a projection without its bias."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target).removeprefix("model."))
        if not isinstance(module, nn.Linear):
            return like(node, "call_module", node.target, (value,))
        weight = like(node, "get_attr", f"{node.target}.weight", ())
        weight.meta.update(
            shape=tuple(module.weight.shape), dtype=module.weight.dtype, flops=0, seconds=0.0
        )
        return like(node, "call_function", torch.nn.functional.linear, (value, weight))
    args = map_arg(node.args, lambda n: value if n is read else n)
    new = like(node, node.op, node.target, args)
    new.kwargs = node.kwargs
    return new
