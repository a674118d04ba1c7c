"""What selectors name on a model taken apart by hand, and where skipped runs begin and end."""

from collections.abc import Iterable
from dataclasses import dataclass

from generated_models import ByHand

from synccache.policies import dsl


@dataclass(frozen=True)
class Run:
    """Branches start..stop-1 of a stream, skipped together: from version start to version stop."""

    rule: int
    stream: str
    start: int
    stop: int
    residual: bool = True  # a skipped step adds what is held to the start; else it takes its place


def numbers_of(hand: ByHand) -> dict[str, list[int]]:
    """Stream -> the indices of its branches."""
    found: dict[str, list[int]] = {}
    for index, branch in enumerate(hand.branches):
        found.setdefault(branch.stream, []).append(index)
    return found


def select(selector: dsl.Selector, hand: ByHand) -> frozenset[int]:
    """The indices of the branches that a selector names."""
    every = list(enumerate(hand.branches))
    if isinstance(selector, dsl.AllBranches):
        return frozenset(i for i, _ in every)
    if isinstance(selector, dsl.Blocks):
        blocks = range(1 + max(b.block for b in hand.branches))[selector.start : selector.stop]
        return frozenset(i for i, b in every if b.block in blocks)
    if isinstance(selector, dsl.Reading):
        return frozenset(i for i, b in every if selector.tag in b.reads)
    if isinstance(selector, dsl.OfKind):
        return frozenset(i for i, b in every if b.kind is selector.kind)
    if isinstance(selector, dsl.After):
        last = max(select(selector.of, hand), default=len(every))
        return frozenset(i for i, _ in every if i > last)
    left, right = select(selector.left, hand), select(selector.right, hand)
    if isinstance(selector, dsl.Either):
        return left | right
    return left & right if isinstance(selector, dsl.Both) else left - right


def runs(rule: int, skip: dsl.Skip, chosen: Iterable[int], hand: ByHand) -> list[Run]:
    """Maximal runs of chosen branches, split where somebody who is not chosen reads the stream."""
    chosen, residual = frozenset(chosen), not isinstance(skip, dsl.Whole | dsl.Values)
    outside = [b for i, b in enumerate(hand.branches) if i not in chosen]
    read = {*hand.outputs, *(place for b in outside for place in b.inputs)}
    found = []
    for stream, members in numbers_of(hand).items():
        start = None
        for version, index in enumerate([*members, None]):
            ends = index not in chosen or (stream, version) in read
            if start is not None and ends:
                found.append(Run(rule, stream, start, version, residual))
                start = None
            if start is None and index in chosen:
                start = version
    return found
