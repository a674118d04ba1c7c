"""The residual program: streams, and the ordered branches that add to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.capture import Captured
from synccache.fx.conditions import OTHER, SAMPLE
from synccache.fx.dataflow import backward_closure, carried, is_attention
from synccache.fx.frames import Frame
from synccache.fx.streams import Lineage, find_lineages
from synccache.policies.dsl import ADD, ATTENTION, MLP, Kind


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One residual branch ``after = before + f(before, reads)``.

    Attributes:
        index: place in program order over all streams.
        before, after: the whole stream before and after it; usually [batch, tokens, channels].
        addends: what is added (still with its gate).
        reads: conditions that reach it other than through its own stream.
        other_streams: streams it reads besides its own.
        block: number of the block it belongs to; injections belong to the block before them.
        seconds, flops: of the operations that serve this branch alone.
    """

    index: int
    stream: int
    before: Node
    after: Node
    sum: Node
    addends: tuple[Node, ...]
    reads: frozenset[str]
    other_streams: frozenset[int]
    reads_own: bool
    kind: Kind
    block: int
    label: str
    seconds: float
    flops: int


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One hidden state: its root value and what its root was made from."""

    index: int
    root: Node
    reads: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class ResidualProgram:
    """Streams and branches of a captured forward, with the conditions of its inputs."""

    captured: Captured
    tags: Mapping[Node, str]
    streams: tuple[Stream, ...]
    branches: tuple[Branch, ...]
    blocks: int
    owner: Mapping[Node, int]  # every value that is (a view of) a stream -> stream index

    def of_stream(self, index: int) -> tuple[Branch, ...]:
        return tuple(b for b in self.branches if b.stream == index)


def residual_program(model: nn.Module, captured: Captured, tags: Mapping[Node, str]) -> ResidualProgram:
    """Reads streams and branches out of a recorded graph.

    Raises:
        MatchError: no stream was found.
    """
    lineages = _without_preparation(find_lineages(captured.graph), captured, tags)
    if not lineages:
        raise MatchError(
            f"no residual stream was found among {_additions(captured)} additions: no value x that "
            "is added to something computed from x, twice or more, with at least 1 % of the FLOPs.",
            where=type(model).__name__,
            hint="Use policy='exact', or report the model's block code.",
        )
    owner = _owners(lineages, captured)
    streams = tuple(
        Stream(i, lineage.root, _conditions(backward_closure([lineage.root], set()), tags))
        for i, lineage in enumerate(lineages)
    )
    drafts = [d for i, lineage in enumerate(lineages) for d in _drafts(i, lineage, streams, owner, tags)]
    drafts.sort(key=lambda d: d.sum.meta["position"])
    _count_costs(drafts)
    blocks, numbers = _block_numbers(model, drafts)
    branches = tuple(
        Branch(
            index=k, stream=d.stream, before=d.before, after=d.after, sum=d.sum, addends=d.addends,
            reads=d.reads, other_streams=d.other_streams, reads_own=d.reads_own, kind=d.kind,
            block=numbers[k], label=d.label, seconds=d.seconds, flops=d.flops,
        )
        for k, d in enumerate(drafts)
    )  # fmt: skip
    return ResidualProgram(captured, tags, streams, branches, blocks, owner)


@dataclass(slots=True)
class _Draft:
    stream: int
    before: Node
    after: Node
    sum: Node
    addends: tuple[Node, ...]
    body: set[Node]
    reads: frozenset[str]
    other_streams: frozenset[int]
    reads_own: bool
    kind: Kind
    label: str
    seconds: float = 0.0
    flops: int = 0


def _additions(captured: Captured) -> int:
    from synccache.fx.dataflow import addition

    return sum(bool(addition(n)) for n in captured.graph.nodes)


def _without_preparation(
    lineages: tuple[Lineage, ...], captured: Captured, tags: Mapping[Node, str]
) -> tuple[Lineage, ...]:
    """Without branches that the noisy latents do not reach (text refiners, audio encoders)."""
    bits = 0
    for node, tag in tags.items():
        if tag == SAMPLE:
            bits |= captured.depends[node]
    kept = []
    for lineage in lineages:
        live = [i for i, s in enumerate(lineage.sums) if captured.depends[s.node] & bits]
        if not live:
            continue
        first = live[0]
        root = lineage.root if first == 0 else lineage.sums[first - 1].node
        if len(lineage.sums) - first >= 1:
            kept.append(Lineage(root, lineage.sums[first:], lineage.flops))
    return tuple(kept)


def _owners(lineages: tuple[Lineage, ...], captured: Captured) -> dict[Node, int]:
    owner: dict[Node, int] = {}
    for i, lineage in enumerate(lineages):
        owner[lineage.root] = i
        owner.update({s.node: i for s in lineage.sums})
    for node in captured.graph.nodes:
        if node not in owner:
            found = [owner[c] for c in carried(node) if c in owner]
            if found:
                owner[node] = found[0]
    return owner


def _conditions(nodes: set[Node], tags: Mapping[Node, str]) -> frozenset[str]:
    return frozenset(tags[n] for n in nodes if n in tags) - {OTHER}


def _drafts(
    index: int, lineage: Lineage, streams: tuple[Stream, ...], owner: Mapping[Node, int], tags: Mapping[Node, str]
) -> Iterator[_Draft]:  # fmt: skip
    before = _whole(lineage.root, None)
    owned = set(owner)
    for item in lineage.sums:
        body = backward_closure(item.addends, owned)
        entries = {n for b in body for n in b.all_input_nodes if n in owner} | {
            a for a in item.addends if a in owner
        }
        others = frozenset(owner[n] for n in entries) - {index}
        reads = _conditions(body, tags).union(*(streams[o].reads - {SAMPLE} for o in others))
        after = _whole(item.node, before.meta["shape"])
        yield _Draft(
            index, before, after, item.node, item.addends, body, reads - {SAMPLE}, others,
            any(owner[n] == index for n in entries), MLP, "",
        )  # fmt: skip
        before = after


def _whole(value: Node, shape: tuple[int, ...] | None) -> Node:
    """The last of the views and casts that alone continue ``value``, of the given shape."""
    best, node = value, value
    found = shape is not None and value.meta["shape"] == shape
    while len(node.users) == 1:
        (user,) = node.users
        if node not in carried(user) or user.op == "output" or "shape" not in user.meta:
            break
        node = user
        if shape is None or node.meta["shape"] == shape:
            best, found = node, True
    return best if found or shape is None else value


def _count_costs(drafts: list[_Draft]) -> None:
    shared = Counter(n for d in drafts for n in d.body)
    for d in drafts:
        own = [n for n in d.body if shared[n] == 1]
        d.seconds = sum(n.meta.get("seconds", 0.0) for n in own)
        d.flops = sum(n.meta.get("flops", 0) for n in own)
        heavy = [n for n in own if n.meta.get("flops", 0)]
        if any(is_attention(n) for n in own):
            d.kind = ATTENTION
        elif not heavy or not (d.reads_own or d.other_streams):
            d.kind = ADD
        mixing = [n for n in own if is_attention(n)]  # names the module best where several take part
        d.label = _common_path([n.meta["frame"] for n in mixing or heavy] or [d.sum.meta["frame"]])


def _common_path(frames: list[Frame]) -> str:
    paths = [f.path.split(".") if f.path else [] for f in frames]
    common = []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _list_keys(model: nn.Module, frame: Frame) -> Iterator[tuple[str, int]]:
    """(path of a ModuleList, index) for each list element that a frame lies in, outermost first."""
    for f in frame.stack():
        head, _, tail = f.path.rpartition(".")
        if tail.isdigit() and isinstance(model.get_submodule(head), (nn.ModuleList, nn.Sequential)):
            yield head, int(tail)


def _block_numbers(model: nn.Module, drafts: list[_Draft]) -> tuple[int, list[int]]:
    """Blocks are elements of the module lists that hold the sums, or else most of the FLOPs."""
    by_sum = [next(_list_keys(model, d.sum.meta["frame"]), None) for d in drafts]
    by_body = [
        next((k for n in sorted(d.body, key=lambda n: -n.meta.get("flops", 0))[:1]
              for k in _list_keys(model, n.meta["frame"])), None)
        for d in drafts
    ]  # fmt: skip
    keys = by_sum
    if not any(by_sum):
        weight: Counter[str] = Counter()
        for d, key in zip(drafts, by_body):
            weight[key[0] if key else ""] += d.flops
        main = weight.most_common(1)[0][0]
        keys = [k if k is not None and k[0] == main else None for k in by_body]
    if not any(keys):
        return len(drafts), list(range(len(drafts)))
    numbers: dict[tuple[str, int], int] = {}
    out, current = [], 0
    for key in keys:
        if key is not None:
            current = numbers.setdefault(key, len(numbers))
        out.append(current)
    return len(numbers), out
