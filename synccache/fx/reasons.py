"""Why a run skipped nothing, from what its gates compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from synccache.fx.match import RuleMatch
from synccache.fx.runtime import Trajectory
from synccache.fx.variant import Variant
from synccache.planner import Plan
from synccache.policies import dsl
from synccache.policies.describe import describe
from synccache.policies.prospects import static_letters

_RISING = (
    " So had the one before it, which a risen timestep ended. Where timesteps rise within a run, say the"
    " steps: compiled.begin(steps=..., branches=...), or cache_context(name, step_index=i)."
)


def why_nothing(
    matches: Sequence[RuleMatch], trajectory: Trajectory, decisions: Mapping[object, str]
) -> str:
    """What stood in the way on how many steps; empty where something was skipped or nothing meant."""
    if not matches or any("S" in letters for letters in decisions.values()):
        return ""
    steps = max((len(letters) for letters in decisions.values()), default=0)
    if steps <= 1:
        only = f"nothing was skipped: the trajectory has {steps} step; caching needs a second."
        return only + (_RISING if trajectory.short_before else "")
    reasons = [_reason(i, found.rule, trajectory) for i, found in enumerate(matches)]
    listed = "; ".join(f"rule {i + 1}: {reason}" for i, reason in enumerate(reasons))
    return f"nothing was skipped in {steps} steps. {listed[0].upper()}{listed[1:]}."


def _reason(rule: int, of: dsl.Rule, trajectory: Trajectory) -> str:
    parts: dict[dsl.Condition, tuple[int, float, float]] = {}
    for state in trajectory.branches.values():
        for part, (count, low, high) in state.gate(rule).blocked.items():
            before = parts.get(part, (0, float("inf"), float("-inf")))
            parts[part] = (max(before[0], count), min(before[1], low), max(before[2], high))
    if not parts:
        return "its condition held, but nothing was held to put in place yet"
    said = []
    for part, (count, low, high) in parts.items():
        seen = f" (it was {low:.3g} to {high:.3g})" if low <= high else ""
        said.append(f"`{describe(part)}` was not true on {count} of them{seen}")
    return ", ".join(said)


def mask_line(rule: dsl.Rule, steps: int | None) -> str:
    """How a rule that measures nothing will skip; empty for one that measures."""
    if dsl.measured_signals(rule.when):
        return ""
    if steps is None:
        return "a step mask, nothing is measured; its letters are known after begin(steps=...)"
    letters = static_letters(rule, steps)
    if letters is None:
        return "a step mask, nothing is measured; its letters depend on the sampler's timesteps"
    return f"a step mask, nothing is measured: {letters}"


def with_mask(plan: Plan, variant: Variant, steps: int | None) -> Plan:
    """The plan, with the steps that it skips where no rule measures and their number is known."""
    if steps is None or not variant.matches:
        return plan
    letters = [static_letters(found.rule, steps) for found in variant.matches]
    if None in letters:
        return plan
    rules = [f"rule {i + 1} {text}" for i, text in enumerate(letters)]
    return replace(plan, mask=", ".join(rules) if len(rules) > 1 else str(letters[0]))
