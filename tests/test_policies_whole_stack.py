"""The whole-stack methods: decisions and outputs of the published worked examples, and their schedules.

Numbers: caching-policy reference, sections 1 and 2 (worked out by hand there).
"""

from typing import Any

import pytest
import torch
from loops import timesteps
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
    Taylor,
    accumulated,
    blocks,
    branches,
    choose,
    given,
    lagged,
    output,
    relative_l1,
    residual,
    skips,
    step,
)
from synccache.policies.masks import SPEEDS, flattest, scm
from synccache.policies.prospects import check_prospects, static_letters
from synccache.policies.tables import MAGCACHE, TEACACHE

SIGNALS = [10.0, 10.4, 10.9, 11.0, 11.6, 12.0]


def numbers() -> Numbers:
    """Block 0 adds 0, blocks 1 and 2 double the stream: probes see the latents themselves."""
    return Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))


def ran(policy: Policy, latents: list[Any], model: Any = None, steps: int | None = None) -> Any:
    """The compiled model after a run over these latents, and the outputs' first numbers."""
    compiled = synccache.compile(numbers() if model is None else model, policy)
    compiled.begin(steps=len(latents) if steps is None else steps)
    found = []
    for timestep, values in zip(timesteps(len(latents)), latents, strict=True):
        x = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)
        with torch.no_grad():
            out = compiled(x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64))
        found.append(float(out[0, 0, 0]))
    return compiled, found


def decisions(policy: Policy, latents: list[Any], model: Any = None) -> str:
    return str(ran(policy, latents, model)[0].stats().decisions[0])


# ---- worked examples


@pytest.mark.parametrize(
    ("polynomial", "threshold", "decided"),
    [((1.0, 0.0), 0.10, "CSSSCC"), ((2.0, 0.0, 0.01), 0.03, "CSSCSC")],
)
def test_teacache(polynomial: tuple[float, ...], threshold: float, decided: str) -> None:
    policy = policies.teacache(threshold, polynomial=polynomial)

    assert decisions(policy, SIGNALS) == decided


def test_teacache_adds_the_whole_stacks_residual() -> None:
    model = Numbers((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))  # at x = 1: r = 2
    _, found = ran(policies.teacache(10.0, polynomial=(1.0, 0.0)), [1, 1.1, 1.2, 1.3, 1.4], model)

    assert found[:4] == pytest.approx([3, 3.1, 3.2, 3.3])


def test_magcache_is_a_step_mask_that_skips_the_last_step_too() -> None:
    ratios = (1.0, 0.98, 0.97, 0.95, 0.99, 0.9)
    policy = policies.magcache(0.12, ratios=ratios, max_skips=2, operator="<")

    assert static_letters(policy.rules[0], 6) == "CSSCSS"
    assert decisions(policy, SIGNALS) == "CSSCSS"


def test_a_table_is_stretched_to_the_nearest_of_its_steps() -> None:
    table = dsl.Table((1.0, 2.0, 3.0, 4.0, 5.0))
    rule = Rule(branches, table >= 4)

    assert static_letters(rule, 3) == "CCS"
    assert static_letters(rule, 9) == "CCCCCCSSS"  # round(i / 2): halves to even


def test_dbcache_sums_what_it_looked_at_over_the_run() -> None:
    model = Numbers((-0.5, 7.0), (1.0, -4.0), (0.0, 0.0))
    latents = [10, 9.8, 9.7, 9.5, 9.4]  # changes 0.05, 0.075, 0.125, 0.0222 against the anchor

    def with_budget(budget: float) -> str:
        policy = policies.dbcache(0.1, front=1, warmup=1, budget=budget)
        return decisions(policy, latents, model)

    assert with_budget(dsl.inf) == "CSSCS"
    assert with_budget(0.26) == "CSSCS"
    assert with_budget(0.24) == "CSSCC"  # 0.25 were seen before the last step
    assert with_budget(0.06) == "CSSCC"
    assert with_budget(0.04) == "CSCCC"


def test_dbcache_follows_mask_limits_and_warm_up_interval() -> None:
    model = numbers()

    def decided(**options: Any) -> str:
        policy = policies.dbcache(9.0, **{"front": 1, "warmup": 1, **options})
        return decisions(policy, [1, 2, 3, 4, 5, 6], model)

    zero_probe = policies.dbcache(9.0, front=1, warmup=1)
    assert decisions(zero_probe, [1, 2, 3], model) == "CCC"  # 0 / 0 is undefined: compute
    model = Numbers((0.0, 1.0), (1.0, 0.0), (1.0, 0.0))
    assert decided() == "CSSSSS"
    assert decided(mask=dsl.Steps("CSSCSC")) == "CSSCSC"
    assert decided(max_skips=1) == "CSCSCS"
    assert decided(max_skipped=3) == "CSSSCC"
    assert decided(warmup=5, warmup_interval=2) == "CSCSCS"


def test_forecast_errors_are_measured_against_the_probes_own_anchors() -> None:
    missed = relative_l1(output(blocks[0]), since=dsl.forecast(Taylor(1)), denominator=dsl.NEW)
    policy = Policy("gate of CG-Taylor", (Rule(blocks[1:], (missed < 0.05) & (step >= 2)),))

    assert decisions(policy, [1.0, 1.1, 1.21, 1.4, 1.5]) == "CCSCS"


def test_thresholds_may_be_switched_by_the_drift_of_the_signal() -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    steady = abs(moved - lagged(moved)) <= 0.01
    limit = choose(steady, 0.12, 0.06)
    policy = Policy("like ACID", (Rule(blocks[1:], accumulated(moved) <= limit),))

    # changes 0.04, 0.048, 0.009, 0.054, 0.034; steady from the third step on but for one
    assert decisions(policy, SIGNALS) == "CSSCSC"
    fixed = policy.with_(threshold=0.06)
    assert decisions(fixed, SIGNALS) == "CSCSCS"


# ---- schedules


@pytest.mark.parametrize(
    ("policy", "letters"),
    [
        (policies.taylorseer_lite(5, first=1), "CSSSSCSSSSCS"),
        (policies.taylorseer_lite(5, first=3), "CCCSSSSCSSSS"),
        (policies.freqca(4, first=3), "CCCSSSCSSSCS"),
    ],
)
def test_intervals_begin_behind_the_first_steps(policy: Policy, letters: str) -> None:
    assert static_letters(policy.rules[0], 12) == letters


def test_delta_dit_skips_the_rear_early_and_the_front_late() -> None:
    front, rear = policies.delta_dit(1, interval=2, boundary=4).rules

    assert static_letters(rear, 8) == "CSCSCCCC"
    assert static_letters(front, 8) == "CCCCCSCS"


def test_the_avatar_schedule_computes_thirty_of_fifty_steps() -> None:
    letters = static_letters(policies.avatar_schedule().rules[0], 50)

    computed = {*range(16), 20, 25, 30, 35, *range(40, 50)}
    assert {i for i, letter in enumerate(letters) if letter == "C"} == computed


SCM_28 = {
    "slow": "1111111101110011100110010001",
    "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001",
    "ultra": "1111001000001000000100000001",
}


@pytest.mark.parametrize("speed", SPEEDS)
def test_scm_masks_for_28_steps_are_the_published_ones(speed: str) -> None:
    assert scm(speed, 28).letters == SCM_28[speed].replace("1", "C").replace("0", "S")


@pytest.mark.parametrize("speed", SPEEDS)
def test_scm_masks_for_other_numbers_of_steps_are_cache_dits(speed: str) -> None:
    interface = pytest.importorskip("cache_dit.caching.cache_interface")
    for steps in (4, 6, *range(8, 101)):
        theirs = interface.steps_mask(total_steps=steps, mask_policy=speed)
        letters = "".join("C" if computed else "S" for computed in theirs)

        assert scm(speed, steps).letters == letters


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 7])
def test_there_is_no_scm_mask_for_other_few_steps(steps: int) -> None:
    with pytest.raises(PolicyError, match=f"no SCM mask for {steps} steps"):
        scm("fast", steps)


def test_the_flattest_steps_are_skipped_within_their_limits() -> None:
    bends = (9.0, 0.1, 0.2, 0.3, 5.0, 0.4, 9.0)

    assert flattest(bends, count=3, max_skips=2).letters == "CSSCCSC"
    assert flattest(bends, count=3, max_skips=3).letters == "CSSSCCC"
    with pytest.raises(PolicyError, match=r"5 of 7 steps cannot be skipped .* 4 can"):
        flattest(bends, count=5)


def test_published_tables_are_complete() -> None:
    assert {len(table) for table in TEACACHE.values()} == {5}
    assert sorted(len(table) for table in MAGCACHE.values()) == [28, 40, 40, 50, 50, 50, 50]
    assert all(table[0] == 1.0 for table in MAGCACHE.values())


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
