"""One guidance branch's output from another's: ``FromSibling`` at work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synccache.fx.held import Held
from synccache.fx.runtime import Call
from synccache.fx.skip import SkipRegion
from synccache.policies.siblings import FromSibling


class SiblingRegion(SkipRegion):
    """The whole network: computed for the first call of a step, predicted for the others on a skip."""

    def forward(self, call: Call, skip: bool, *inputs: Any) -> Any:
        if skip:
            return self._skip(call, inputs)
        out = self.body(*inputs)
        if call.meter is not None:
            return out
        run, ends = call.trajectory, (out,) if len(self.holds) == 1 else out
        if run.leader == call.key:  # the caller may write to what it is given
            run.sibling = (run.step, tuple(e.detach().clone() for e in ends))
        elif run.sibling is not None and run.sibling[0] == run.step:
            for i, (end, other) in enumerate(zip(ends, run.sibling[1])):
                held = call.state.held.setdefault((self.index, i), Held(self.storage))
                held.make_room(1)
                held.push(run.step, end - other, 1)
                call.state.gains[self.index, i] = (1.0, 1.0)
        return out

    def _skip(self, call: Call, inputs: tuple[Any, ...]) -> Any:
        state, run, how = call.state, call.trajectory, self.predictor
        assert isinstance(how, FromSibling) and run.sibling is not None
        self._count(call)
        ends = []
        for i, other in enumerate(run.sibling[1]):
            (difference,) = state.held[self.index, i].tensors()
            low, high = state.gains[self.index, i]
            low *= how.low if how.low_window[0] < run.noise < how.low_window[1] else 1.0
            high *= how.high if how.high_window[0] < run.noise < how.high_window[1] else 1.0
            state.gains[self.index, i] = (low, high)
            below = low_frequencies(difference, how.radius)
            ends.append((other + high * difference + (low - high) * below).to(other.dtype))
        return ends[0] if len(ends) == 1 else tuple(ends)


def low_frequencies(value: Tensor, radius: float) -> Tensor:
    """What a circle around frequency 0 lets pass, over the last two dimensions; in float32.

    The circle's radius is ``int(radius * the shorter side)``, in rows and columns of the spectrum.
    """
    height, width = value.shape[-2:]
    rows = torch.arange(height, device=value.device) - height // 2
    columns = torch.arange(width, device=value.device) - width // 2
    circle = rows[:, None] ** 2 + columns[None, :] ** 2 <= int(radius * min(height, width)) ** 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(value.float()), dim=(-2, -1))
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * circle, dim=(-2, -1))).real


__all__ = ["SiblingRegion", "low_frequencies"]
