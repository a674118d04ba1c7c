"""Policies made of other policies: limited to some steps, or one early and another late.

only(policy, step >= 4)
switch(progress < 0.5, then=policies.teacache(), otherwise=policies.first_block_cache())
"""

from __future__ import annotations

from dataclasses import replace

from synccache.errors import PolicyError
from synccache.policies.checks import expect
from synccache.policies.conditions import Condition
from synccache.policies.rule import Policy, Rule


def only(policy: Policy, when: Condition) -> Policy:
    """The policy, skipping nothing on steps where ``when`` is not true."""
    expect(policy, Policy, "what only(...) limits")
    expect(when, Condition, "only(..., when)", "Compare a signal with a number.")
    return replace(policy, rules=tuple(replace(r, when=r.when & when) for r in policy.rules))


def switch(at: Condition, *, then: Policy, otherwise: Policy, name: str = "") -> Policy:
    """``then`` where ``at`` is true, ``otherwise`` where it is false.

    Rules that skip the same branches with the same predictor become one rule; others stay apart, and
    where they overlap they must have the same predictor. Both policies are measured on every step, so
    that each finds its references.
    """
    for policy in (then, otherwise):
        expect(policy, Policy, "what switch(...) joins")
    if then.leader is not otherwise.leader:
        raise PolicyError(
            f"{then.name} lets {then.leader!r} decide and {otherwise.name} {otherwise.leader!r}.",
            hint="Give one of them the other's with with_(leader=...).",
        )
    rules = [replace(rule, when=rule.when & at) for rule in then.rules]
    for rule in otherwise.rules:
        place = next((i for i, r in enumerate(then.rules) if _same_work(r, rule)), None)
        when = rule.when & ~at
        if place is None:
            rules.append(replace(rule, when=when))
        else:
            rules[place] = replace(rules[place], when=rules[place].when | when)
    measured_on = tuple(dict.fromkeys((*then.measured_on, *otherwise.measured_on)))
    return replace(
        then, name=name or f"{then.name} or {otherwise.name}", rules=tuple(rules),
        measured_on=measured_on,
    )  # fmt: skip


def _same_work(a: Rule, b: Rule) -> bool:
    return replace(a, when=b.when) == b
