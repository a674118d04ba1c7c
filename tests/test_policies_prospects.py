"""What cannot work says so; values given by the user; policies built on other policies."""

import pytest
import torch
from loops import timesteps
from test_policies_whole_stack import numbers, ran
from test_worked_examples import Numbers

import synccache
from synccache import policies
from synccache.errors import PolicyError, StateError
from synccache.policies import dsl
from synccache.policies.dsl import (
    FIRST_BRANCH,
    LAST_COMPUTED,
    PREVIOUS,
    Policy,
    Rule,
    accumulated,
    blocks,
    given,
    output,
    relative_l1,
    residual,
    skips,
    step,
)
from synccache.policies.prospects import check_prospects, static_letters

# ---- what cannot work says so


def test_a_policy_that_can_skip_nothing_in_so_few_steps_is_refused_when_the_run_begins() -> None:
    compiled = synccache.compile(numbers(), policies.dbcache())

    with pytest.raises(StateError, match=r"no step of a run of 8\. .*step < 8.* steps 1 to 7"):
        compiled.begin(steps=8)
    compiled.begin(steps=9)


@pytest.mark.parametrize(
    ("policy", "steps", "says"),
    [
        (policies.teacache(), 2, "`steps_left >= 1` is false on all of steps 1 to 1"),
        (policies.first_block_cache(), 1, "nothing is held on the first step"),
        (policies.step_mask("CCCCSS"), 4, "`steps CCCCSS` is false on all of steps 1 to 3"),
        (policies.easycache(), 6, "`step >= 5`.* `steps_left >= 1` on 1 of steps 1 to 5"),
        (policies.asymmetric(max_skips=0), 50, "`skips < 0` is false on all"),
        (policies.magcache(retention=1.0), 8, "`step >= 1 of the steps` is false on all"),
        (
            policies.taylorseer_lite(4, order=4, first=2),
            10,
            r"needs 5 computed steps .* there are 3: CCSSSCSSSC",
        ),
    ],
)
def test_what_keeps_a_policy_from_skipping_is_named(policy: Policy, steps: int, says: str) -> None:
    with pytest.raises(StateError, match=says):
        check_prospects(policy, steps)


def test_every_method_of_the_library_may_skip_something_in_fifty_steps() -> None:
    for name in policies.__all__:
        if name not in ("delta_dit", "omnicache", "planned", "step_mask"):
            check_prospects(policies.by_name(name), 50)


def test_a_run_that_skipped_nothing_says_what_stood_in_the_way() -> None:
    compiled, _ = ran(policies.first_block_cache(0.01), [1, 2, 3], Numbers((1.0, 0.0), (1.0, 0.0)))

    note = compiled.stats().note
    assert "nothing was skipped in 3 steps" in note
    assert "`change of residual of blocks[0] since last computed <= 0.01` was not true on 3" in note
    assert "it was 0.5 to 1" in note
    assert note in compiled.explain()


def test_the_number_of_steps_is_asked_for_where_a_policy_needs_it() -> None:
    compiled = synccache.compile(numbers(), policies.teacache())
    one = torch.ones(1, 1, 1, dtype=torch.float64)

    with pytest.raises(
        StateError, match=r"number of steps, which is not known. Call compiled.begin"
    ):
        compiled(one, torch.tensor([1000.0]), one)


def test_a_static_policy_is_printed_as_its_mask_and_has_no_probe() -> None:
    policy = Policy("interval", (Rule(blocks[1:], ~dsl.every(step, 3)),))
    compiled, _ = ran(policy, [1, 2, 3, 4, 5, 6])

    assert "a step mask, nothing is measured: CSSCSS" in compiled.explain()
    assert compiled.plan.mask == "CSSCSS"
    assert "nothing measured: CSSCSS." in str(compiled.plan)
    assert "PROBE" not in compiled.code
    assert compiled.stats().syncs == 6  # the timestep of each call


def test_many_numbers_are_one_transfer() -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    drifted = relative_l1(residual(blocks[:1]), since=LAST_COMPUTED)
    seen = relative_l1(dsl.latent, since=PREVIOUS, norm=dsl.MEAN_OF_RATIOS)
    rate = dsl.gain(dsl.prediction, dsl.latent)
    when = (accumulated(moved) < 9) & (drifted < 9) & (seen < 9) & (rate * moved < 99)
    model = Numbers((0.5, 1.0), (1.0, 0.0))
    compiled, _ = ran(Policy("many", (Rule(blocks[1:], when),)), [1, 2, 3, 4, 5], model)

    assert compiled.stats().decisions[0] == "CCSSS"
    assert compiled.stats().syncs == 5 + 4  # the first step has nothing to compare


# ---- given values


def test_a_given_number_decides_for_one_step() -> None:
    policy = Policy("loud", (Rule(blocks[1:], given("loudness") <= 0.5),), leader=FIRST_BRANCH)
    compiled = synccache.compile(numbers(), policy)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    for timestep, loudness in zip(timesteps(4), [0.1, 0.2, torch.tensor(0.9), 0.3], strict=True):
        compiled.give(loudness=loudness)
        for _ in range(2):
            compiled(one, torch.tensor([timestep]), one.clone())

    assert compiled.stats().decisions == {0: "CSCS", 1: "CSCS"}
    with pytest.raises(StateError, match=r"nothing of this name was given for step 4"):
        compiled(one, torch.tensor([1.0]), one.clone())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("loud", "takes a number or a tensor, got 'loud'"),
        (None, "takes a number or a tensor, got None"),
        (torch.ones(3), "but 3 were given"),
    ],
)
def test_what_is_given_must_fit(value: object, says: str) -> None:
    policy = Policy("loud", (Rule(blocks[1:], given("loudness") <= 0.5),))
    compiled = synccache.compile(numbers(), policy)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    compiled.give(loudness=value)

    with pytest.raises(StateError, match=says):
        compiled(one, torch.tensor([1000.0]), one.clone())


def test_a_given_tensor_is_a_probe() -> None:
    heard = relative_l1(given("speech"), since=PREVIOUS)
    compiled = synccache.compile(numbers(), Policy("speech", (Rule(blocks[1:], heard <= 0.1),)))
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    speech = torch.ones(3)
    for timestep, factor in zip(timesteps(4), [1.0, 1.05, 1.5, 1.0], strict=True):
        compiled.give(speech=speech.mul_(factor))
        compiled(one, torch.tensor([timestep]), one.clone())

    assert compiled.stats().decisions == {0: "CSCS"}


# ---- building on others


def test_with_threshold_changes_the_one_thing_that_is_compared() -> None:
    for name in ("asymmetric", "dbcache", "easycache", "first_block_cache", "magcache", "teacache"):
        policy = policies.by_name(name)

        assert policy.with_(threshold=0.5) == policies.method(name)(threshold=0.5)


def test_two_thresholds_are_not_guessed_between() -> None:
    with pytest.raises(PolicyError, match=r"has 2 \(< 9; < 0.08\)"):
        policies.dbcache(budget=9).with_(threshold=0.1)


def test_only_limits_a_policy_to_some_steps() -> None:
    limited = policies.only(policies.step_mask("S"), step >= 3)

    assert static_letters(limited.rules[0], 6) == "CCCSSS"


def test_switch_joins_two_policies_by_stage() -> None:
    early, late = policies.step_mask("CCS"), policies.step_mask("S")
    both = policies.switch(step < 4, then=policies.only(early, skips < 1), otherwise=late)

    assert len(both.rules) == 1
    assert static_letters(both.rules[0], 8) == "CCSCSSSS"
    apart = policies.switch(
        step < 4, then=policies.step_mask("S", skip=blocks[:1]), otherwise=policies.step_mask("S")
    )
    assert [static_letters(rule, 6) for rule in apart.rules] == ["CSSSCC", "CCCCSS"]
    with pytest.raises(PolicyError, match="EACH_BRANCH decide and asymmetric FIRST_BRANCH"):
        policies.switch(step < 4, then=early, otherwise=policies.asymmetric())
