"""From a diffusers scheduler to what ``compiled.begin`` wants to know of a trajectory.

pipe.scheduler.set_timesteps(40)
begin(pipe.transformer, pipe.scheduler)
"""

from __future__ import annotations

from typing import Any

from synccache.errors import StateError
from synccache.fx.cached_model import CachedModel
from synccache.planner.samplers import Sampler

# what a multistep scheduler's configuration must say for its recursion to be the one known here
_DPM_SOLVER: dict[str, object] = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "final_sigmas_type": "zero",
    "thresholding": False,
}
_EULER: dict[str, object] = {"stochastic_sampling": False, "invert_sigmas": False}
_KNOWN: dict[str, tuple[Sampler, dict[str, object]]] = {
    "FlowMatchEulerDiscreteScheduler": (Sampler.EULER, _EULER),
    "DPMSolverMultistepScheduler": (Sampler.DPM_SOLVER_PP_2M, _DPM_SOLVER),
}


def sampler_of(scheduler: Any) -> Sampler:
    """The sampler whose recursion this scheduler follows.

    Raises:  StateError naming the class, or what its configuration says otherwise.
    """
    name = type(scheduler).__name__
    if name not in _KNOWN:
        raise StateError(
            f"payback is not derived for {name}.",
            hint=f"Use {' or '.join(_KNOWN)}, or plan with payback strength 0.",
        )
    sampler, needed = _KNOWN[name]
    said = {key: scheduler.config.get(key, value) for key, value in needed.items()}
    wrong = [f"{key} is {said[key]!r}, not {value!r}" for key, value in needed.items()
             if said[key] != value]  # fmt: skip
    if wrong:
        raise StateError(
            f"payback is not derived for this {name}: {'; '.join(wrong)}.",
            hint="Change its configuration, or plan with payback strength 0.",
        )
    return sampler


def begin(compiled: CachedModel, scheduler: Any) -> None:
    """Begins a trajectory of the scheduler's steps; call it after ``scheduler.set_timesteps``."""
    levels = [float(s) for s in scheduler.sigmas]
    compiled.begin(sigmas=levels, sampler=sampler_of(scheduler))
