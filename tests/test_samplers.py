"""The recursions known here are those of diffusers' own schedulers."""

import pytest
import torch

from synccache.errors import PlanError, StateError
from synccache.planner.samplers import Sampler, sampler_row

diffusers = pytest.importorskip("diffusers")
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def schedulers() -> list[object]:
    return [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.DPMSolverMultistepScheduler(**FLOW),
    ]


@pytest.mark.parametrize("scheduler", schedulers(), ids=lambda s: type(s).__name__)
def test_every_step_of_the_scheduler_is_the_row_of_its_sampler(scheduler: object) -> None:
    from synccache.integrations.diffusers.schedulers import sampler_of

    sampler = sampler_of(scheduler)
    scheduler.set_timesteps(9)
    levels = [float(s) for s in scheduler.sigmas]
    random = torch.Generator().manual_seed(0)
    states, outputs = [torch.randn(6, generator=random, dtype=torch.float64)], []
    for n, timestep in enumerate(scheduler.timesteps):
        outputs.append(torch.randn(6, generator=random, dtype=torch.float64))
        states.append(scheduler.step(outputs[-1], timestep, states[-1], return_dict=False)[0])
        row = sampler_row(sampler, levels, n)
        expected = sum(states[j] * w for j, w in row.state.items())
        expected = expected + sum(outputs[j] * w for j, w in row.output.items())

        assert torch.allclose(states[n + 1], expected, rtol=0, atol=2e-6)


def test_a_scheduler_without_a_known_recursion_is_refused_with_what_is_known() -> None:
    from synccache.integrations.diffusers.schedulers import sampler_of

    with pytest.raises(StateError, match="not derived for UniPCMultistepScheduler") as refused:
        sampler_of(diffusers.UniPCMultistepScheduler(**FLOW))
    assert "payback strength 0" in str(refused.value)


def test_a_configuration_that_changes_the_recursion_is_refused() -> None:
    from synccache.integrations.diffusers.schedulers import sampler_of

    with pytest.raises(StateError, match="prediction_type is 'epsilon', not 'flow_prediction'"):
        sampler_of(diffusers.DPMSolverMultistepScheduler())


def test_adams_bashforth_integrates_a_line_exactly() -> None:
    levels = (1.0, 0.7, 0.55, 0.1, 0.0)
    state = {0: 0.0}
    for n in range(4):
        row = sampler_row(Sampler.ADAMS_BASHFORTH_2, levels, n)
        outputs = {j: 2.0 * levels[j] for j in row.output}
        state[n + 1] = state[n] + sum(outputs[j] * w for j, w in row.output.items())
    first_step_error = (levels[1] - levels[0]) * 2.0 * levels[0] - (levels[1] ** 2 - levels[0] ** 2)

    assert state[4] == pytest.approx(0.0 - 1.0 + first_step_error)


def test_an_unknown_sampler_has_no_row() -> None:
    with pytest.raises(PlanError, match="no recursion is known"):
        sampler_row("heun", (1.0, 0.0), 0)  # type: ignore[arg-type]
