"""Drift measured while the first trajectory warms up: what it changes, and what it must not."""

import pytest
import torch
from small_models import TOKENS, denoise, normal, talking, voices
from torch import nn

import synccache
from synccache.fx.cached_model import CachedModel
from synccache.fx.warm_up import MEMORY_SHARE, WarmUpMeter
from synccache.planner import DriftSource
from synccache.policies.dsl import (
    AUDIO,
    Hold,
    Linear,
    Policy,
    Rule,
    blocks,
    branches,
    progress,
    segments,
    step,
)

SKIP = segments(branches.after(blocks[0]) - branches.reading(AUDIO))


def late(start: int, reuse: object = Hold()) -> Policy:
    """Skips from a step on: everything before is warm-up."""
    return Policy("late", (Rule(SKIP, step >= start, reuse),))


def decisions(compiled: CachedModel) -> list[str]:
    return list(compiled.stats().decisions.values())


def test_the_first_trajectory_plans_again_with_what_its_warm_up_showed() -> None:
    compiled = synccache.compile(talking(), late(4), cache_ratio=0.5)
    seen = []

    def model(*inputs: torch.Tensor) -> torch.Tensor:
        out = compiled(*inputs)
        seen.append(compiled.plan.drift_source)
        return out

    denoise(model, steps=8)  # type: ignore[arg-type]

    assert seen[:6] == [DriftSource.ASSUMED] * 6  # two calls each of steps 0, 1, 2
    assert set(seen[6:]) == {DriftSource.WARM_UP}  # step 3 computes the regions of the new plan
    assert "measured on warm-up steps" in str(compiled.plan)


def test_no_step_is_lost_by_measuring() -> None:
    compiled = synccache.compile(talking(), late(4), cache_ratio=0.5)
    denoise(compiled, steps=8)

    assert decisions(compiled) == ["CCCCSSSS", "CCCCSSSS"]
    assert compiled.stats().forced == 0


def test_while_it_measures_the_output_is_the_model_s_own() -> None:
    compiled = synccache.compile(talking(), late(6), cache_ratio=0.5)

    assert torch.equal(denoise(talking(), steps=6), denoise(compiled, steps=6))


def test_the_measured_drift_is_the_sum_over_warm_up_steps_of_what_calibrate_measures() -> None:
    """Where every number is looked at instead of a sample, the two agree to rounding."""
    latents = [normal(30 + i, 1, TOKENS, 4) for i in range(5)]

    def run(model: nn.Module) -> None:
        for i, latent in enumerate(latents):
            model(latent, torch.tensor([1000.0 - 100 * i]), voices()[0])

    expected = synccache.calibrate(talking(), run, late(4), stride=1).drift
    compiled = synccache.compile(talking(), late(6), cache_ratio=0.5)
    compiled(latents[0], torch.tensor([1000.0]), voices()[0])
    meter: WarmUpMeter = Everything(3, Hold())
    compiled._trajectories[None].warm_up = meter
    compiled.reset()
    run_watched(compiled, latents, meter)

    found = meter.measured((), ()).hold
    for first in range(3):
        for end in range(first + 1, 4):
            assert found[first][end] == pytest.approx(expected[first][end], rel=1e-4)


class Everything(WarmUpMeter):
    stride = 1  # type: ignore[assignment]


def run_watched(compiled: CachedModel, latents: list[torch.Tensor], meter: WarmUpMeter) -> None:
    for i, latent in enumerate(latents):
        if i == 0:
            compiled.begin()
            compiled._trajectories[None].warm_up = meter
        compiled(latent, torch.tensor([1000.0 - 100 * i]), voices()[0])


def test_samples_take_less_than_two_percent_of_a_hidden_state_for_each_border() -> None:
    hidden = torch.randn(2, 300, 64, dtype=torch.bfloat16)
    for predictor in (Hold(), Linear()):
        meter = WarmUpMeter(3, predictor)
        most = 0
        for _ in range(5):
            for region in range(3):
                for side in ("start", "end"):
                    meter.see(side, region, hidden)
                    most = max(most, meter.bytes_held())
            meter.finish_call(0)

        borders = 4
        assert 0 < most <= MEMORY_SHARE * hidden.numel() * hidden.itemsize * borders


def test_a_predictor_of_higher_order_is_measured_beside_reuse() -> None:
    meter = WarmUpMeter(1, Linear())
    ramp = torch.arange(1.0, 2001.0)
    for at in range(4):
        meter.see("start", 0, torch.zeros(1, 20, 100))
        meter.see("end", 0, (ramp * (1 + at)).view(1, 20, 100))
        meter.finish_call(0)
    measured = meter.measured(("r",), (1, 20, 100))

    assert measured.steps == 2
    assert measured.own[0][1] == pytest.approx(0.0, abs=1e-6)  # a straight line is foreseen
    assert measured.hold[0][1] == pytest.approx(1 / 2 + 1 / 3)


def test_a_sample_of_a_view_is_the_sample_of_its_copy() -> None:
    wide = torch.randn(2, 50, 30)
    view = wide[:, :40].transpose(1, 2)
    samples = []
    for value in (view, view.contiguous()):
        meter = WarmUpMeter(1, Hold())
        meter.see("start", 0, value)
        samples.append(meter.now["start", 0][0])

    assert torch.equal(*samples)


def test_a_warm_up_too_short_to_measure_leaves_the_plan_as_assumed() -> None:
    compiled = synccache.compile(talking(), late(1), cache_ratio=0.5)
    denoise(compiled, steps=5)
    denoise(compiled, steps=5)

    assert compiled.plan.drift_source is DriftSource.ASSUMED
    assert decisions(compiled) == ["CSSSS", "CSSSS"]


def test_a_calibration_is_not_measured_over() -> None:
    measured = synccache.calibrate(talking(), lambda m: denoise(m, steps=8), late(4))
    compiled = synccache.compile(talking(), late(4), cache_ratio=0.5, calibration=measured)
    denoise(compiled, steps=8)

    assert compiled.plan.drift_source is DriftSource.CALIBRATION
    assert compiled.variant.warm_up is None


def test_nothing_is_measured_where_no_audio_branch_is_absorbed() -> None:
    compiled = synccache.compile(talking(), late(4))
    denoise(compiled, steps=8)

    assert compiled.variant.warm_up is None
    assert compiled.plan.drift_source is DriftSource.ASSUMED


def test_a_progress_condition_ends_its_warm_up_in_time() -> None:
    policy = Policy("late", (Rule(SKIP, progress >= 0.5),))
    compiled = synccache.compile(talking(), policy, cache_ratio=0.5)
    denoise(compiled, steps=10)

    assert decisions(compiled)[0] == "CCCCCSSSSS"
    assert compiled.plan.drift_source is DriftSource.WARM_UP


def test_what_the_measuring_graph_kept_is_let_go() -> None:
    compiled = synccache.compile(talking(), late(4), cache_ratio=0.5)
    denoise(compiled, steps=8)

    assert compiled.stats().bytes_held <= compiled.stats().planned_bytes
    assert compiled._trajectories[None].warm_up is None
