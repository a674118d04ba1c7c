"""Rules and policies: what to skip, when, and what to put in its place."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields, replace
from typing import Any

from synccache.errors import PolicyError
from synccache.policies.checks import expect
from synccache.policies.conditions import Condition, Signal
from synccache.policies.fitted import Payback, check_payback
from synccache.policies.measured_on import MeasuredOn
from synccache.policies.predictors import Hold, Predictor, TwoAnchor
from synccache.policies.probes import Output, Residual
from synccache.policies.selectors import (
    Modules,
    Network,
    Nothing,
    Segments,
    Selector,
    Skip,
    Values,
    Whole,
)
from synccache.policies.siblings import FromSibling
from synccache.policies.signals import check_late, measured_signals
from synccache.policies.thresholds import thresholds, with_threshold
from synccache.policies.tokens import Tokens


class Leader(enum.Enum):
    """Who decides for the guidance branches of one step."""

    FIRST_BRANCH = "first_branch"  # the first call of a step decides for all
    EACH_BRANCH = "each_branch"  # every call decides for itself

    def __repr__(self) -> str:
        return self.name


FIRST_BRANCH = Leader.FIRST_BRANCH
EACH_BRANCH = Leader.EACH_BRANCH


SKIPS = (Selector, Segments, Values, Modules, Network, Whole, Nothing)


@dataclass(frozen=True, slots=True)
class Rule:
    """Skip these branches on the steps where ``when`` holds, and put ``reuse`` in their place."""

    skip: Skip
    when: Condition
    reuse: Predictor = field(default_factory=Hold)
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            expect(self.tokens, Tokens, "what Rule(tokens=...) takes", "E.g. one_per_cluster().")
            hint = "Skip modules(...): they hold what each branch makes of each token."
            expect(self.skip, Modules, "what a rule with tokens= skips", hint)
        if isinstance(self.reuse, FromSibling) and self.skip != Values(Network()):
            raise PolicyError(
                f"FromSibling predicts the model's output, but the rule skips {self.skip!r}.",
                hint="Skip values(network).",
            )
        select = "Select branches, e.g. blocks[1:]."
        expect(self.skip, SKIPS, "what Rule(skip=...) takes", select)
        expect(self.when, Condition, "what Rule(when=...) takes", "Compare a signal with a number.")
        expect(self.reuse, Predictor, "what Rule(reuse=...) takes", "E.g. Hold() or Linear().")
        check_late(self.when)
        watched = [m for m in measured_signals(self.when) if hasattr(m, "probe")]
        if isinstance(self.reuse, TwoAnchor) and not any(
            isinstance(m.probe, (Output, Residual)) for m in watched
        ):
            raise PolicyError(
                "TwoAnchor measures how far it is on the rule's probe, but the condition has no "
                "output(...) or residual(...) in it.",
                hint="Watch one in when=, or use Linear().",
            )


@dataclass(frozen=True, slots=True)
class Policy:
    """A caching method: rules, and who decides for the guidance branches. No rules = exact.

    ``payback`` returns errors of skipped steps in the next computed output; it needs one rule whose
    condition is ``Steps(...)``, and ``compiled.begin(sigmas=...)``. ``measured_on``: what its numbers were
    measured on; elsewhere it is refused.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    leader: Leader = Leader.EACH_BRANCH
    payback: Payback | None = None
    measured_on: tuple[MeasuredOn, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PolicyError(f"a policy's name must be a text, got {self.name!r}.")
        if not isinstance(self.rules, tuple):
            raise PolicyError(
                f"rules must be a tuple, got {self.rules!r}.",
                where=self.name,
                hint="One rule is written (Rule(...),) with a comma.",
            )
        for number, rule in enumerate(self.rules, start=1):
            if not isinstance(rule, Rule):
                raise PolicyError(f"rule {number} must be a Rule, got {rule!r}.", where=self.name)
        expect(self.measured_on, tuple, f"{self.name}: measured_on", "E.g. (MeasuredOn(...),).")
        for found in self.measured_on:
            expect(found, MeasuredOn, f"{self.name}: measured_on")
        expect(self.leader, Leader, f"{self.name}: leader", "Use FIRST_BRANCH or EACH_BRANCH.")
        if self.leader is Leader.FIRST_BRANCH and any(
            isinstance(rule.reuse, FromSibling) for rule in self.rules
        ):
            raise PolicyError(
                "FromSibling never skips the first guidance branch of a step, so it cannot follow it.",
                where=self.name, hint="Leave leader= out.",
            )  # fmt: skip
        if self.payback is not None:
            check_payback(self.payback, self.rules, self.name)

    def with_(self, *, threshold: float | Signal | None = None, **changes: Any) -> Policy:
        """A copy with another threshold, or with fields of the policy itself replaced.

        ``threshold`` replaces what the policy's one measured signal is compared with; a number or a
        signal such as ``choose(...)``. The comparison may stand in several rules.
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise PolicyError(
                    f"a policy has no field {name!r}.",
                    where=self.name,
                    hint=f"It has {', '.join(known)}, and takes threshold=; other numbers belong to "
                    "the method's own call.",
                )
        policy = replace(self, **changes)
        return policy if threshold is None else _with_threshold(policy, threshold)


def _with_threshold(policy: Policy, threshold: float | Signal) -> Policy:
    found = list(dict.fromkeys(c for rule in policy.rules for c in thresholds(rule.when)))
    if len(found) != 1:
        listed = "; ".join(f"{c.operator} {c.limit}" for c in found) or "none"
        raise PolicyError(
            f"with_(threshold=...) needs one threshold, this policy has {len(found)} ({listed}).",
            where=policy.name,
            hint="Pass the number to the method's own call, or write the rule anew.",
        )
    rules = (replace(r, when=with_threshold(r.when, found[0], threshold)) for r in policy.rules)
    return replace(policy, rules=tuple(rules))
