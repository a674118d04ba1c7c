"""Branches as rows of a table or a picture: blocks that repeat are folded into one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from synccache.fx.program import Branch, ResidualProgram
from synccache.fx.runs import Layout


@dataclass(frozen=True, slots=True)
class Row:
    """One branch of one block, or of ``last - first + 1`` blocks that look alike.

    Attributes:
        first, last: numbers of the blocks; begins: it is its block's first row.
        branch: of the first block; seconds, flops: of all of them together.
        regions: indices of the regions that skip it, none where it is live.
    """

    first: int
    last: int
    begins: bool
    branch: Branch
    seconds: float
    flops: int
    regions: tuple[int, ...]

    @property
    def blocks(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def fate(self) -> str:
        """What happens to it on a skipped step."""
        return region_names(self.regions) if self.regions else "live"


def region_names(indices: Iterable[int]) -> str:
    """``region 3``, ``regions 3-5``, ``regions 0, 4`` or ``regions 0, 4 ... 36``."""
    found = sorted(set(indices))
    if len(found) == 1:
        return f"region {found[0]}"
    if found[-1] - found[0] == len(found) - 1:
        return f"regions {found[0]}-{found[-1]}"
    short = f"{found[0]}, {found[1]} ... {found[-1]}"
    return f"regions {', '.join(map(str, found)) if len(found) < 4 else short}"


def rows(program: ResidualProgram, layout: Layout) -> list[Row]:
    """One row for each branch, in program order; blocks alike in all but their numbers folded."""
    region = {b.index: r.index for r in reversed(layout.regions) for b in r.branches}
    groups = [list(g) for _, g in groupby(program.branches, key=lambda b: b.block)]
    looks = [
        [(b.kind, b.reads, b.stream, b.other_streams, b.index in region) for b in g] for g in groups
    ]
    out: list[Row] = []
    start = 0
    while start < len(groups):
        end = start + 1
        while (
            end < len(groups)
            and looks[end] == looks[start]
            and groups[end][0].block == groups[end - 1][0].block + 1
        ):
            end += 1
        alike = groups[start:end]
        for i, branch in enumerate(alike[0]):
            same = [group[i] for group in alike]
            out.append(Row(
                alike[0][0].block, alike[-1][0].block, i == 0, branch,
                sum(b.seconds for b in same), sum(b.flops for b in same),
                tuple(region[b.index] for b in same if b.index in region),
            ))  # fmt: skip
        start = end
    return out
