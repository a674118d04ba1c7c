"""The policy language: what to watch, when to skip, what to reuse. Plain frozen data, no torch.

A policy is a tuple of rules. A rule skips the residual branches that its selector names on every
step on which its condition holds, and replaces them by what its predictor makes of earlier steps.

    moved = relative_l1(residual(blocks[0]), since=LAST_COMPUTED)
    Policy("mine", (Rule(skip=blocks[1:], when=(moved <= 0.05) & (step >= 2), reuse=Hold()),))

Four kinds of words:

- *selectors* (selectors.py) name branches: ``blocks[1:]``, ``branches.reading(AUDIO)``,
  ``branches.attention``, ``branches.after(blocks[0])``, joined with ``|``, ``&`` and ``-``.
  ``segments(...)`` hands the choice of how many separate residuals to hold to the planner,
  ``values(...)`` and ``modules(...)`` say what is held instead, ``network`` is the whole forward;
- *predictors* (predictors.py) say what a skipped step uses: ``Hold()``, ``Taylor(order=2)``;
- *signals* (signals.py) are numbers known once a step: ``relative_l1(probe, since=...)``,
  ``accumulated(...)``, and the counters ``step``, ``skips``, ``progress``, ``noise``;
- *conditions* (conditions.py) compare signals with numbers and are joined with ``&``, ``|``, ``~``.

Everything prints as the text that makes it: ``eval(repr(policy)) == policy`` with this module's names.
Every word is importable from here. docs/policies.md is the reference, examples first.

Source: the nine primitives of docs/policies.md, derived from the published caching methods.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields, replace
from math import inf  # prints as `inf`, so it is a word of the language
from typing import Any

from synccache.errors import PolicyError
from synccache.policies.checks import expect
from synccache.policies.conditions import And, Compare, Condition, Not, Or, Signal, Steps
from synccache.policies.predictors import (
    GRID_DCT,
    TOKEN_FFT,
    Fixed,
    Foca,
    Hermite,
    Hold,
    Linear,
    Newton,
    Predictor,
    Split,
    Taylor,
    Transform,
    TwoAnchor,
)
from synccache.policies.selectors import (
    ADD,
    ATTENTION,
    AUDIO,
    MASK,
    MLP,
    REFERENCE,
    TAGS,
    TEXT,
    TIMESTEP,
    After,
    AllBranches,
    Blocks,
    Both,
    Either,
    Kind,
    Modules,
    Network,
    OfKind,
    Reading,
    Segments,
    Selector,
    Skip,
    Values,
    Without,
    blocks,
    branches,
    modules,
    network,
    segments,
    selector_of,
    values,
)
from synccache.policies.signals import (
    COUNTERS,
    LAST_COMPUTED,
    PREVIOUS,
    Accumulated,
    Counter,
    MaskWeight,
    Output,
    Polynomial,
    Probe,
    RelativeL1,
    Residual,
    Since,
    accumulated,
    mask,
    measured_signals,
    noise,
    output,
    progress,
    relative_l1,
    residual,
    skips,
    step,
    steps_left,
)

__all__ = [
    "ADD",
    "ATTENTION",
    "AUDIO",
    "COUNTERS",
    "EACH_BRANCH",
    "FIRST_BRANCH",
    "GRID_DCT",
    "LAST_COMPUTED",
    "MASK",
    "MLP",
    "PREVIOUS",
    "REFERENCE",
    "SKIPS",
    "TAGS",
    "TEXT",
    "TIMESTEP",
    "TOKEN_FFT",
    "Accumulated",
    "After",
    "AllBranches",
    "And",
    "Blocks",
    "Both",
    "Compare",
    "Condition",
    "Counter",
    "Either",
    "Fixed",
    "Foca",
    "Hermite",
    "Hold",
    "Kind",
    "Leader",
    "Linear",
    "MaskWeight",
    "Modules",
    "Network",
    "Newton",
    "Not",
    "OfKind",
    "Or",
    "Output",
    "Policy",
    "Polynomial",
    "Predictor",
    "Probe",
    "Reading",
    "RelativeL1",
    "Residual",
    "Rule",
    "Segments",
    "Selector",
    "Signal",
    "Since",
    "Skip",
    "Split",
    "Steps",
    "Taylor",
    "Transform",
    "TwoAnchor",
    "Values",
    "Without",
    "accumulated",
    "blocks",
    "branches",
    "inf",
    "mask",
    "measured_signals",
    "modules",
    "network",
    "noise",
    "output",
    "progress",
    "relative_l1",
    "residual",
    "segments",
    "selector_of",
    "skips",
    "step",
    "steps_left",
    "values",
]


class Leader(enum.Enum):
    """Who decides for the guidance branches of one step."""

    FIRST_BRANCH = "first_branch"  # the first call of a step decides for all
    EACH_BRANCH = "each_branch"  # every call decides for itself

    def __repr__(self) -> str:
        return self.name


FIRST_BRANCH = Leader.FIRST_BRANCH
EACH_BRANCH = Leader.EACH_BRANCH


SKIPS = (Selector, Segments, Values, Modules, Network)


@dataclass(frozen=True, slots=True)
class Rule:
    """Skip these branches on the steps where ``when`` holds, and put ``reuse`` in their place."""

    skip: Skip
    when: Condition
    reuse: Predictor = field(default_factory=Hold)

    def __post_init__(self) -> None:
        select = "Select branches, e.g. blocks[1:]."
        expect(self.skip, SKIPS, "what Rule(skip=...) takes", select)
        expect(self.when, Condition, "what Rule(when=...) takes", "Compare a signal with a number.")
        expect(self.reuse, Predictor, "what Rule(reuse=...) takes", "E.g. Hold() or Linear().")


@dataclass(frozen=True, slots=True)
class Policy:
    """A caching method: rules, and who decides for the guidance branches. No rules = exact."""

    name: str
    rules: tuple[Rule, ...] = ()
    leader: Leader = Leader.EACH_BRANCH

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
        expect(self.leader, Leader, f"{self.name}: leader", "Use FIRST_BRANCH or EACH_BRANCH.")

    def with_(self, **changes: Any) -> Policy:
        """A copy with fields of the policy itself replaced."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise PolicyError(
                    f"a policy has no field {name!r}.",
                    where=self.name,
                    hint=f"It has {', '.join(known)}; thresholds belong to the method's own call.",
                )
        return replace(self, **changes)
