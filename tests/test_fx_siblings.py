"""``FromSibling``: the second guidance branch of a step predicted from the first."""

from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from loops import difference, tensors, timesteps
from table_models import build as build_released
from torch import Tensor

import synccache
from synccache import policies
from synccache.errors import MatchError, PolicyError
from synccache.fx.siblings import low_frequencies
from synccache.policies.dsl import (
    FIRST_BRANCH,
    PREVIOUS,
    FromSibling,
    Hold,
    Policy,
    Rule,
    blocks,
    branches,
    every,
    modules,
    network,
    relative_l1,
    step,
    time_embedding,
    values,
)

WHEN = (step >= 1) & ~every(step, 5)


def siblings(**numbers: Any) -> Policy:
    return Policy("siblings", (Rule(values(network), WHEN, FromSibling(**numbers)),))


def bands(value: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high frequencies as diffusers parts them: shifted spectra, radius a fifth of the side."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(value), dim=(-2, -1))
    height, width = value.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (x - width // 2) ** 2 + (y - height // 2) ** 2 <= (min(height, width) // 5) ** 2
    return spectrum * inside, spectrum * ~inside


def joined(low: Tensor, high: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.ifftshift(low + high, dim=(-2, -1))).real


def test_the_second_branch_follows_the_first_as_published() -> None:
    case = build_released("wan_t2v")
    compiled = synccache.compile(case.model, siblings())
    low = high = None
    for k, timestep in enumerate((950.0, 800.0, 500.0, 250.0, 100.0, 50.0)):
        outs, full = [], []
        for branch in range(2):
            args, kwargs = case.inputs(seed=k, timestep=timestep, branch=branch, size=0)
            with torch.no_grad():
                full.append(tensors(case.model(*args, **kwargs))[0])
                out = compiled(*args, **kwargs)
                outs.append(tensors(out)[0])
                tensors_of(out).zero_()  # what was given is the caller's
        assert torch.equal(full[0], outs[0])
        (cond_low, cond_high) = bands(outs[0])
        if k % 5 == 0:
            assert torch.equal(full[1], outs[1])
            low, high = (u - c for u, c in zip(bands(full[1]), (cond_low, cond_high)))
        else:
            low = low * (1.1 if 99 < timestep < 901 else 1.0)
            high = high * (1.1 if -1 < timestep < 301 else 1.0)
            expected = joined(cond_low + low, cond_high + high)
            assert difference([(expected,)], [(outs[1],)]) <= 1e-5

    assert compiled.stats().decisions == {0: "CCCCCC", 1: "CSSSSC"}


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_rule_for_the_network_encloses_the_others(outer_first: bool) -> None:
    case = build(Spec(audio=Audio.NONE))
    attention = Rule(modules(branches.attention), (step >= 1) & ~every(step, 3), Hold())
    whole = Rule(network, (step >= 1) & ~every(step, 2), Hold())
    rules = (whole, attention) if outer_first else (attention, whole)
    compiled = synccache.compile(case.model, Policy("both", rules))
    inner = synccache.compile(case.model, Policy("inner", (attention,)))
    held: Tensor | None = None
    for k, timestep in enumerate(timesteps(6)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            found, other = compiled(*args, **kwargs), inner(*args, **kwargs)
        if k % 2 == 0:  # what the attention rule holds is from the same steps: 0 and 3 computed it
            expected = other if k < 3 else found
            held = found - args[0]
        else:
            assert held is not None
            expected = args[0] + held
        assert torch.allclose(expected, found, atol=1e-6), k

    assert compiled.stats().decisions == {0: "CSSSSS"}
    assert len(compiled.variant.layout.regions) == 7
    assert "# inside region_6" in compiled.code
    assert (
        "skip branch: blocks.0.attend: computed, or what is held put in its place" in compiled.code
    )
    assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes


def test_fastercache_predicts_attention_only_where_the_second_branch_is_predicted() -> None:
    case = build_released("wan_t2v")
    policy = policies.fastercache(attention_window=(-1, 1001), branch_window=(-1, 1001))
    compiled = synccache.compile(case.model, policy)
    for k in range(6):
        for branch in range(2):
            args, kwargs = case.inputs(seed=k, timestep=900.0 - k, branch=branch, size=0)
            with torch.no_grad():
                compiled(*args, **kwargs)

    assert compiled.stats().decisions == {0: "CSCSCC", 1: "CSSSSC"}


def test_a_rule_for_the_network_beside_others_watches_inputs_only() -> None:
    case = build(Spec(audio=Audio.NONE))
    inside = relative_l1(time_embedding, since=PREVIOUS) < 1
    rules = (Rule(network, inside), Rule(modules(branches.mlp), step >= 1))
    compiled = synccache.compile(case.model, Policy("both", rules))
    args, kwargs = case.new_inputs(0, 900.0)

    with pytest.raises(MatchError, match="lies inside as well"):
        compiled(*args, **kwargs)


def tensors_of(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def test_low_frequencies_of_a_constant_are_all_of_it() -> None:
    constant = torch.full((1, 2, 3, 8, 10), 3.0)

    assert torch.allclose(constant, low_frequencies(constant, 0.2), atol=1e-5)


def test_a_single_branch_is_never_skipped_and_the_run_says_so() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, siblings())
    for k, timestep in enumerate(timesteps(4)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)

    assert compiled.stats().decisions == {0: "CCCC"}
    assert "nothing was skipped" in compiled.stats().note


def test_what_is_held_stays_within_the_plan() -> None:
    case = build_released("wan_t2v")
    compiled = synccache.compile(case.model, siblings())
    for k in range(3):
        for branch in range(2):
            args, kwargs = case.inputs(seed=k, timestep=900.0 - k, branch=branch, size=0)
            with torch.no_grad():
                compiled(*args, **kwargs)
            assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes


def test_an_output_that_is_no_grid_is_refused() -> None:
    case = build_released("flux")
    compiled = synccache.compile(case.model, siblings())
    args, kwargs = case.inputs(seed=0, timestep=900.0, branch=0, size=0)

    with torch.no_grad(), pytest.raises(MatchError, match="over height and width"):
        compiled(*args, **kwargs)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: Rule(blocks[1:], WHEN, FromSibling()), "FromSibling predicts the model's output"),
        (lambda: FromSibling(low=-1), r"FromSibling\(low=...\) must lie in \[0, 10\]"),
        (lambda: FromSibling(low_window=(5, 5)), "is empty"),
        (lambda: siblings().with_(leader=FIRST_BRANCH), "cannot follow it"),
    ],
)
def test_a_wrong_use_is_refused_when_it_is_built(write: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        write()


def test_other_predictors_may_follow_the_first_branch() -> None:
    assert Policy("p", (Rule(values(network), WHEN, Hold()),), FIRST_BRANCH)
