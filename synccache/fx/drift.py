"""How much the residual of each possible segment changes from step to step.

    gamma(i, j) = sum over steps of  |r_t - r_(t-1)|_1 / |r_(t-1)|_1,   r = u_j - z_i

with z_i the streams where region i begins and u_j where region j-1 ends, on every ``stride``-th
token. Steps are counted as they are sampled (the paper counts down), and a change is taken over the
older residual. Memory: two strided samples for each region boundary and guidance branch.

Source: SyncCache, arXiv 2606.30849, by the reading note quoted in docs/planner.md.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class DriftMeter:
    """Sums of relative changes, by segment; filled while a trajectory runs uncached."""

    regions: int
    stride: int
    sums: dict[tuple[int, int], float] = field(default_factory=dict)
    steps: int = 0
    before: dict[Hashable, dict[tuple[str, int], list[Tensor]]] = field(default_factory=dict)
    now: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)

    def see(self, side: str, region: int, value: Tensor) -> None:
        """A stream's value where a region begins ("start") or ends ("end")."""
        sample = value.detach().flatten(1, -2)[:, :: self.stride].float()
        self.now.setdefault((side, region), []).append(sample)

    def finish_call(self, branch: Hashable) -> None:
        """Compares with the same guidance branch's last step; one device sync."""
        now, before = self.now, self.before.get(branch)
        self.now, self.before[branch] = {}, now
        if before is None:
            return
        keys, values = [], []
        for first in range(self.regions):
            for last in range(first, self.regions):
                new = _residual(now, first, last)
                old = _residual(before, first, last)
                change = sum((a - b).abs().sum() for a, b in zip(old, new))
                size = sum(a.abs().sum() for a in old)
                keys.append((first, last + 1))
                values.append(change / size)
        for key, value in zip(keys, torch.stack(values).tolist()):  # type: ignore[arg-type]
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.steps += 1

    def table(self) -> tuple[tuple[float, ...], ...]:
        """gamma(i, j) for nodes 0..E, zero where i >= j."""
        nodes = range(self.regions + 1)
        return tuple(tuple(self.sums.get((i, j), 0.0) for j in nodes) for i in nodes)


def _residual(values: dict[tuple[str, int], list[Tensor]], first: int, last: int) -> list[Tensor]:
    starts, ends = values["start", first], values["end", last]
    return [end - start for start, end in zip(starts, ends) if start.shape == end.shape]


class BoundaryTap(nn.Module):
    """Shows the meter one stream at one region boundary. ``forward(call, value)``."""

    def __init__(self, side: str, region: int, run: int) -> None:
        super().__init__()
        self.side, self.region, self.run = side, region, run

    def forward(self, call: Any, value: Tensor) -> None:
        if call.meter is not None:
            call.meter.see(self.side, self.region, value)
        if call.gram is not None:
            call.gram.see(self.side, (self.region, self.run), value)
