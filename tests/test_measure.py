"""Signals measured over a loop, and the numbers of published methods fitted on it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import timesteps
from small_models import denoise, talking
from test_policies_whole_stack import numbers, scripted

import synccache
from synccache import MethodNumbers, policies
from synccache.errors import PlanError, PolicyError, StateError
from synccache.fx.curvature import curvature
from synccache.policies.dsl import (
    PREVIOUS,
    Policy,
    Rule,
    accumulated,
    blocks,
    nothing,
    output,
    prediction,
    relative_l1,
    residual,
    size_ratio,
    skips,
    step,
)

MOVED = relative_l1(output(blocks[0]), since=PREVIOUS)


def loop(latents: list[float], clips: int = 1) -> Any:
    def run(model: Any) -> None:
        for _ in range(clips):
            for timestep, value in zip(timesteps(len(latents)), latents, strict=True):
                x = torch.full((1, 1, 1), value, dtype=torch.float64)
                with torch.no_grad():
                    model(x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64))

    return run


def test_signals_are_measured_on_every_step_of_every_clip() -> None:
    signals = {
        "moved": MOVED,
        "sum": accumulated(MOVED),
        "end": relative_l1(prediction, since=PREVIOUS),
        "grown": size_ratio(output(blocks[0]), since=PREVIOUS),
    }
    seen = synccache.measure(numbers(), loop([10.0, 11.0, 22.0], clips=2), signals)

    assert set(seen) == set(signals)
    assert len(seen["moved"][0]) == 2
    for row in seen["moved"][0] + seen["end"][0] + seen["sum"][0]:
        assert row == (None, pytest.approx(0.1), pytest.approx(1.0))
    assert seen["grown"][0][1] == (None, pytest.approx(1.1), pytest.approx(2.0))


def test_guidance_branches_are_told_apart_and_nothing_is_skipped() -> None:
    model = talking()
    expected = denoise(model)
    found = []
    seen = synccache.measure(model, lambda m: found.append(denoise(m)), {"moved": MOVED})

    assert torch.equal(expected, found[0])
    assert [len(rows[0]) for rows in seen["moved"].values()] == [6, 6]
    assert seen["moved"][0] != seen["moved"][1]


def test_a_rule_that_skips_nothing_never_does() -> None:
    policy = Policy("watch", (Rule(nothing, (step >= 1) & (skips < 3)),))
    compiled = synccache.compile(numbers(), policy)
    compiled.begin(steps=4)
    loop([1.0, 2.0, 3.0, 4.0])(compiled)

    assert compiled.stats().decisions == {0: "CCCC"}


def test_what_is_measured_must_be_signals() -> None:
    with pytest.raises(PolicyError, match=r"takes signals, but 'moved' is Output"):
        synccache.measure(numbers(), loop([1.0, 2.0]), {"moved": output(blocks[0])})
    with pytest.raises(PolicyError, match="at least one signal"):
        synccache.measure(numbers(), loop([1.0, 2.0]), {})


def test_magcaches_ratios_are_those_of_consecutive_residuals() -> None:
    residuals = [10.0, 9.8, 9.506, 9.0307]
    model = scripted([0.0] * 4, residuals, [0.0] * 4, [0.0] * 4)
    found = synccache.calibrate(model, loop([0.0] * 4, clips=2), "magcache")

    assert found.numbers == pytest.approx((1.0, 0.98, 0.97, 0.95))
    assert found.measured_on.steps == 4


def test_teacaches_polynomial_is_fitted_to_the_loops_own_changes() -> None:
    latents = [10.0, 10.5, 11.5, 11.7, 13.0, 13.2, 15.0, 15.1]
    model = numbers()  # linear: the output changes as its input does
    found = synccache.calibrate(model, loop(latents), "teacache")

    changes = np.linspace(0.01, 0.15, 5)
    assert np.polyval(found.numbers, changes) == pytest.approx(changes, abs=1e-6)
    policy = found.policy(threshold=0.2)
    assert policy.rules == policies.teacache(0.2, polynomial=found.numbers).rules


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "holds no numbers"),
        ('{"schema_version": 2}', "holds no numbers"),
        ("[]", "holds no numbers"),
        ('{"schema_version": 1}', "has schema_version 1; this reads 2"),
    ],
)
def test_a_wrong_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(PlanError, match=says):
        MethodNumbers.load(tmp_path / "x.json")


def test_too_short_a_loop_is_refused() -> None:
    with pytest.raises(StateError, match="fewer than two steps"):
        synccache.calibrate(numbers(), loop([1.0]), "magcache")
    with pytest.raises(
        StateError, match="2 changes were measured; a polynomial of degree 4 needs 5"
    ):
        synccache.calibrate(numbers(), loop([1.0, 2.0, 3.0]), "teacache")


def test_a_trajectory_that_goes_straight_on_has_no_curvature() -> None:
    straight = [torch.tensor([[x, 2 * x]]) for x in (0.0, 1.0, 2.0, 2.9, 3.0)]
    turned = [torch.tensor([[x]]) for x in (0.0, 1.0, 2.0, 1.5, 2.5)]

    assert curvature(straight) == pytest.approx((math.inf, 0, 0, 0, math.inf), abs=1e-6)
    assert curvature(turned) == pytest.approx((math.inf, 0, 2, 2, math.inf))
    assert policies.omnicache(curvature(turned), 1).rules[0].when.letters == "CSCCC"
    with pytest.raises(StateError, match="3 latents or more of one shape, got 2 of 1"):
        curvature(straight[:2])


def test_the_residual_of_all_branches_is_a_probe_where_nothing_is_skipped() -> None:
    grown = size_ratio(residual(blocks[:]), since=PREVIOUS)
    seen = synccache.measure(numbers(), loop([1.0, 3.0]), {"grown": grown})

    assert seen["grown"][0] == ((None, pytest.approx(3.0)),)
