"""choose_schedule: what it returns is the best of what it ran, and it runs the honest opponents too."""

import pytest
import torch
from small_models import TOKENS, normal, talking, voices
from torch import Tensor

import synccache
from synccache import policies
from synccache.errors import PlanError
from synccache.fx.cached_model import CachedModel
from synccache.planner.computed_steps import Terms
from synccache.schedules import Chosen

STEPS = 8
SIGMAS = tuple(1.0 - i / STEPS for i in range(STEPS + 1))


def loop(seed: int, model: torch.nn.Module) -> Tensor:
    state = normal(seed, 1, TOKENS, 4)
    for n in range(STEPS):
        output = model(state, torch.tensor([1000.0 * SIGMAS[n]]), voices()[0])
        state = state + (SIGMAS[n + 1] - SIGMAS[n]) * output
    return state


def first(model: CachedModel) -> Tensor:
    return loop(0, model)


def second(model: CachedModel) -> Tensor:
    return loop(1, model)


@pytest.fixture(scope="module")
def measured() -> synccache.Calibration:
    return synccache.calibrate(talking(), first, policies.step_mask("CS"), sigmas=SIGMAS)


@pytest.fixture(scope="module")
def chosen(measured: synccache.Calibration) -> Chosen:
    return synccache.choose_schedule(
        talking(), [first, second], measured, computed=4, terms=(Terms.REUSE, Terms.LINEAR),
        early=(0.5,), strengths=(0.0, 0.5),
        gates=[lambda limit: policies.first_block_cache(threshold=limit)], moves=6,
    )  # fmt: skip


def decibels(plan: object) -> float:
    compiled = synccache.compile(talking(), policies.planned(plan))
    found = []
    for run in (first, second):
        exact = run(talking())
        compiled.begin(sigmas=SIGMAS)
        found.append(
            -10 * torch.log10((run(compiled) - exact).square().sum() / exact.square().sum())
        )
    return float(sum(found) / 2)


def test_the_chosen_plan_is_as_good_as_it_is_said_to_be(chosen: Chosen) -> None:
    assert chosen.decibels == pytest.approx(decibels(chosen.plan), abs=0.05)
    assert len(chosen.plan.computed) == 4


def test_nothing_that_ran_on_every_clip_was_better(chosen: Chosen) -> None:
    evenly = [plan for plan, _ in chosen.tried if plan.source.startswith("evenly spaced")]

    assert evenly
    assert all(decibels(plan) <= chosen.decibels + 0.05 for plan in evenly)


def test_a_gates_schedule_is_among_the_candidates(chosen: Chosen) -> None:
    assert any(plan.source.startswith("as first_block_cache") for plan, _ in chosen.tried)


def test_one_calibration_serves_another_number_of_steps(measured: synccache.Calibration) -> None:
    def coarse(model: CachedModel) -> Tensor:
        state = normal(0, 1, TOKENS, 4)
        for n in range(0, STEPS, 2):
            output = model(state, torch.tensor([1000.0 * SIGMAS[n]]), voices()[0])
            state = state + (SIGMAS[n + 2] - SIGMAS[n]) * output
        return state

    found = synccache.choose_schedule(
        talking(),
        [coarse],
        measured,
        computed=2,
        sigmas=SIGMAS[::2],
        terms=(Terms.LINEAR,),
        moves=0,
    )

    assert len(found.plan.letters) == 4
    assert found.decibels > 0


def test_a_calibration_without_noise_levels_is_refused(measured: synccache.Calibration) -> None:
    bare = synccache.calibrate(talking(), first, policies.step_mask("CS"))

    with pytest.raises(PlanError, match="does not know its noise levels"):
        synccache.choose_schedule(talking(), [first], bare, computed=4)


def test_a_calibration_of_another_model_is_refused(measured: synccache.Calibration) -> None:
    with pytest.raises(PlanError, match=r"parameters '.*' there, '.*' here"):
        synccache.choose_schedule(talking(5), [first], measured, computed=4)
