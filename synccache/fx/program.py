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
from synccache.fx.dataflow import addition, backward_closure, carried, is_attention, numel
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
        work: those operations, each with how many branches share its cost.
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
    work: tuple[tuple[Node, int], ...]


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


def residual_program(
    model: nn.Module, captured: Captured, tags: Mapping[Node, str]
) -> ResidualProgram:
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
            hint=_way_out(captured),
        )
    owner = _owners(lineages, captured)
    streams = tuple(
        Stream(i, lineage.root, _conditions(backward_closure([lineage.root], set()), tags))
        for i, lineage in enumerate(lineages)
    )
    drafts = [
        d for i, lineage in enumerate(lineages) for d in _drafts(i, lineage, streams, owner, tags)
    ]
    drafts.sort(key=lambda d: d.sum.meta["position"])
    _count_costs(drafts, owner)
    blocks, numbers = _block_numbers(model, drafts, streams)
    branches = tuple(
        Branch(
            index=k, stream=d.stream, before=d.before, after=d.after, sum=d.sum, addends=d.addends,
            reads=d.reads, other_streams=d.other_streams, reads_own=d.reads_own, kind=d.kind,
            block=numbers[k], label=d.label, seconds=d.seconds, flops=d.flops, work=d.work,
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
    work: tuple[tuple[Node, int], ...] = ()
    seconds: float = 0.0
    flops: int = 0


def _way_out(captured: Captured) -> str:
    """What to do where no stream was found: modules that are called whole may hide the streams."""
    whole = [
        str(n.target) for n in captured.graph.nodes if n.meta.get("opaque") and n.op != "get_attr"
    ]
    if not whole:
        return "Use policy='exact', or report the model's block code."
    first = whole[0].removeprefix("model.")
    return (
        f"{len(whole)} modules are called whole (the first is `{first}`), because they are compiled, "
        "hooked or offloaded one by one, or named in leaves=; what is in them cannot be skipped. Undo "
        "that for the blocks, or use policy='exact'."
    )


def _additions(captured: Captured) -> int:
    return sum(bool(addition(n)) for n in captured.graph.nodes)


def noisy_inputs(captured: Captured, tags: Mapping[Node, str]) -> int:
    """Bits of the inputs that the loop denoises: the sample, and what has the shape of an output."""
    results = {n.meta.get("shape") for n in captured.graph.output_node().all_input_nodes}
    bits = 0
    for node, tag in tags.items():
        if tag == SAMPLE or node.meta["shape"] in results:
            bits |= captured.depends[node]
    return bits


def _without_preparation(
    lineages: tuple[Lineage, ...], captured: Captured, tags: Mapping[Node, str]
) -> tuple[Lineage, ...]:
    """Without branches that the noisy latents do not reach (text refiners, audio encoders)."""
    bits = noisy_inputs(captured, tags)
    kept = []
    for lineage in lineages:
        live = [i for i, s in enumerate(lineage.sums) if captured.depends[s.node] & bits]
        if not live:
            continue
        first = live[0]
        root = lineage.root if first == 0 else lineage.sums[first - 1].node
        kept.append(Lineage(root, lineage.sums[first:], lineage.flops))
    return tuple(kept)


def _owners(lineages: tuple[Lineage, ...], captured: Captured) -> dict[Node, int]:
    """Stream values and what carries the content of one stream alone."""
    owner: dict[Node, int] = {}
    for i, lineage in enumerate(lineages):
        owner.update({s.node: i for s in lineage.sums})
        node = lineage.root
        owner[node] = i
        while len(carried(node)) == 1 and numel(carried(node)[0]) == numel(node):
            node = carried(node)[0]  # the same value in another layout, before it got its shape
            owner.setdefault(node, i)
    for node in captured.graph.nodes:
        if node not in owner:
            found = {owner.get(c) for c in carried(node)}
            known = found - {None}
            if len(known) == 1:
                owner[node] = known.pop()  # type: ignore[assignment]
    return owner


def _conditions(nodes: set[Node], tags: Mapping[Node, str]) -> frozenset[str]:
    return frozenset(tags[n] for n in nodes if n in tags) - {OTHER}


def _drafts(
    index: int, lineage: Lineage, streams: tuple[Stream, ...], owner: Mapping[Node, int], tags: Mapping[Node, str]
) -> Iterator[_Draft]:  # fmt: skip
    before = _whole(lineage.root, lineage.root.meta["shape"])
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


def _whole(value: Node, shape: tuple[int, ...]) -> Node:
    """The last of the views, casts and writes that alone continue ``value`` and has this shape."""
    best, node = value, value
    while len(node.users) == 1:
        (user,) = node.users
        if node not in carried(user) or user.op == "output" or "shape" not in user.meta:
            break
        node = user
        if node.meta["shape"] == shape:
            best = node
    return best


def _count_costs(drafts: list[_Draft], owner: Mapping[Node, int]) -> None:
    """Kinds, labels and costs. What several branches share (joint attention) is split among them;
    what they share and no stream reaches (a text encoder) is nobody's."""
    shared = Counter(n for d in drafts for n in d.body)
    for d in drafts:
        inner = _inner(d.body, owner)
        own = [n for n in d.body if shared[n] == 1 or n in inner]
        d.work = tuple((n, shared[n]) for n in sorted(own, key=lambda n: n.meta["position"]))
        d.seconds = sum(n.meta.get("seconds", 0.0) / shared[n] for n in own)
        d.flops = round(sum(n.meta.get("flops", 0) / shared[n] for n in own))
        heavy = [n for n in own if n.meta.get("flops", 0)]
        heavy = [n for n in heavy if n in inner] or heavy
        mixing = [
            n for n in own if is_attention(n)
        ]  # names the module best where several take part
        if any(n in inner for n in mixing):
            d.kind = ATTENTION
        elif not any(n in inner for n in heavy[:1]):
            d.kind = ADD
        frames = [n.meta["frame"] for n in mixing or heavy] or [d.sum.meta["frame"]]
        d.label = _common_path(frames) or f"forward, {d.sum.name}"


def _inner(body: set[Node], owner: Mapping[Node, int]) -> set[Node]:
    """The part of a body that is computed from stream values."""
    inner: set[Node] = set()
    for node in sorted(body, key=lambda n: n.meta["position"]):
        if any(n in inner or n in owner for n in node.all_input_nodes):
            inner.add(node)
    return inner


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


_Key = tuple[str, int]  # path of a module list, and a place in it


def _block_numbers(
    model: nn.Module, drafts: list[_Draft], streams: tuple[Stream, ...]
) -> tuple[int, list[int]]:
    """How many blocks there are, and the block of each branch.

    Blocks are elements of the module lists that the sums lie in, in program order; where sums lie
    in no list, of the list with the most FLOPs. Branches in between belong to the block before. A
    list of its own beside the main stream (a control tower) counts with the blocks that read it.
    """
    keys = [next(_list_keys(model, d.sum.meta["frame"]), None) for d in drafts]
    if not any(keys):
        keys = _keys_by_weight(model, drafts)
    if not any(keys):
        return len(drafts), list(range(len(drafts)))
    line = _main_line(drafts, streams)
    main = {k[0] for d, k in zip(drafts, keys) if k is not None and d.stream in line}
    numbers: dict[_Key, int] = {}
    for key in keys:
        if key is not None and (key[0] in main or not main):
            numbers.setdefault(key, len(numbers))
    out, current = [], 0
    for key in keys:
        if key in numbers:
            current = numbers[key]
        elif key is not None:
            numbers[key] = _first_reader(key, drafts, keys, numbers, line, current)
        out.append(current if key is None else numbers[key])
    return max(out) + 1, out


def _keys_by_weight(model: nn.Module, drafts: list[_Draft]) -> list[_Key | None]:
    """The list with the most FLOPs, by where the heaviest operation of each branch lies."""
    found: list[_Key | None] = []
    weight: Counter[str] = Counter()
    for d in drafts:
        heaviest = max(d.body, key=lambda n: n.meta.get("flops", 0), default=d.sum)
        found.append(next(_list_keys(model, heaviest.meta["frame"]), None))
        weight[found[-1][0] if found[-1] else ""] += d.flops
    main = weight.most_common(1)[0][0]
    return [k if k is not None and k[0] == main else None for k in found]


def _main_line(drafts: list[_Draft], streams: tuple[Stream, ...]) -> set[int]:
    """The heaviest stream, and those that are joined into it or that it is joined into."""
    weight: Counter[int] = Counter()
    for d in drafts:
        weight[d.stream] += d.flops
    line = {weight.most_common(1)[0][0]}
    ends = {d.stream: d.after for d in drafts}  # of each stream the last value
    joined = {(a, s.index) for s in streams for a, end in ends.items() if _goes_into(end, s.root)}
    for _ in streams:
        line |= {a for a, b in joined if b in line} | {b for a, b in joined if a in line}
    return line


def _goes_into(value: Node, root: Node) -> bool:
    todo = list(carried(root))
    while todo:
        node = todo.pop()
        if node is value:
            return True
        todo.extend(carried(node))
    return False


def _first_reader(
    key: _Key, drafts: list[_Draft], keys: list[_Key | None], numbers: Mapping[_Key, int],
    line: set[int], otherwise: int,
) -> int:  # fmt: skip
    """The block whose branch first reads what the tower's element ``key`` makes."""
    made = {d.sum for d, k in zip(drafts, keys) if k == key}
    values = {n for d in drafts if d.stream in line for n in (d.before, d.sum)}
    block = otherwise
    for draft, place in zip(drafts, keys):
        block = numbers.get(place, block) if place is not None else block
        if draft.stream in line and made & backward_closure(draft.addends, values):
            return block
    return otherwise
