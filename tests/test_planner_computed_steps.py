"""Planned steps: the recursion finds what trying every schedule finds; weights and rules hold."""

from collections.abc import Sequence
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synccache.errors import PlanError
from synccache.planner.computed_steps import (
    StepProblem,
    Terms,
    best_schedules,
    evenly_spaced,
    plan_steps,
    prediction_weights,
    schedule_error,
    step_plan,
)
from synccache.planner.residual_gram import ResidualGram
from synccache.planner.step_plan import StepPlan


def sigmas_of(steps: int) -> tuple[float, ...]:
    return tuple(1.0 - i / steps for i in range(steps + 1))


def gram_of(vectors: np.ndarray) -> ResidualGram:
    """Of residuals [steps, numbers]."""
    steps = len(vectors)
    products = (vectors @ vectors.T).tolist()
    timesteps = tuple(1000.0 * s for s in sigmas_of(steps)[:-1])
    return ResidualGram(
        products=tuple(map(tuple, products)), timesteps=timesteps, sigmas=sigmas_of(steps)
    )


def smooth(steps: int, degree: int, seed: int = 0) -> np.ndarray:
    """Residuals that are polynomials of this degree in the step."""
    numbers = np.random.default_rng(seed).normal(size=(degree + 1, 12))
    powers = np.linspace(0.0, 1.0, steps)[:, None] ** np.arange(degree + 1)
    return powers @ numbers


problems = st.builds(
    lambda steps, seed, terms, strength, degree, warmup, last, gap: StepProblem(
        gram=gram_of(np.random.default_rng(seed).normal(size=(steps, 4)).cumsum(axis=0)),
        terms=terms, strength=strength, degree=degree, warmup_steps=warmup, last_steps=last,
        max_gap=gap,
    ),
    st.integers(4, 8), st.integers(0, 999), st.sampled_from(Terms), st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.sampled_from([None, 2, 3]),
)  # fmt: skip


@given(problems)
@settings(max_examples=40, deadline=None)
def test_one_table_gives_for_every_count_what_trying_all_schedules_gives(
    problem: StepProblem,
) -> None:
    found = best_schedules(problem, problem.steps)
    for count in range(1, problem.steps + 1):
        every = [(0, *rest) for rest in combinations(range(1, problem.steps), count - 1)]
        errors = [schedule_error(problem, steps) for steps in every]
        best = min(errors)

        assert (count in found) == (best < float("inf"))
        if count in found:
            steps, error = found[count]
            assert error == pytest.approx(best, abs=1e-9)
            assert schedule_error(problem, steps) == pytest.approx(best, abs=1e-9)


@given(problems)
@settings(max_examples=30, deadline=None)
def test_every_row_of_weights_sums_to_one(problem: StepProblem) -> None:
    plan = plan_steps(problem, problem.steps - 1)

    for _, anchors, weights in plan.coefficients:
        assert len(anchors) == len(weights) <= problem.terms.count
        assert sum(weights) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("terms", "degree"), [(Terms.REUSE, 0), (Terms.LINEAR, 1), (Terms.FITTED_3, 2)]
)
def test_residuals_of_the_predictors_own_degree_cost_nothing(terms: Terms, degree: int) -> None:
    problem = StepProblem(gram=gram_of(smooth(9, degree)), terms=terms, ridge=1e-12)

    assert schedule_error(problem, (0, 1, 2, 5, 8)) == pytest.approx(
        schedule_error(problem, (0, 1, 2)), abs=1e-4
    )
    assert schedule_error(problem, (0, 1, 2)) == pytest.approx(0.0, abs=1e-4)


def test_the_error_of_a_segment_is_the_length_of_its_signed_sum() -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 6))
    problem = StepProblem(gram=gram_of(vectors), terms=Terms.LINEAR, early=0.0)
    levels = np.array(sigmas_of(5))
    predicted = {2: 2 * vectors[1] - vectors[0], 3: 3 * vectors[1] - 2 * vectors[0]}
    by_hand = sum((levels[t] - levels[t + 1]) * (predicted[t] - vectors[t]) for t in (2, 3))

    assert schedule_error(problem, (0, 1, 4)) == pytest.approx(float(np.linalg.norm(by_hand)))


def test_with_payback_the_interpolation_error_counts_and_a_share_of_the_prediction() -> None:
    vectors = np.random.default_rng(2).normal(size=(5, 6))
    problem = StepProblem(gram=gram_of(vectors), early=0.0, strength=0.5, degree=2, share=0.3)
    levels = np.array(sigmas_of(5))
    seen, kept = np.zeros(6), np.zeros(6)
    for t in (2, 3):
        step = levels[t] - levels[t + 1]
        predicted = vectors[1] + (t - 1) * (vectors[1] - vectors[0])
        between = sum(
            w * vectors[i] for i, w in zip((0, 1, 4), interpolation_weights((0, 1, 4), t))
        )
        seen += step * (predicted - vectors[t])
        kept += step * (0.5 * predicted + 0.5 * between - vectors[t])
    by_hand = float(np.linalg.norm(kept) + 0.3 * np.linalg.norm(seen))

    assert schedule_error(problem, (0, 1, 4)) == pytest.approx(by_hand)


def test_fitted_weights_are_the_least_squares_ones_that_sum_to_one() -> None:
    vectors = np.random.default_rng(3).normal(size=(6, 20))
    problem = StepProblem(gram=gram_of(vectors), terms=Terms.FITTED_3, ridge=1e-12)
    (weights,) = prediction_weights(problem, (0, 2, 3), [5])
    differences = np.stack([vectors[0] - vectors[3], vectors[2] - vectors[3]], axis=1)
    expected, *_ = np.linalg.lstsq(differences, vectors[5] - vectors[3], rcond=None)

    assert weights[:2] == pytest.approx(expected)


def test_levels_that_were_measured_are_resampled_exactly() -> None:
    gram = gram_of(smooth(12, 5))
    half = gram.at(gram.sigmas[::2])

    assert half.products == tuple(row[::2] for row in gram.products[::2])
    assert half.timesteps == gram.timesteps[::2]


def test_between_measured_levels_cubic_residuals_are_resampled_exactly() -> None:
    fine = gram_of(smooth(24, 3))
    coarse = fine.at(fine.sigmas[::2])
    again = coarse.at(fine.sigmas[:-1])

    assert np.allclose(again.products, np.array(fine.products)[:-1, :-1])


def test_levels_outside_those_measured_are_refused() -> None:
    with pytest.raises(PlanError, match=r"noise level 1\.5 lies outside those measured, 1 to"):
        gram_of(smooth(8, 2)).at((1.5, 0.5, 0.0))


def test_planning_without_noise_levels_says_where_to_give_them() -> None:
    gram = ResidualGram(products=((1.0, 0.5), (0.5, 1.0)), timesteps=(1.0, 0.5))

    with pytest.raises(PlanError, match="sigmas=") as refused:
        StepProblem(gram=gram)
    assert "calibrate" in str(refused.value)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_steps(StepProblem(gram=gram_of(smooth(9, 3)), strength=0.5), 4, model="Talking")
    plan.save(tmp_path / "plan.json")

    assert StepPlan.load(tmp_path / "plan.json") == plan
    assert "4 of 9 steps computed" in str(plan)


def test_a_plan_whose_first_step_is_skipped_is_refused() -> None:
    with pytest.raises(PlanError, match="first step must be computed"):
        StepPlan(
            letters="SC", coefficients=(), timesteps=(1.0, 0.5), predicted_error=0.0, source="x"
        )


def test_more_computed_steps_never_have_a_larger_error_on_smooth_residuals() -> None:
    problem = StepProblem(gram=gram_of(smooth(16, 4)), terms=Terms.REUSE)
    errors = [error for _, error in best_schedules(problem, 16).values()]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0.0, abs=1e-9)


def test_evenly_spaced_steps_include_the_first_and_the_last() -> None:
    assert evenly_spaced(40, 10)[0] == 0
    assert evenly_spaced(40, 10)[-1] == 39
    assert len(set(evenly_spaced(40, 10))) == 10


def test_a_given_schedule_gets_the_predictors_weights() -> None:
    problem = StepProblem(gram=gram_of(smooth(6, 2)), terms=Terms.LINEAR)
    plan = step_plan(problem, (0, 2), source="by hand")

    assert plan.letters == "CSCSSS"
    assert plan.coefficients[1] == (3, (0, 2), (-0.5, 1.5))


def interpolation_weights(anchors: Sequence[int], at: int) -> tuple[float, ...]:
    """Lagrange weights of the polynomial through the steps ``anchors``, read at step ``at``."""
    return tuple(
        prod((at - j) / (i - j) for j in anchors if j != i) for i in anchors
    )  # fmt: skip
