"""synccache: caching policies for diffusion transformers, compiled into the model.

compiled = synccache.compile(model, policy="asymmetric", mem_budget="24GB")

Names are imported when they are first asked for (PEP 562): planning and writing policies need no
torch, and ``import synccache.planner`` loads none.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synccache import policies as policies
    from synccache.calibrate import calibrate as calibrate
    from synccache.compiler import compile as compile
    from synccache.errors import (
        CaptureError,
        MatchError,
        PlanError,
        PolicyError,
        StateError,
        SynccacheError,
        VerifyError,
    )
    from synccache.fx.cached_model import CachedModel
    from synccache.fx.fake import without_weights
    from synccache.measure import MethodNumbers
    from synccache.measure import measure as measure
    from synccache.planner import Plan
    from synccache.planner.calibration import Calibration
    from synccache.planner.goals import RegionSchedule, plan_schedule
    from synccache.policies.dsl import Policy, Rule
    from synccache.preview import plan
    from synccache.schedules import choose_schedule as choose_schedule
    from synccache.thresholds import solve_threshold as solve_threshold

__all__ = [
    "CachedModel",
    "Calibration",
    "CaptureError",
    "MatchError",
    "MethodNumbers",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "RegionSchedule",
    "Rule",
    "StateError",
    "SynccacheError",
    "VerifyError",
    "calibrate",
    "choose_schedule",
    "compile",
    "measure",
    "plan",
    "plan_schedule",
    "policies",
    "solve_threshold",
    "without_weights",
]

_HOME = {
    "CachedModel": "synccache.fx.cached_model",
    "Calibration": "synccache.planner.calibration",
    "Plan": "synccache.planner",
    "Policy": "synccache.policies.dsl",
    "Rule": "synccache.policies.dsl",
    "RegionSchedule": "synccache.planner.goals",
    "calibrate": "synccache.calibrate",
    "MethodNumbers": "synccache.measure",
    "measure": "synccache.measure",
    "choose_schedule": "synccache.schedules",
    "solve_threshold": "synccache.thresholds",
    "compile": "synccache.compiler",
    "plan": "synccache.preview",
    "without_weights": "synccache.fx.fake",
    "plan_schedule": "synccache.planner.goals",
}
"""Where a public name is defined; errors are in synccache.errors, the rest are sub-modules."""


class _Door(ModuleType):
    """The package itself: importing the sub-module ``calibrate`` must not hide the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and value.__name__ == _HOME.get(name):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.endswith("Error"):
        value = getattr(import_module("synccache.errors"), name)
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        value = import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
