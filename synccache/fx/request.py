"""What the caller of ``compile`` asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from synccache.fx.warm_up import MeasuredDrift
from synccache.planner import Plan
from synccache.planner.calibration import Calibration
from synccache.planner.goals import RegionSchedule, StepsGoal
from synccache.planner.storage import Storage
from synccache.policies.dsl import Policy


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``compile``; None where the caller said nothing."""

    policy: Policy
    mem_budget: int | None = None
    cache_ratio: float | None = None
    conditions: Mapping[str, Sequence[str]] | None = None
    masks: Mapping[str, Tensor] | None = None
    verify: bool = True
    calibration: Calibration | None = None
    measure: bool = False  # emit taps at region boundaries, for calibrate()
    storages: tuple[Storage, ...] | None = None
    plan: Plan | None = None
    target_speedup: float | None = None
    max_drift: float | None = None
    schedule: RegionSchedule | None = None
    goal: StepsGoal | None = None  # what ``policy`` was planned for
    leaves: tuple[str, ...] = ()  # modules that must not be opened
    split: tuple[str, ...] = ()  # conditions whose part of merged branches is a branch of its own
    sharing: tuple[tuple[int, ...], ...] = ()  # of inputs between guidance branches, once seen
    drift: MeasuredDrift | None = None  # measured while a first trajectory warmed up
