"""The compiled model as a user meets it: trajectories, guidance, exact values, figures, refusals."""

import pytest
import torch
from small_models import TOKENS, denoise, normal, talking, voices

import synccache
from synccache import policies
from synccache.errors import MatchError, PlanError, PolicyError, StateError
from synccache.policies.dsl import (
    LAST_COMPUTED,
    Hold,
    Linear,
    Policy,
    Rule,
    Steps,
    blocks,
    branches,
    mask,
    relative_l1,
    residual,
    segments,
    step,
    steps_left,
)

ALTERNATE = Policy("alternate", (Rule(blocks[1:], Steps("CSCSCSCS"), Hold()),))


def test_compile_returns_before_anything_is_recorded() -> None:
    compiled = synccache.compile(talking())

    assert compiled.captures == 0
    with pytest.raises(StateError, match="first forward is recorded"):
        compiled.plan  # noqa: B018


def test_an_example_is_recorded_at_once_and_begins_no_trajectory() -> None:
    example = ((normal(0, 1, TOKENS, 4), torch.tensor([1000.0]), voices()[0]), {})
    compiled = synccache.compile(talking(), ALTERNATE, example=example)

    assert compiled.captures == 1
    assert len(compiled.plan.regions) == 1
    assert not compiled.stats().decisions


def test_exact_gives_the_models_own_bits_and_keeps_what_does_not_change() -> None:
    model = talking()
    compiled = synccache.compile(model, "exact")

    assert torch.equal(denoise(model), denoise(compiled))
    assert "invariant_audio" in compiled.code
    assert compiled.stats().decisions == {0: "CCCCCC", 1: "CCCCCC"}


def test_a_step_mask_skips_its_steps_in_both_guidance_branches() -> None:
    compiled = synccache.compile(talking(), ALTERNATE)
    denoise(compiled)

    assert compiled.stats().decisions == {0: "CSCSCS", 1: "CSCSCS"}
    assert compiled.stats().executed_fraction == pytest.approx(1 - 0.5 * 3 / 4, abs=0.02)


def test_a_mask_needs_no_device_sync_beside_the_timestep() -> None:
    compiled = synccache.compile(talking(), ALTERNATE)
    denoise(compiled)

    assert compiled.stats().syncs == 12  # one a call


def test_a_skipped_step_adds_the_held_residual() -> None:
    model = talking()
    compiled = synccache.compile(model, ALTERNATE)
    audio, first, second = voices()[0], normal(1, 1, TOKENS, 4), normal(2, 1, TOKENS, 4)
    late, later = torch.tensor([900.0]), torch.tensor([800.0])

    def through(latents: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        time, heard = model.time(timestep[:, None, None] / 1000), model.listen(audio)
        hidden = model.embed(latents)
        after_first = None
        for block, injector in zip(model.blocks, model.injectors, strict=True):
            hidden = block(hidden, time)
            hidden = hidden + injector(hidden, heard)
            after_first = hidden if after_first is None else after_first
        return after_first, hidden

    compiled(first, late, audio)
    after_first, end = through(first, late)
    expected = model.head(through(second, later)[0] + (end - after_first))

    assert torch.equal(expected, compiled(second, later, audio))


def test_linear_prediction_continues_the_line_through_two_computed_steps() -> None:
    policy = Policy("line", (Rule(blocks[1:], Steps("CCS"), Linear()),))
    model = talking()
    compiled = synccache.compile(model, policy)
    latents, audio = normal(1, 1, TOKENS, 4), voices()[0]
    outputs = [compiled(latents, torch.tensor([t]), audio) for t in (1000.0, 900.0, 800.0)]
    exact = model(latents, torch.tensor([800.0]), audio)

    assert compiled.stats().decisions == {0: "CCS"}
    assert (outputs[2] - exact).norm() < (outputs[1] - exact).norm()


def test_a_rising_timestep_begins_a_new_trajectory() -> None:
    compiled = synccache.compile(talking(), ALTERNATE)
    first, second = denoise(compiled), denoise(compiled)

    assert torch.equal(first, second)
    assert compiled.stats().decisions == {0: "CSCSCS", 1: "CSCSCS"}


def test_interleaved_trajectories_do_not_see_each_other() -> None:
    compiled = synccache.compile(talking(), ALTERNATE)
    audio, times = voices()[0], [1000.0, 750.0, 500.0, 250.0]

    def run(key: str, seed: int, step: int) -> torch.Tensor:
        with compiled.trajectory(key):
            return compiled(normal(seed + step, 1, TOKENS, 4), torch.tensor([times[step]]), audio)

    together = [(run("a", 10, i), run("b", 20, i)) for i in range(4)]
    compiled.reset()
    alone = [[run(key, seed, i) for i in range(4)] for key, seed in (("a", 10), ("b", 20))]

    for i in range(4):
        assert torch.equal(together[i][0], alone[0][i])
        assert torch.equal(together[i][1], alone[1][i])


def test_too_many_calls_at_one_timestep_are_refused() -> None:
    compiled = synccache.compile(talking(), ALTERNATE)
    call = (normal(0, 1, TOKENS, 4), torch.tensor([1000.0]), voices()[0])
    for _ in range(8):
        compiled(*call)

    with pytest.raises(StateError, match="at most 8"):
        compiled(*call)


def test_named_guidance_branches_may_come_in_any_order() -> None:
    model = talking()
    compiled = synccache.compile(model, ALTERNATE)
    latents, audio = normal(0, 1, TOKENS, 4), voices()

    def run(order: tuple[int, int], timestep: float) -> None:
        for i in order:
            with compiled.cache_context(("cond", "uncond")[i]):
                compiled(latents, torch.tensor([timestep]), audio[i])

    run((0, 1), 1000.0)
    run((1, 0), 900.0)

    assert compiled.stats().decisions == {"cond": "CS", "uncond": "CS"}


def test_audio_changed_in_place_is_heard() -> None:
    model = talking()
    compiled = synccache.compile(model, "exact")
    latents, audio = normal(0, 1, TOKENS, 4), normal(5, 1, 5, 6)
    compiled(latents, torch.tensor([1000.0]), audio)
    audio.mul_(2.0)

    assert torch.equal(
        model(latents, torch.tensor([900.0]), audio),
        compiled(latents, torch.tensor([900.0]), audio),
    )


def test_new_weights_are_used_from_the_next_trajectory_on() -> None:
    model = talking()
    compiled = synccache.compile(model, "exact")
    denoise(compiled)
    with torch.no_grad():
        model.listen.weight.mul_(2.0)

    assert torch.equal(denoise(model), denoise(compiled))


def test_inference_tensors_are_compared_by_value() -> None:
    model = talking()
    compiled = synccache.compile(model, "exact")
    with torch.inference_mode():
        audio = voices()
        expected, found = denoise(model, audio=audio), denoise(compiled, audio=audio)

    assert torch.equal(expected, found)


def test_held_bytes_stay_within_the_plan() -> None:
    compiled = synccache.compile(talking(), policies.asymmetric(threshold=1.0))
    denoise(compiled)
    stats = compiled.stats()

    assert 0 < stats.bytes_held <= stats.planned_bytes
    assert compiled.plan.memory.guidance_branches == 2


def test_a_small_budget_merges_regions_and_a_smaller_one_is_refused_with_numbers() -> None:
    roomy = synccache.compile(talking(), policies.asymmetric(threshold=1.0))
    denoise(roomy)
    total, hidden = roomy.plan.memory.total_bytes, TOKENS * 16 * 4
    tight = synccache.compile(
        talking(), policies.asymmetric(threshold=1.0), mem_budget=total - hidden
    )
    denoise(tight)

    assert len(roomy.plan.regions) == 3
    assert len(tight.plan.regions) == 2
    assert tight.stats().bytes_held <= tight.stats().planned_bytes
    with pytest.raises(PlanError, match=r"smallest|least|needs"):
        denoise(synccache.compile(talking(), "asymmetric", mem_budget="5KB"))


def test_a_second_guidance_branch_is_planned_for_when_it_appears() -> None:
    one = synccache.compile(talking(), policies.asymmetric(threshold=1.0))
    denoise(one, audio=voices()[:1])
    budget = one.plan.memory.total_bytes
    both = synccache.compile(
        talking(), policies.asymmetric(threshold=1.0), mem_budget=budget + 2048
    )
    denoise(both, audio=voices()[:1])
    alone = len(both.plan.regions)
    both.reset()
    denoise(both)

    assert alone == 3
    assert len(both.plan.regions) < alone
    assert both.plan.memory.total_bytes <= budget + 2048


def test_cache_ratio_sets_the_number_of_segments() -> None:
    for ratio, expected in ((0.25, 1), (0.5, 2), (1.0, 3)):
        compiled = synccache.compile(
            talking(), policies.asymmetric(threshold=1.0), cache_ratio=ratio
        )
        denoise(compiled)
        assert len(compiled.plan.regions) == expected


def test_cache_ratio_is_refused_for_a_policy_without_segments() -> None:
    with pytest.raises(PlanError, match="segments"):
        denoise(synccache.compile(talking(), "first_block_cache", cache_ratio=0.5))


def test_a_run_in_which_nothing_was_skipped_says_why() -> None:
    compiled = synccache.compile(talking(), policies.first_block_cache(threshold=0.0))
    denoise(compiled)

    assert "was not true on 6 of them (it was 0." in compiled.stats().note
    assert "0" in compiled.stats().note


def test_steps_left_needs_the_number_of_steps() -> None:
    policy = Policy("last", (Rule(blocks[1:], (step >= 1) & (steps_left > 0)),))
    compiled = synccache.compile(talking(), policy)
    with pytest.raises(StateError, match="begin"):
        denoise(compiled)
    compiled.begin(steps=6)
    denoise(compiled)

    assert compiled.stats().decisions[0] == "CSSSSC"


def test_a_probe_behind_what_it_decides_about_is_refused() -> None:
    moved = relative_l1(residual(blocks[2]), since=LAST_COMPUTED)
    policy = Policy("late", (Rule(blocks[1:], moved < 0.1),))

    with pytest.raises(MatchError, match="lies behind"):
        denoise(synccache.compile(talking(), policy))


def test_two_rules_for_one_branch_are_refused() -> None:
    policy = Policy("twice", (Rule(blocks[1:], step >= 1), Rule(blocks[2:], step >= 1)))

    with pytest.raises(MatchError, match="rules 1 and 2 both skip"):
        denoise(synccache.compile(talking(), policy))


def test_a_selector_that_matches_nothing_is_refused() -> None:
    policy = Policy("far", (Rule(blocks[9:], step >= 1),))

    with pytest.raises(MatchError, match="selects 0 of 12 branches in 4 blocks"):
        denoise(synccache.compile(talking(), policy))


def test_a_condition_that_names_no_argument_is_refused() -> None:
    with pytest.raises(MatchError, match="'sound'"):
        denoise(synccache.compile(talking(), conditions={"audio": ["sound"]}))


def test_masks_must_fit_the_tokens() -> None:
    policy = policies.asymmetric(threshold=1.0)
    denoise(synccache.compile(talking(), policy, masks={"person": torch.ones(3, 2, 2)}))
    with pytest.raises(MatchError, match="tokens"):
        denoise(synccache.compile(talking(), policy, masks={"person": torch.ones(TOKENS + 1)}))
    with pytest.raises(MatchError, match=r"\[0, 1\]"):
        denoise(synccache.compile(talking(), policy, masks={"person": torch.full((TOKENS,), 2.0)}))


def test_without_a_mask_the_person_is_where_audio_is_written() -> None:
    compiled = synccache.compile(talking(), policies.asymmetric(threshold=1.0))
    denoise(compiled)

    assert "found from what the audio branches write" in compiled.explain()
    assert "audio_writes_0" in compiled.code


def test_a_mask_that_cannot_be_found_is_said_to_be_missing() -> None:
    moved = relative_l1(residual(blocks[0]), since=LAST_COMPUTED, weight=mask("person", inside=2.0))
    policy = Policy("blind", (Rule(branches - blocks[0], moved < 0.1),))
    compiled = synccache.compile(talking(), policy, conditions={"text": ["audio"]})
    denoise(compiled)

    assert "person: NONE, all tokens weigh alike" in compiled.explain()


@pytest.mark.parametrize("budget", ["24 gigs", -1, "1KBB", "", 0])
def test_a_malformed_budget_is_refused_before_the_model_runs(budget: object) -> None:
    with pytest.raises(PlanError):
        synccache.compile(talking(), mem_budget=budget)


def test_an_unknown_policy_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(PolicyError, match="asymmetric"):
        synccache.compile(talking(), "asymetric")


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"torch\.nn\.Module"):
        synccache.compile(lambda x: x)


def test_code_and_explanation_name_probe_gate_regions_and_live_audio() -> None:
    compiled = synccache.compile(talking(), policies.asymmetric(threshold=1.0))
    denoise(compiled)

    for word in ("PROBE", "gate: skip while", "skip branch: blocks.1", "LIVE: reads audio"):
        assert word in compiled.code
    for word in ("audio = audio", "latents = sample", "region 2", "injectors.1", "live"):
        assert word in compiled.explain()
    compiled.graph_module.graph.lint()


def test_everything_selected_leaves_one_region_with_audio_inside() -> None:
    policy = Policy("stack", (Rule(segments(branches - blocks[0]), step >= 1),))
    compiled = synccache.compile(talking(), policy)
    denoise(compiled)

    assert len(compiled.plan.regions) == 1
    assert compiled.stats().decisions == {0: "CSSSSS", 1: "CSSSSS"}
