"""What must hold for every method where it is what it replaces: true residuals, constants, thresholds.

Source: the invariants of the caching-policy reference, section 6.3, numbers 1 to 4, where
test_invariants.py leaves a method out or changes too little to see it.
"""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from library_cases import CASES, LONGER, PLAN, STEPS
from loops import difference, timesteps
from test_invariants import ALWAYS, NEVER, ROUNDING, decided, still
from test_policies_whole_stack import SIGNALS, numbers, ran
from test_worked_examples import Numbers
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.errors import StateError
from synccache.policies.dsl import (
    PREVIOUS,
    Policy,
    Rule,
    Steps,
    TwoAnchor,
    blocks,
    branches,
    inf,
    output,
    relative_l1,
    step,
    whole,
)
from synccache.policies.prospects import static_letters
from synccache.policies.selectors import Modules, Values

# ---- 1: thresholds


def test_every_method_with_a_threshold_is_tried_without_one_and_with_none_at_all() -> None:
    limited = {
        name
        for name, method in policies.LIBRARY.items()
        if "threshold" in inspect.signature(method).parameters
    }

    assert limited == {*ALWAYS}
    # SpeCa drafts behind every computed step, and MagCache as released is not strict: see below
    assert limited - {*NEVER} == {"magcache", "speca"}


def test_a_strict_threshold_of_zero_never_skips_by_a_table_and_is_refused() -> None:
    policy = policies.magcache(0.0, operator="<")

    assert static_letters(policy.rules[0], 8) == "CCCCCCCC"
    with pytest.raises(StateError, match="can skip no step of a run of 8"):
        decided(policy)


def test_specas_lowest_threshold_leaves_the_drafts_before_the_first_error_is_known() -> None:
    assert decided(policies.speca(0.0, floor=0.0, shortest=1, longest=9)) == {"CSSCSSCS"}


STRICT = {
    "dicache": policies.dicache(0.0, retention=0.0, operator="<"),
    "teacache": policies.teacache(0.0, polynomial=(1.0, 0.0)),
}
NOT_STRICT = {
    "asymmetric": policies.asymmetric(0.0),
    "dicache": policies.dicache(0.0, retention=0.0),
    "magcache": policies.magcache(0.0, ratios=(1.0,), retention=0.0),
}


@pytest.mark.parametrize(
    ("policy", "letters"),
    [
        *((p, "CCCCCC") for p in STRICT.values()),
        *((p, "CSSSSS") for p in NOT_STRICT.values()),
    ],
    ids=[*(f"{name} <" for name in STRICT), *(f"{name} <=" for name in NOT_STRICT)],
)
def test_a_signal_of_zero_is_below_zero_only_where_the_threshold_counts(
    policy: Policy, letters: str
) -> None:
    compiled, _ = ran(policy, [2.0] * 6, numbers())

    assert compiled.stats().decisions[0] == letters


# ---- 2: constant features where timesteps move, clusters without spread, clipped extrapolation


def test_a_plans_weights_reproduce_features_that_do_not_change() -> None:
    compiled, found = ran(policies.planned(PLAN), [3.0] * STEPS, Numbers(*[(0.5, 1.0)] * 3))
    expected = float(found[0])

    assert compiled.stats().decisions[0] == PLAN.letters
    assert found == pytest.approx([expected] * STEPS, rel=1e-6)


def test_renewed_tokens_that_are_not_spread_change_no_constant_feature() -> None:
    case = build(Spec(seed=3, width=12, blocks=4, audio=Audio.OWN, tokens_per_frame=4))
    model = synccache.compile(case.model, policies.clusca(3, clusters=3, spread=0.0, first=2))
    model.begin(steps=STEPS)
    expected, found = still(case.model, STEPS), still(model, STEPS)

    assert "S" in model.stats().decisions[0]
    assert difference(expected, found) <= ROUNDING


def test_two_anchors_are_not_exact_where_the_line_leaves_their_clip() -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    when = Steps("CCSS") & (moved < inf) & (step >= 1)
    policy = Policy("two", (Rule(whole(branches), when, TwoAnchor(high=2.0)),))
    model = Numbers((0.5, 1.0), (-0.25, 2.0), (0.75, -1.0))
    latents = [3.0, 3.25, 3.5, 3.75]
    _, found = ran(policy, latents, model)
    _, expected = ran(policies.exact(), latents, model)

    assert found[:3] == pytest.approx(expected[:3], rel=1e-6)  # twice the gap: at the clip
    assert abs(found[3] - expected[3]) > 0.1  # three times the gap: behind it


# ---- 3: the true residual


class Steady(nn.Module):
    """Branches that add the same on every step, under gates and a head that the timestep moves.

    x += gate(t) * attend(text); x += gate(t) * mix(1), and the output is x * (1 + t) + t.
    """

    def __init__(self, gated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gated = gated
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "value": nn.Linear(4, 4),
                "mix": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)),
            })
            for _ in range(3)
        )  # fmt: skip
        self.requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        t = (timestep / 1000)[:, None, None]
        gate, x = (1.0 + t if self.gated else 1.0), latents.flatten(2).transpose(1, 2)
        for block in self.blocks:
            heard = block["value"](text)
            x = x + gate * nn.functional.scaled_dot_product_attention(0 * x + 1, text, heard)
            x = x + gate * block["mix"](0 * x + 1)
        return x * (1 + t) + t


def kinds(policy: Policy) -> set[type]:
    return {type(rule.skip) for rule in policy.rules}


def oracle(policy: Policy, steps: int, *, moving: bool, gated: bool) -> tuple[str, Any, Any]:
    """Decisions, outputs and the model's own: what is held is true on every step."""
    model, text = Steady(gated), torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    compiled = synccache.compile(model, policy)
    compiled.begin(steps=steps)
    found, expected = [], []
    for k, timestep in enumerate(timesteps(steps)):
        noise = torch.Generator().manual_seed(7 + (k if moving else 0))
        x, t = torch.randn(1, 4, 2, 2, generator=noise), torch.tensor([timestep])
        with torch.no_grad():
            found.append(compiled(x, t, text))
            expected.append(model(x, t, text))
    return compiled.stats().decisions[0], found, expected


# whole networks keep no head to be fresh; a person's mask and audio are other models' inputs; a token
# that is spread is meant to change others
OTHER = {
    "pab": policies.pab(((branches.attention, 3),), window=(-1.0, 1001.0))
}  # one attention here
OUTSIDE = ("asymmetric", "clusca", "easycache", "fastercache")


@pytest.mark.parametrize("name", sorted({*CASES} - {*OUTSIDE}))
def test_a_skipped_step_with_the_true_residual_is_the_full_step(name: str) -> None:
    policy, steps = OTHER.get(name, CASES[name](1.9)), LONGER.get(name, STEPS)
    per_module, value = Modules in kinds(policy), Values in kinds(policy)
    letters, found, expected = oracle(policy, steps, moving=not value, gated=per_module)

    assert "S" in letters
    assert difference(found, expected) <= ROUNDING


# ---- 4: what a computed step does to a sum; changes 0.04, 0.048, 0.009, 0.0545, 0.034

FORCED = {
    "teacache": (policies.teacache(0.064, polynomial=(1.0, 0.0), first=3), "CCCSSC"),
    "dicache, whose probe does not run in the warm-up": (
        policies.dicache(0.064, retention=0.5), "CCCSSC",
    ),
    "asymmetric": (policies.asymmetric(0.064, inside=1.0, warmup=3), "CCCSSC"),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "letters"), FORCED.values(), ids=FORCED)
def test_warm_up_steps_leave_nothing_in_the_sum(policy: Policy, letters: str) -> None:
    compiled = synccache.compile(numbers(), policy, masks=masks_of(policy))
    compiled.begin(steps=6)
    for timestep, value in zip(timesteps(6), SIGNALS, strict=True):
        x = torch.full((1, 1, 1), value, dtype=torch.float64)
        with torch.no_grad():
            compiled(x, torch.tensor([timestep]), 0 * x)

    assert compiled.stats().decisions[0] == letters


def masks_of(policy: Policy) -> dict[str, Tensor] | None:
    return {"person": torch.tensor([1.0])} if policy.name == "asymmetric" else None


def test_a_forced_step_in_the_middle_empties_the_sum() -> None:
    policy = policies.teacache(0.098, polynomial=(1.0, 0.0))
    (rule,) = policy.rules
    forced = replace(policy, rules=(replace(rule, when=Steps("SSCS") & rule.when),))

    assert ran(policy, SIGNALS, numbers())[0].stats().decisions[0] == "CSSSCC"
    assert ran(forced, SIGNALS, numbers())[0].stats().decisions[0] == "CSCSSC"
