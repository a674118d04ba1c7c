"""What is refused before any work begins, each with the option's name and what would be right."""

from __future__ import annotations

import inspect
import math

from synccache import policies
from synccache.demo.comparison import Settings
from synccache.errors import PolicyError, SynccacheError
from synccache.planner.quantities import checked_ratio, parse_bytes
from synccache.policies.dsl import Policy

__all__ = ["chosen_policy", "require_settings"]

_LEAST_STEPS = 2  # one step has nothing to reuse


def require_settings(settings: Settings) -> None:
    """Raises:  SynccacheError for numbers that no run could use."""
    if settings.steps < _LEAST_STEPS:
        raise SynccacheError(
            f"--steps must be at least {_LEAST_STEPS}, not {settings.steps}",
            hint="A single step has no earlier one to reuse; 40 is usual.",
        )
    if not math.isfinite(settings.guidance) or settings.guidance < 0:
        raise SynccacheError(
            f"--guidance must be a number of at least 0, not {settings.guidance}",
            hint="3 is usual; 1 is without guidance.",
        )
    if settings.mem_budget is not None:
        parse_bytes(settings.mem_budget)
    if settings.cache_ratio is not None:
        checked_ratio(settings.cache_ratio)


def chosen_policy(settings: Settings) -> Policy:
    """The policy that was named, with the threshold if one was given.

    Raises:  PolicyError for an unknown name, or a threshold that the policy does not take.
    """
    policy = policies.by_name(settings.policy)
    if settings.threshold is None:
        return policy
    method = policies.LIBRARY[settings.policy]
    if "threshold" not in inspect.signature(method).parameters:
        raise PolicyError(
            f"--threshold was given, but the policy {settings.policy} has no threshold",
            hint="Leave it out.",
        )
    return method(threshold=settings.threshold)
