"""synccache: caching policies for diffusion transformers, compiled into the model.

compiled = synccache.compile(model, policy="asymmetric", mem_budget="24GB")
"""

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
from synccache.planner import Plan
from synccache.planner.calibration import Calibration
from synccache.policies.dsl import Policy, Rule

__all__ = [
    "CachedModel",
    "Calibration",
    "CaptureError",
    "MatchError",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "Rule",
    "StateError",
    "SynccacheError",
    "VerifyError",
    "calibrate",
    "compile",
    "policies",
]
