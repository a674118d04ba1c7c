"""``solve_threshold``: the threshold of a gated policy that meets a goal, and what its neighbours give.

    found = synccache.solve_threshold(model, lambda m: sample(m, ...), target_speedup=2.0)
    print(found)                                       # every threshold tried, with what it gave
    compiled = synccache.compile(model, found.policy)

Unlike a schedule, a gate decides from what it sees, so what a threshold gives is found by running: the
caller's loop runs once uncached and then once for each threshold tried, on one recording.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synccache.compiler import build_variant, checked_request
from synccache.errors import PlanError, PolicyError
from synccache.fx.cached_model import CachedModel
from synccache.fx.swap import with_policy
from synccache.planner.plan_text import aligned
from synccache.planner.quantities import checked_amount
from synccache.policies import exact
from synccache.policies.dsl import Compare, Counter, Policy

_FACTORS = (2.0**-6, 2.0**6)  # of the policy's own thresholds: the range that is searched


@dataclass(frozen=True, slots=True)
class Tried:
    """One run. ``factor``: of the policy's own thresholds; ``limits``: the thresholds themselves;
    ``speedup``: of the seconds of what was executed; ``error``: |x - x_uncached| / |x_uncached|, sums
    of absolute values of what the loop returned, None where that is no tensor."""

    factor: float
    limits: tuple[float, ...]
    speedup: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Solution:
    """The policy at the threshold found, and every threshold tried, lowest first."""

    policy: Policy
    chosen: Tried
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        rows = [
            (
                "->" if row == self.chosen else "",
                ", ".join(f"{limit:.4g}" for limit in row.limits),
                f"{row.speedup:.3f}",
                "-" if row.error is None else f"{row.error:.3%}",
            )
            for row in self.tried
        ]
        header = ("", "threshold", "speed-up", "error")
        return "\n".join([self.policy.name, *aligned(header, rows, left=(0,))])


def solve_threshold(
    model: nn.Module,
    run: Callable[[CachedModel], Any],
    policy: str | Path | Policy = "asymmetric",
    *,
    target_speedup: float | None = None,
    max_error: float | None = None,
    runs: int = 10,
    mem_budget: str | int | None = None,
    cache_ratio: float | None = None,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Solution:
    """The policy with its thresholds scaled so that it just meets the goal.

    All limits that a measured quantity is compared with are scaled by one factor, found by halving its
    logarithm between 1/64 and 64.

    Args:
        run: the caller's sampling loop; it is called with a model to use in place of ``model``.
        target_speedup: the lowest threshold that reaches it, in seconds of what was executed.
        max_error: the highest threshold that stays within it; ``run`` must return a tensor.
        runs: how many thresholds are tried.
        mem_budget, cache_ratio, conditions, masks: as for ``compile``.

    Raises:
        PolicyError: the policy compares no measured quantity with a number.
        PlanError: no threshold meets the goal, with the best that one gave.
    """
    if (target_speedup is None) == (max_error is None):
        raise PlanError("one of target_speedup and max_error says what is wanted.")
    for name, value in (("target_speedup", target_speedup), ("max_error", max_error)):
        if value is not None:
            checked_amount(value, name)
    request = checked_request(
        policy, mem_budget=mem_budget, cache_ratio=cache_ratio, conditions=conditions, masks=masks
    )
    if not _limits(request.policy):
        raise PolicyError(
            f"{request.policy.name} compares no measured quantity with a number, so it has no threshold.",
            hint="Plan it instead: synccache.plan_schedule(calibration, target_speedup=...).",
        )
    base = CachedModel(model, replace(request, policy=exact()), build_variant)
    plain = run(base)
    gated = CachedModel(model, request, build_variant)
    tried: dict[float, Tried] = {}

    def attempt(factor: float) -> bool:
        """Runs with this factor; whether a higher one has to be tried."""
        found = _run(gated, run, plain, request.policy, factor)
        tried[factor] = found
        if target_speedup is not None:
            return found.speedup < target_speedup
        if found.error is None:
            raise PlanError("max_error= needs a loop that returns a tensor, such as the latents.")
        return found.error <= max_error  # type: ignore[operator]

    low, high = map(math.log2, _FACTORS)
    wants_higher = {factor: attempt(factor) for factor in (1.0,)}
    low, high = (0.0, high) if wants_higher[1.0] else (low, 0.0)
    for _ in range(max(1, runs) - 1):
        middle = (low + high) / 2
        low, high = (middle, high) if attempt(2.0**middle) else (low, middle)
    return _chosen(request.policy, tried, target_speedup, max_error)


def _run(
    gated: CachedModel, run: Callable[[CachedModel], Any], plain: Any, policy: Policy, factor: float
) -> Tried:
    scaled = _scaled(policy, factor)
    known = bool(gated._variants.by_key)
    model = with_policy(gated, scaled) if known else gated
    if not known and scaled != policy:
        raise AssertionError("the policy's own thresholds are tried first")
    out = run(model)
    error = None
    if isinstance(out, Tensor) and isinstance(plain, Tensor) and out.shape == plain.shape:
        error = float((out.float() - plain.float()).abs().sum() / plain.float().abs().sum())
    return Tried(factor, _limits(scaled), 1.0 / model.stats().seconds_fraction, error)


def _chosen(
    policy: Policy, tried: dict[float, Tried], target_speedup: float | None, max_error: float | None
) -> Solution:
    rows = sorted(tried.values(), key=lambda row: row.factor)
    if target_speedup is not None:
        meeting = [row for row in rows if row.speedup >= target_speedup]
        best = max(rows, key=lambda row: row.speedup)
        wanted, gave = f"a speed-up of {target_speedup:g}", f"{best.speedup:.3f}"
    else:
        meeting = [row for row in rows[::-1] if row.error is not None and row.error <= max_error]  # type: ignore[operator]
        best = min(rows, key=lambda row: row.error or 0.0)
        wanted, gave = f"an error of {max_error:g}", f"{best.error:.4f}"
    if not meeting:
        raise PlanError(
            f"of {len(rows)} thresholds from {rows[0].limits} to {rows[-1].limits} none gave {wanted}; "
            f"the best gave {gave}, at {best.limits}.", where=policy.name,
            hint="Relax the policy's other conditions (warm-up, longest gap), or the goal.",
        )  # fmt: skip
    chosen = meeting[0]
    return Solution(_scaled(policy, chosen.factor), chosen, tuple(rows))


def _is_threshold(part: object) -> bool:
    return (
        isinstance(part, Compare)
        and isinstance(part.limit, float | int)
        and not isinstance(part.left, Counter)
        and 0 < part.limit < math.inf
    )


def _limits(part: object) -> tuple[float, ...]:
    """The thresholds in a policy, in reading order."""
    if isinstance(part, Compare) and _is_threshold(part):
        assert isinstance(part.limit, float | int)
        return (float(part.limit),)
    if isinstance(part, tuple):
        return tuple(limit for entry in part for limit in _limits(entry))
    if is_dataclass(part):
        return tuple(limit for f in fields(part) for limit in _limits(getattr(part, f.name)))
    return ()


def _scaled(part: Any, factor: float) -> Any:
    """The same policy with every threshold multiplied."""
    if factor == 1.0:
        return part
    if isinstance(part, Compare) and _is_threshold(part):
        return replace(part, limit=part.limit * factor)
    if isinstance(part, tuple):
        return tuple(_scaled(entry, factor) for entry in part)
    if is_dataclass(part) and not isinstance(part, type) and _limits(part):
        changes = {
            f.name: getattr(part, f.name) for f in fields(part) if _limits(getattr(part, f.name))
        }
        return replace(part, **{name: _scaled(value, factor) for name, value in changes.items()})
    return part
