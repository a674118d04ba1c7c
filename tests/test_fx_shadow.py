"""``exact_error``: skipped branches run beside a skipped step, and the next step hears of it."""

from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from loops import same, tensors, timesteps
from table_models import build as build_released

import synccache
from synccache import policies
from synccache.errors import MatchError
from synccache.fx import metrics
from synccache.policies.dsl import (
    FIRST_BRANCH,
    NEW,
    RATIO_OF_MEANS,
    Hold,
    Policy,
    Rule,
    blocks,
    branches,
    exact_error,
    lagged,
    modules,
    step,
)


def watching(skip: Any, of: Any = blocks[-1], after: int = 0) -> Policy:
    """Skips from the second step on, watching an error that never stops it."""
    error = lagged(exact_error(of, after=after, norm=RATIO_OF_MEANS), otherwise=0.0)
    return Policy("watching", (Rule(skip, (step >= 1) & (error < 1e9), Hold()),), FIRST_BRANCH)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("joint_text", [False, True])
def test_the_error_is_that_of_the_last_block_on_the_drafts_own_input(
    in_place: bool, joint_text: bool
) -> None:
    spec = Spec(audio=Audio.NONE, in_place=in_place, joint_text=joint_text)
    case = build(spec)
    compiled = synccache.compile(case.model, watching(modules(branches)))
    plain = synccache.compile(
        case.model, Policy("plain", (Rule(modules(branches), step >= 1, Hold()),), FIRST_BRANCH)
    )
    # the draft's stream before and after the last block: a model without that block, and the whole
    held: dict[Any, Any] = {}
    for k, timestep in enumerate(timesteps(3)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            found, expected = tensors(compiled(*args, **kwargs)), tensors(plain(*args, **kwargs))
        assert same([expected], [found])
        hand = case.model.by_hand(*args, **kwargs)
        error = _error_by_hand(case.model, hand, args, held, skipped=k > 0)
        (state,) = compiled._trajectories[None].branches[0].gates.values()
        measured = [value for _, value in state.late.values()]
        if k == 0:
            assert measured == []
        else:
            assert torch.isclose(measured[0], error, rtol=1e-3), (measured, error)


def _error_by_hand(model: Any, hand: Any, args: Any, held: dict[Any, Any], *, skipped: bool) -> Any:
    """Runs the branches in order; on a skipped step with held outputs under the present gates."""
    time = model.prepare(*args, None, None)[1]
    draft = {(stream, 0): value for stream, value in hand.roots.items()}
    exact: dict[Any, Any] = {}
    last = hand.branches[-1].block
    for number, branch in enumerate(hand.branches):
        version = max(v for s, v in draft if s == branch.stream)
        gate = _around(model, hand, number).time(time)[:, None].chunk(3, dim=-1)[2]
        if branch.block == last:
            here = {**draft, **exact}
            added = branch.add(*(here[place] for place in branch.inputs))
            exact[branch.stream, version + 1] = branch.apply(here[branch.stream, version], added)
        added = branch.add(*(draft[place] for place in branch.inputs))
        held.setdefault(number, added / gate)
        draft[branch.stream, version + 1] = branch.apply(
            draft[branch.stream, version], gate * held[number] if skipped else added
        )
    end = max(place for place in draft if place[0] == "video")
    return metrics.relative(exact[end], draft[end], RATIO_OF_MEANS, NEW, 1e-10)


def _around(model: Any, hand: Any, number: int) -> Any:
    """The modulation of a branch, by its place among those of its block."""
    branch = hand.branches[number]
    mine = [b for b in hand.branches if b.block == branch.block]
    if model.spec.joint_text:
        names = {"video": ["self", "mlp"], "text": ["other_self", "other_mlp"]}[branch.stream]
    else:
        names = ["self", "text", "mlp"]
    place = [b for b in mine if b.stream == branch.stream].index(branch)
    return model.blocks[branch.block].around[names[place]]


def test_it_is_measured_only_behind_so_many_skipped_steps() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, watching(modules(branches), after=2))
    seen = []
    for k, timestep in enumerate(timesteps(5)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)
        (state,) = compiled._trajectories[None].branches[0].gates.values()
        seen.append(len(state.late))

    assert compiled.stats().decisions == {0: "CSSSS"}
    assert seen == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_speca_hears_of_a_bad_draft_one_step_late(threshold: float) -> None:
    case = build(Spec(audio=Audio.NONE))
    policy = policies.speca(threshold, floor=0.0, shortest=2, longest=4, rate=1.0)
    compiled = synccache.compile(case.model, policy)
    compiled.begin(steps=10)
    for k, timestep in enumerate(timesteps(10)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)

    expected = "CSSSCSSSCS" if threshold == 0 else "CSSSSCSSSS"
    assert compiled.stats().decisions == {0: expected}


def test_speca_runs_on_a_released_model_with_two_streams() -> None:
    case = build_released("sd3")
    policy = policies.speca(1e9, shortest=1, longest=4)
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    compiled.begin(steps=4)
    with torch.no_grad():
        for k in range(4):
            args, kwargs = case.inputs(seed=k, timestep=900.0 - k, branch=0, size=0)
            compiled(*args, **kwargs)
    (state,) = compiled._trajectories[None].branches[0].gates.values()
    ((at, error),) = state.late.values()

    assert at == 3
    assert 0 < float(error) < 1e3


def test_branches_whose_input_a_skipped_step_does_not_make_are_refused() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, watching(blocks[1:]))
    args, kwargs = case.new_inputs(0, 900.0)

    with pytest.raises(MatchError, match="a skipped step does not make"):
        compiled(*args, **kwargs)


def test_branches_that_are_not_skipped_are_refused() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, watching(modules(blocks[1:]), of=blocks[0]))
    args, kwargs = case.new_inputs(0, 900.0)

    with pytest.raises(MatchError, match="of which the rule skips none"):
        compiled(*args, **kwargs)
