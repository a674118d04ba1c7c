"""Guidance branches that the caller does not name are told apart by the order of their calls."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor
from torch.utils.weak import TensorWeakRef

from synccache.errors import StateError
from synccache.fx.conditions import SAMPLE, nodes_tagged
from synccache.fx.runtime import Trajectory
from synccache.fx.variant import Variant


def know_again(
    run: Trajectory, key: Hashable, tensors: Sequence[Tensor], variant: Variant, *, named: bool
) -> None:
    """Remembers what a guidance branch is called with first, and knows it again.

    Raises:
        StateError: a call that stands where one branch was called before comes with a tensor, such as
            the text, that another branch was given: it would be mixed with the residuals of that place.
    """
    state = run.branches[key]
    if not state.inputs:
        state.inputs = tuple(map(TensorWeakRef, tensors))
        return
    if named or len(state.inputs) != len(tensors):
        return  # the caller says which it is; another signature
    changing = nodes_tagged(variant.tags, SAMPLE, "timestep")  # two buffers may take turns
    for other, theirs in run.branches.items():
        if other == key or len(theirs.inputs) != len(tensors):
            continue
        sides = zip(
            variant.captured.placeholders, tensors, state.inputs, theirs.inputs, strict=True
        )
        for given, tensor, own, its in sides:
            mine = own()
            other_one = mine is not None and mine is not tensor and its() is tensor
            if other_one and given not in changing:
                raise StateError(
                    f"the call on step {run.step} that stands for guidance branch {key!r} has the "
                    f"`{given.name}` of branch {other!r}: calls are told apart by their order, which changed.",
                    hint="Call the branches in one order, or name each: "
                    "`with compiled.cache_context(name):`.",
                )  # fmt: skip
