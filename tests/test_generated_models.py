"""The generated models themselves: taking one apart by hand gives exactly what its forward gives."""

import pytest
import torch
from generated_blocks import Spec
from generated_models import ByHand, build, specs
from hypothesis import given, settings
from real_models import NAMES, tensor_of
from real_models import build as build_real
from torch import Tensor


def stepped(hand: ByHand) -> object:
    """The output of a forward run branch by branch."""
    versions: dict[str, list[Tensor]] = {name: [root] for name, root in hand.roots.items()}
    for branch in hand.branches:
        added = branch.add(*(versions[stream][k] for stream, k in branch.inputs))
        stream = versions[branch.stream]
        stream.append(branch.apply(stream[-1], added))
    return hand.finish(*(versions[stream][k] for stream, k in hand.outputs))


def same(expected: object, found: object) -> bool:
    if isinstance(expected, tuple):
        return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    return torch.equal(expected, found)


@settings(max_examples=80, deadline=None)
@given(spec=specs())
def test_branch_by_branch_equals_the_forward_bit_for_bit(spec: Spec) -> None:
    case = build(spec)
    args, kwargs = case.new_inputs(seed=1, timestep=700.0)
    expected = case.model(*args, **kwargs)
    found = stepped(case.model.by_hand(*args, **kwargs))

    pairs = (
        zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.isfinite(tensor_of(expected)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_released_class_gives_finite_and_different_outputs(name: str) -> None:
    case = build_real(name)
    outputs = []
    for branch in range(2):
        args, kwargs = case.new_inputs(seed=3, timestep=800.0, guidance_branch=branch)
        outputs.append(tensor_of(case.model(*args, **kwargs)))

    assert all(torch.isfinite(output).all() for output in outputs)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
