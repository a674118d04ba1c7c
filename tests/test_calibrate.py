"""calibrate(): measured drift equals its definition, and the planner uses it."""

from pathlib import Path

import pytest
import torch
from small_models import TOKENS, denoise, normal, talking, voices

import synccache
from synccache import policies
from synccache.errors import PlanError, StateError

STEPS = 4


def trajectory() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(normal(30 + i, 1, TOKENS, 4), torch.tensor([1000.0 - 200 * i])) for i in range(STEPS)]


def run(model: torch.nn.Module) -> list[torch.Tensor]:
    return [model(latents, timestep, voices()[0]) for latents, timestep in trajectory()]


def by_hand(first: int, end: int) -> float:
    """gamma of blocks first+1..end with what is injected between them, from the plain model."""
    model, residuals = talking(), []
    for latents, timestep in trajectory():
        time, heard = model.time(timestep[:, None, None] / 1000), model.listen(voices()[0])
        hidden, starts, ends = model.embed(latents), [], []
        for block, injector in zip(model.blocks, model.injectors, strict=True):
            starts.append(hidden)
            hidden = block(hidden, time)
            ends.append(hidden)
            hidden = hidden + injector(hidden, heard)
        residuals.append(ends[end] - starts[first + 1])
    changes = [
        (a - b).abs().sum() / a.abs().sum() for a, b in zip(residuals, residuals[1:], strict=False)
    ]
    return float(sum(changes))


def test_measured_drift_is_the_sum_of_relative_changes() -> None:
    measured = synccache.calibrate(talking(), run, policies.asymmetric(), stride=1)

    for first in range(3):
        for end in range(first + 1, 4):
            assert measured.drift[first][end] == pytest.approx(by_hand(first, end), rel=1e-4)


def test_a_strided_sample_comes_close() -> None:
    full = synccache.calibrate(talking(), run, stride=1).drift
    sampled = synccache.calibrate(talking(), run, stride=2).drift

    for first in range(3):
        assert sampled[first][first + 1] == pytest.approx(full[first][first + 1], rel=0.5)


def test_calibration_changes_no_output() -> None:
    seen: list[torch.Tensor] = []
    synccache.calibrate(talking(), lambda m: seen.extend(run(m)))

    for found, expected in zip(seen, run(talking()), strict=True):
        assert torch.equal(expected, found)


def test_the_plan_minimises_the_measured_drift(tmp_path: Path) -> None:
    measured = synccache.calibrate(talking(), run)
    measured.save(tmp_path / "drift.json")
    policy = policies.asymmetric(threshold=1.0)
    compiled = synccache.compile(
        talking(), policy, cache_ratio=0.5, calibration=tmp_path / "drift.json"
    )
    run(compiled)
    splits = {(0, i, 3): measured.drift[0][i] + measured.drift[i][3] for i in (1, 2)}

    assert compiled.plan.cuts == min(splits, key=splits.get)
    assert compiled.plan.drift == pytest.approx(min(splits.values()))
    assert "calibration" in str(compiled.plan)


def test_a_calibration_of_another_model_is_refused_with_what_differs() -> None:
    measured = synccache.calibrate(talking(), run)

    with pytest.raises(PlanError, match="number of regions 3 there, 4 here"):
        denoise(synccache.compile(talking(5), "asymmetric", calibration=measured))


def test_a_loop_of_one_step_is_refused() -> None:
    latents, timestep = trajectory()[0]

    with pytest.raises(StateError, match="fewer than two steps"):
        synccache.calibrate(talking(), lambda m: m(latents, timestep, voices()[0]))


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")

    with pytest.raises(PlanError, match=r"x\.json"):
        synccache.compile(talking(), calibration=tmp_path / "x.json")


def products_by_hand(voice: torch.Tensor) -> torch.Tensor:
    """<r_s, r_t> of everything that all branches add, from the plain model."""
    model, residuals = talking(), []
    for latents, timestep in trajectory():
        time, heard = model.time(timestep[:, None, None] / 1000), model.listen(voice)
        start = hidden = model.embed(latents)
        for block, injector in zip(model.blocks, model.injectors, strict=True):
            hidden = block(hidden, time)
            hidden = hidden + injector(hidden, heard)
        residuals.append((hidden - start).flatten())
    found = torch.stack(residuals)
    return found @ found.T


def test_the_inner_products_of_all_residuals_are_recorded() -> None:
    measured = synccache.calibrate(talking(), run, policies.step_mask("CS"), stride=1)
    expected = products_by_hand(voices()[0])
    expected = expected / expected.diagonal().mean()

    assert measured.residuals is not None
    assert torch.allclose(torch.tensor(measured.residuals.products), expected, rtol=0, atol=1e-5)
    assert measured.residuals.timesteps == (1000.0, 800.0, 600.0, 400.0)


def test_two_clips_count_alike_whatever_their_size() -> None:
    def both(model: torch.nn.Module) -> None:
        model.begin(sigmas=(1.0, 0.8, 0.6, 0.4, 0.2))
        run(model)
        run(model)

    once = synccache.calibrate(talking(), run, policies.step_mask("CS"))
    twice = synccache.calibrate(talking(), both, policies.step_mask("CS"))

    assert twice.residuals is not None and once.residuals is not None
    assert twice.residuals.clips == 2
    assert twice.residuals.sigmas == (1.0, 0.8, 0.6, 0.4, 0.2)
    assert torch.allclose(
        torch.tensor(twice.residuals.products), torch.tensor(once.residuals.products)
    )
    assert twice.drift[0][1] == pytest.approx(once.drift[0][1])


def test_clips_of_different_schedules_are_refused() -> None:
    def two(model: torch.nn.Module) -> None:
        run(model)
        model(trajectory()[0][0], torch.tensor([900.0]), voices()[0])
        model(trajectory()[0][0], torch.tensor([1.0]), voices()[0])

    with pytest.raises(StateError, match="trajectory 2 has 2 steps from 900 to 1"):
        synccache.calibrate(talking(), two, policies.step_mask("CS"))


def test_a_calibration_with_its_inner_products_survives_its_file(tmp_path: Path) -> None:
    measured = synccache.calibrate(
        talking(), run, policies.step_mask("CS"), sigmas=(1.0, 0.8, 0.6, 0.4, 0.0)
    )
    measured.save(tmp_path / "measured.json")

    assert synccache.Calibration.load(tmp_path / "measured.json") == measured


def test_in_the_space_of_latents_the_output_less_the_latents_is_measured() -> None:
    policy = policies.step_mask("CS", skip=policies.dsl.network)
    measured = synccache.calibrate(talking(), run, policy, stride=1)
    found = torch.stack([(talking()(x, t, voices()[0]) - x).flatten() for x, t in trajectory()])
    expected = found @ found.T / (found @ found.T).diagonal().mean()

    assert measured.residuals is not None
    assert torch.allclose(torch.tensor(measured.residuals.products), expected, rtol=0, atol=1e-5)
