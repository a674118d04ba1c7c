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
    unmixed = named or not variant.matches  # without rules no branch holds anything of its own
    if not unmixed and run.windowed is False:
        _refuse_windows(run, tensors, variant)
    state = run.branches[key]
    if not state.inputs:
        state.inputs = tuple(map(TensorWeakRef, tensors))
        return
    if unmixed or len(state.inputs) != len(tensors):
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


def _refuse_windows(run: Trajectory, tensors: Sequence[Tensor], variant: Variant) -> None:
    """Refuses calls of one step whose samples are cut from one tensor, along frames or tokens.

    Samples cut along the batch are guidance branches called one by one; copies are not told apart.
    """
    samples = nodes_tagged(variant.tags, SAMPLE)
    places = {
        node: tensor for node, tensor in zip(variant.captured.placeholders, tensors) if node in samples
    }  # fmt: skip
    now = {
        node.name: (t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride())
        for node, t in places.items()
        if t.dim() > 1
    }
    if run.calls_this_step == 1:
        run.cut = now
        return
    for name, (memory, offset, shape, strides) in now.items():
        first = run.cut.get(name)
        if first is None or (first[0], *first[2:]) != (memory, shape, strides):
            continue
        if (offset - first[1]) % max(strides[0], 1):
            raise StateError(
                f"call {run.calls_this_step} on step {run.step} has another part of the tensor that "
                f"`{name}` {list(shape)} of the first call was cut from (it begins {offset - first[1]} "
                "numbers later): these are windows of one clip, not guidance branches.",
                hint="Say which frames each call is for: `with compiled.frames(indices, tokens=...):`; "
                "or name windows that never move: `with compiled.cache_context(name):`.",
            )
