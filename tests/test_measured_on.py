"""Measured numbers know what they were measured on, and are refused anywhere else, saying what differs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import timesteps
from small_models import denoise, talking
from test_policies_whole_stack import numbers

import synccache
from synccache import MethodNumbers, policies
from synccache.errors import PlanError, PolicyError, StateError
from synccache.fx.curvature import curvature
from synccache.planner.samplers import Sampler
from synccache.policies import dsl, from_json, to_json
from synccache.policies.combine import only, switch
from synccache.policies.dsl import MeasuredOn, latent, progress, step

LATENTS = (10.0, 10.5, 11.5, 11.7, 13.0, 13.2, 15.0, 15.1)
STEPS = len(LATENTS)
METHODS = ("teacache", "magcache", "omnicache")


def loop(
    *, begin: dict[str, Any] | None = None, times: Sequence[float] = tuple(timesteps(STEPS)),
    tokens: int = 1, clips: int = 1,
) -> Callable[[Any], None]:  # fmt: skip
    def run(model: Any) -> None:
        for _ in range(clips):
            if begin is not None:
                model.begin(**begin)
            for time, value in zip(times, LATENTS * 3, strict=False):
                x = torch.full((1, tokens, 1), value, dtype=torch.float64)
                with torch.no_grad():
                    model(x, torch.tensor([time]), torch.zeros(1, 1, 1, dtype=torch.float64))

    return run


def measured(method: str, **said: Any) -> synccache.Policy:
    found = synccache.calibrate(numbers(), loop(**said), method)
    assert isinstance(found, MethodNumbers)
    return found.policy(**{"omnicache": {"count": 3}}.get(method, {}))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_where_it_was_measured(method: str) -> None:
    said = {"steps": STEPS, "sampler": Sampler.EULER}
    compiled = synccache.compile(numbers(), measured(method, begin=said))
    loop(begin=said, clips=2)(compiled)

    assert len(compiled.stats().decisions[0]) == STEPS


@pytest.mark.parametrize("method", METHODS)
def test_another_model_is_refused_at_once(method: str) -> None:
    says = r"measured on something else: model: 'Numbers' there, 'Talking' here; parameters: '"

    with pytest.raises(PlanError, match=says):
        synccache.compile(talking(), measured(method))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_another_shape_are_refused_at_once(method: str) -> None:
    other = numbers()
    other.register_buffer("more", torch.zeros(3))

    with pytest.raises(PlanError, match=r"something else: parameters: '\w+' there, '\w+' here"):
        synccache.compile(other, measured(method))


@pytest.mark.parametrize("method", METHODS)
def test_another_resolution_is_refused_when_it_is_seen(method: str) -> None:
    compiled = synccache.compile(numbers(), measured(method))
    compiled.begin(steps=STEPS)

    with pytest.raises(PlanError, match=r"resolution: \(1, 1, 1\) there, \(1, 4, 1\) here"):
        loop(tokens=4)(compiled)


@pytest.mark.parametrize("method", METHODS)
def test_another_sampler_is_refused_when_it_is_said(method: str) -> None:
    compiled = synccache.compile(
        numbers(), measured(method, begin={"steps": STEPS, "sampler": Sampler.EULER})
    )

    with pytest.raises(StateError, match=r"sampler: 'euler' there, 'dpm_solver_pp_2m' here"):
        compiled.begin(steps=STEPS, sampler=Sampler.DPM_SOLVER_PP_2M)
    compiled.begin(steps=STEPS)  # which sampler it is need not be said


@pytest.mark.parametrize("method", ["teacache", "omnicache"])
def test_another_number_of_steps_is_refused_when_it_is_said(method: str) -> None:
    compiled = synccache.compile(numbers(), measured(method))

    with pytest.raises(StateError, match=r"measured in other runs: steps: 8 there, 20 here"):
        compiled.begin(steps=20)


def test_more_steps_than_were_measured_are_refused_when_they_come() -> None:
    policy = measured("omnicache")
    policy = replace(policy, measured_on=(replace(policy.measured_on[0], timesteps=()),))
    compiled = synccache.compile(numbers(), policy)

    with pytest.raises(StateError, match=r"steps: 8 there, step 9 here"):
        loop(times=timesteps(9))(compiled)


@pytest.mark.parametrize("method", ["teacache", "omnicache"])
def test_other_timesteps_are_refused_at_the_step(method: str) -> None:
    compiled = synccache.compile(numbers(), measured(method))
    compiled.begin(steps=STEPS)
    times = timesteps(STEPS)
    times[2] -= 50.0

    with pytest.raises(StateError, match=r"timestep of step 3: 777.778 there, 727.778 here"):
        loop(times=times)(compiled)


def test_magcaches_ratios_are_stretched_over_other_numbers_of_steps() -> None:
    compiled = synccache.compile(numbers(), measured("magcache"))
    compiled.begin(steps=20)
    loop(times=timesteps(20))(compiled)

    assert len(compiled.stats().decisions[0]) == 20


def test_teacache_watches_what_it_was_measured_on() -> None:
    found = synccache.calibrate(numbers(), loop(), "teacache", probe=latent)

    assert found.policy(probe=latent).rules == (
        policies.teacache(polynomial=found.numbers, probe=latent).rules
    )
    with pytest.raises(PlanError, match=r"probe: Latent\(\) there, Modulated\(.* here"):
        found.policy()
    with pytest.raises(PlanError, match="polynomial= is what was measured"):
        found.policy(polynomial=(1.0,))


def test_omnicaches_curvature_is_that_of_the_latents() -> None:
    found = synccache.calibrate(numbers(), loop(clips=2), "omnicache")
    latents = [torch.full((1, 1, 1), value, dtype=torch.float64) for value in LATENTS]

    assert found.numbers == curvature(latents)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_survive_their_file(method: str, tmp_path: Path) -> None:
    found = synccache.calibrate(
        numbers(), loop(begin={"steps": STEPS, "sampler": Sampler.EULER}), method
    )
    assert isinstance(found, MethodNumbers)
    found.save(tmp_path / "numbers.json")

    assert MethodNumbers.load(tmp_path / "numbers.json") == found
    assert found.measured_on.sampler == "euler"
    assert found.measured_on.timesteps == tuple(map(pytest.approx, timesteps(STEPS)))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: eval(repr(p), vars(dsl)),
        lambda p: from_json(to_json(p)),
        lambda p: p.with_(threshold=0.3),
        lambda p: only(p, step >= 2),
        lambda p: switch(progress < 0.5, then=policies.first_block_cache(), otherwise=p),
    ],
)
def test_a_policy_made_of_a_measured_one_was_measured_there_too(build: Any) -> None:
    policy = measured("teacache")
    built = build(policy)

    assert built.measured_on == policy.measured_on
    with pytest.raises(PlanError, match="model: 'Numbers' there, 'Talking' here"):
        synccache.compile(talking(), built)


def test_clips_of_two_schedules_are_refused() -> None:
    def both(model: Any) -> None:
        loop()(model)
        loop(times=timesteps(6))(model)

    with pytest.raises(StateError, match=r"trajectory 2 was 6 steps from timestep 1000 to 285.714"):
        synccache.calibrate(numbers(), both, "magcache")


def test_a_loop_that_calls_nothing_is_refused() -> None:
    for policy in (*METHODS, "asymmetric"):
        with pytest.raises(StateError):
            synccache.calibrate(numbers(), lambda m: None, policy)


def test_what_is_for_segments_alone_is_refused_for_numbers_and_the_other_way_round() -> None:
    with pytest.raises(StateError, match="measures no segments: leave stride= out"):
        synccache.calibrate(numbers(), loop(), "magcache", stride=2)
    with pytest.raises(StateError, match='for "teacache" alone'):
        synccache.calibrate(numbers(), loop(), "magcache", probe=latent)
    with pytest.raises(StateError, match='for "teacache" alone'):
        synccache.calibrate(numbers(), loop(), policies.exact(), probe=latent)


# ---- drift of segments


def drift(**said: Any) -> tuple[synccache.Calibration, Any]:
    def run(model: Any) -> None:
        model.begin(**said)
        denoise(model)

    found = synccache.calibrate(talking(), run)
    return found, synccache.compile(talking(), cache_ratio=0.5, calibration=found)


def test_a_calibration_is_used_in_runs_like_its_own() -> None:
    found, compiled = drift(steps=6, sampler=Sampler.EULER)
    compiled.begin(steps=6, sampler=Sampler.EULER)
    denoise(compiled)

    assert (found.steps, found.sampler) == (6, "euler")
    assert compiled.plan.drift_source.value == "calibration"


def test_a_calibration_of_other_runs_is_refused() -> None:
    _, compiled = drift(steps=6, sampler=Sampler.EULER)

    with pytest.raises(StateError, match="the calibration was measured in other runs: steps: 6 "):
        compiled.begin(steps=12)
    with pytest.raises(StateError, match=r"sampler: 'euler' there, 'adams_bashforth_2' here"):
        compiled.begin(steps=6, sampler=Sampler.ADAMS_BASHFORTH_2)
    with pytest.raises(StateError, match=r"timestep of step 2: 833.333 there, 875 here"):
        denoise(compiled, steps=8)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": "Other"}, "model 'Other' there, 'Talking' here"),
        ({"parameters": "abc"}, r"parameters 'abc' there, '\w+' here"),
        ({"shape": (1, 99, 8)}, r"stream shape \(1, 99, 8\) there, \(1, 12, 16\) here"),
    ],
)
def test_a_calibration_of_something_else_is_refused(values: dict[str, Any], says: str) -> None:
    found, _ = drift(steps=6)
    compiled = synccache.compile(talking(), cache_ratio=0.5, calibration=replace(found, **values))

    with pytest.raises(PlanError, match=says):
        denoise(compiled)


# ---- words


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model": ""}, r"MeasuredOn\(model=...\) takes a text"),
        ({"sampler": None}, r"MeasuredOn\(sampler=...\) takes a text"),
        ({"steps": 0}, "takes a positive integer, got 0"),
        ({"steps": 3}, "2 timesteps of 3 steps"),
        ({"resolution": (1, "x")}, "must be an integer"),
    ],
)
def test_a_wrong_origin_is_refused(values: dict[str, Any], says: str) -> None:
    good = MeasuredOn("Net", "abc", (1, 2), 2, "euler", (9.0, 1.0))

    with pytest.raises(PolicyError, match=says):
        replace(good, **values)


def test_a_missing_number_of_steps_names_policy_and_rule() -> None:
    compiled = synccache.compile(numbers(), policies.magcache())

    with pytest.raises(StateError, match=r"magcache on Numbers, rule 1: .*number of steps, which"):
        loop()(compiled)


# ---- progress


@pytest.mark.parametrize("policy", ["magcache", "asymmetric"])
def test_progress_is_shown_in_a_terminal_only(
    policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(model: Any) -> None:
        model.begin(steps=6)
        denoise(model)

    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    synccache.calibrate(talking(), run, policy)
    quiet = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that there is a terminal
    synccache.calibrate(talking(), run, policy)

    assert quiet == ""
    assert "clip 1, step 6 of 6" in capsys.readouterr().out
