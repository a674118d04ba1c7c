"""solve_threshold: the threshold that meets a goal, found by running the caller's loop."""

import pytest
import torch
from small_models import denoise, talking

import synccache
from synccache import policies
from synccache.errors import PlanError, PolicyError
from synccache.fx.cached_model import CachedModel

STEPS = 8


def loop(model: CachedModel) -> torch.Tensor:
    return denoise(model, STEPS)


def test_the_lowest_threshold_that_reaches_a_speed_up_is_found() -> None:
    found = synccache.solve_threshold(talking(), loop, policies.asymmetric(), target_speedup=1.02)
    slower = [row for row in found.tried if row.factor < found.chosen.factor]

    assert found.chosen.speedup >= 1.02
    assert all(row.speedup < 1.02 for row in slower)
    assert found.policy.name == "asymmetric"
    assert repr(found.chosen.limits[0]) in repr(found.policy)


def test_the_highest_threshold_within_an_error_is_found() -> None:
    found = synccache.solve_threshold(talking(), loop, policies.asymmetric(), max_error=0.02)
    faster = [row for row in found.tried if row.factor > found.chosen.factor]

    assert found.chosen.error is not None and found.chosen.error <= 0.02
    assert all(row.error is not None and row.error > 0.02 for row in faster)


def test_the_policy_found_gives_what_was_promised() -> None:
    found = synccache.solve_threshold(talking(), loop, policies.asymmetric(), max_error=0.02)
    plain = denoise(talking(), STEPS)
    out = loop(synccache.compile(talking(), found.policy))
    error = float((out - plain).abs().sum() / plain.abs().sum())

    assert error == pytest.approx(found.chosen.error, rel=1e-3)


def test_every_threshold_tried_is_printed_with_what_it_gave() -> None:
    found = synccache.solve_threshold(
        talking(), loop, policies.asymmetric(), max_error=0.02, runs=5
    )
    lines = str(found).splitlines()

    assert lines[1].split() == ["threshold", "speed-up", "error"]
    assert len(lines) == 3 + 5
    assert sum(line.startswith("->") for line in lines) == 1


def test_a_goal_that_no_threshold_meets_is_refused_with_the_best_there_was() -> None:
    with pytest.raises(PlanError, match=r"none gave a speed-up of 50; the best gave \d"):
        synccache.solve_threshold(
            talking(), loop, policies.asymmetric(), target_speedup=50.0, runs=3
        )


def test_a_policy_without_a_threshold_is_refused() -> None:
    with pytest.raises(PolicyError, match="step_mask compares no measured quantity"):
        synccache.solve_threshold(talking(), loop, policies.step_mask("CS"), target_speedup=1.5)


@pytest.mark.parametrize("goals", [{}, {"target_speedup": 2.0, "max_error": 0.1}])
def test_one_goal_is_asked_for(goals: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="one of target_speedup and max_error"):
        synccache.solve_threshold(talking(), loop, **goals)
