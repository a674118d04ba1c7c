"""What a policy can do in a run of so many steps, known before the run: its mask, or that it cannot.

>>> from synccache.policies.dsl import Policy, Rule, blocks, every, step
>>> rule = Rule(blocks[1:], (step >= 2) & ~every(step, 3))
>>> static_letters(rule, 9)
'CCSCSSCSS'
"""

from __future__ import annotations

from collections.abc import Iterable

from synccache.errors import StateError
from synccache.policies.conditions import And, Condition
from synccache.policies.counters import Counter
from synccache.policies.describe import describe
from synccache.policies.evaluate import Memory, Now, Number, lasting
from synccache.policies.rule import Policy, Rule
from synccache.policies.selectors import Nothing
from synccache.policies.signals import measured_signals, parts

_OF_THE_SAMPLER = ("timestep", "noise", "progress")  # counters that the sampler decides


def is_static(rule: Rule) -> bool:
    """Whether a rule measures nothing: it compiles to a mask, without probe or device sync."""
    return not measured_signals(rule.when)


def static_letters(rule: Rule, steps: int) -> str | None:
    """One letter a step, C or S, of a rule that measures nothing and does not ask the sampler.

    None where the letters depend on what is measured, or on the sampler's timesteps.
    """
    asks = {p.name for p in parts(rule.when) if isinstance(p, Counter)}
    if not is_static(rule) or asks.intersection(_OF_THE_SAMPLER):
        return None
    memory, letters, kept = Memory(), "", lasting(rule.when)
    for step in range(steps):
        streak = len(letters) - len(letters.rstrip("S"))
        now = Now(_counters(step, steps, streak, letters.count("S")), {}, memory)
        skip = step > 0 and now.holds(rule.when) is True  # on the first step nothing is held
        now.finish(kept, skipped=skip)
        letters += "S" if skip else "C"
    return letters


def check_prospects(policy: Policy, steps: int) -> None:
    """Nothing, if the policy may skip something in a run of so many steps.

    Raises:
        StateError: no rule can be true on any step, whatever is measured: fewer steps than its
            warm-up, a few-step sampler. Or a static rule's predictor asks for more computed steps
            than the run has before its last skipped one.
    """
    reasons = [_never(rule, steps) for rule in policy.rules]
    if policy.rules and all(reasons):
        listed = "; ".join(f"rule {i + 1}: {reason}" for i, reason in enumerate(reasons))
        raise StateError(
            f"the policy can skip no step of a run of {steps}. {listed[0].upper()}{listed[1:]}.",
            where=policy.name,
            hint="Lower its warm-up for so few steps, or use policy='exact'.",
        )
    for number, rule in enumerate(policy.rules, start=1):
        letters = static_letters(rule, steps)
        if letters is not None and "S" in letters:
            _check_history(rule, letters, f"{policy.name}, rule {number}")


def _never(rule: Rule, steps: int) -> str | None:
    """What keeps a rule from its first skip on every step; None where something may let it."""
    if isinstance(rule.skip, Nothing):
        return None
    sides = list(_sides(rule.when))
    memory, kept = Memory(), lasting(rule.when)
    could, false_on = False, dict.fromkeys(sides, 0)
    for step in range(1, steps):  # on step 0 nothing is held
        now = Now(_counters(step, steps, 0, 0), {}, memory)
        could = could or now.holds(rule.when) is not False
        for side in sides:
            false_on[side] += now.holds(side) is False
        now.finish(kept, skipped=False)
    if could:
        return None
    if steps < 2:
        return "nothing is held on the first step"
    always = [f"`{describe(s)}`" for s in sides if false_on[s] == steps - 1]
    some = [f"`{describe(s)}` on {n}" for s, n in false_on.items() if 0 < n < steps - 1]
    if always:
        return f"{' and '.join(always)} is false on all of steps 1 to {steps - 1}"
    return f"false are {', '.join(some)} of steps 1 to {steps - 1}"


def _sides(condition: Condition) -> Iterable[Condition]:
    if isinstance(condition, And):
        yield from _sides(condition.left)
        yield from _sides(condition.right)
    else:
        yield condition


def _check_history(rule: Rule, letters: str, where: str) -> None:
    computed = letters[: letters.rindex("S")].count("C")
    if computed < rule.reuse.anchors:
        raise StateError(
            f"{rule.reuse!r} needs {rule.reuse.anchors} computed steps for its order, but before the last "
            f"skipped step of this run there are {computed}: {letters}.",
            where=where, hint="Use a lower order, or compute more steps.",
        )  # fmt: skip


def _counters(step: int, steps: int, streak: int, total: int) -> dict[str, Number]:
    return {
        "step": step, "steps": steps, "steps_left": steps - 1 - step, "skips": streak,
        "skipped": total, "timestep": None, "noise": None, "progress": None,
    }  # fmt: skip
