"""Rules that skip the same branches on different steps."""

from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import difference, outputs, same, tensors, timesteps
from torch import Tensor

import synccache
from synccache import policies
from synccache.errors import MatchError
from synccache.policies.disjoint import disjoint
from synccache.policies.dsl import (
    PREVIOUS,
    Condition,
    Hold,
    Linear,
    Policy,
    Rule,
    Steps,
    between,
    blocks,
    branches,
    every,
    modules,
    output,
    relative_l1,
    step,
    values,
)
from synccache.policies.evaluate import Memory, Now

moved = relative_l1(output(blocks[0]), since=PREVIOUS)
RUN = 12

simple = st.one_of(
    st.integers(0, 9).map(lambda n: step < n),
    st.integers(0, 9).map(lambda n: step <= n),
    st.integers(0, 9).map(lambda n: step > n),
    st.integers(0, 9).map(lambda n: step >= n),
    st.tuples(st.integers(0, 5), st.integers(6, 9)).map(lambda ends: between(step, *ends)),
    st.integers(1, 4).map(lambda n: every(step, n)),
    st.text("CS", min_size=1, max_size=6).map(Steps),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    simple, lambda inner: st.one_of(st.tuples(inner, inner).map(lambda p: p[0] & p[1]), inner.map(lambda c: ~c)),
    max_leaves=4,
)  # fmt: skip


def true_on(condition: Condition) -> set[int]:
    return {k for k in range(RUN) if Now({"step": k}, {}, Memory()).holds(condition) is True}


@settings(max_examples=300, deadline=None)
@given(a=conditions, b=conditions)
def test_what_is_called_disjoint_is_never_true_together(a: Condition, b: Condition) -> None:
    if disjoint(a, b):
        assert true_on(a) & true_on(b) == set()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (step < 5, step >= 5, True),
        (step <= 5, step >= 5, False),
        ((step < 5) & (moved < 1), ~(step < 5) & (moved < 1), True),
        (moved < 1, ~(moved < 1), True),
        (between(step, 2, 4), step >= 4, True),
        (Steps("CSC"), Steps("CCS"), True),
        (Steps("CSC"), Steps("CCS") & (step >= 0), True),
        (Steps("CS"), Steps("CCCS"), False),
        (every(step, 2), ~every(step, 2), True),
        (every(step, 2), every(step, 2, 1), False),  # true, but not seen
    ],
)
def test_these_are_seen(a: Condition, b: Condition, expected: bool) -> None:
    assert expected == disjoint(a, b)


def run(policy: Policy, steps: int) -> tuple[list[tuple[Tensor, ...]], Any]:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, policy)
    found = []
    for k, timestep in enumerate(timesteps(steps)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            found.append(tensors(compiled(*args, **kwargs)))
    return found, compiled


@pytest.mark.parametrize(
    "form", [lambda s: s, values, modules], ids=["residual", "value", "module"]
)
def test_regions_that_depend_on_the_stage_may_overlap(form: Any) -> None:
    early = Rule(form(blocks[-2:]), (step < 4) & ~every(step, 2), Hold())
    late = Rule(form(blocks[:2]), (step >= 4) & ~every(step, 2), Hold())

    found, compiled = run(Policy("both", (early, late)), 8)

    expected = run(Policy("early", (early,)), 8)[0][:4] + run(Policy("late", (late,)), 8)[0][4:]
    assert difference(expected, found) <= 2e-5
    assert compiled.stats().decisions == {0: "CSCSCSCS"}
    assert sorted(r.rules for r in compiled.variant.layout.regions)[0] == (0,)
    assert (0, 1) in [r.rules for r in compiled.variant.layout.regions]
    assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes


def test_delta_dit_may_keep_more_than_half_of_the_stack() -> None:
    found, compiled = run(policies.delta_dit(2, boundary=4), 8)

    assert compiled.stats().decisions == {0: "CSCSCSCS"}
    assert all(t.isfinite().all() for out in found for t in out)


def test_overlapping_rules_that_never_hold_change_nothing() -> None:
    case = build(Spec(audio=Audio.OWN, joint_text=True))
    rules = (Rule(blocks[:2], step < 0), Rule(blocks[1:], (step >= 1) & (step < 1)))

    compiled = synccache.compile(case.model, Policy("never", rules))

    assert same(outputs(case.model, case, 2), outputs(compiled, case, 2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Rule(blocks[:2], step >= 1), Rule(blocks[1:], step >= 4)),
        (Rule(blocks[:2], step < 4), Rule(blocks[1:], step >= 4, Linear())),
        (Rule(blocks[:2], step < 4), Rule(values(blocks[1:]), step >= 4)),
        (Rule(modules(branches), step < 4), Rule(blocks[1:], step >= 4)),
    ],
)
def test_others_that_skip_the_same_branch_are_refused(first: Rule, second: Rule) -> None:
    with pytest.raises(MatchError, match="rules 1 and 2 both skip"):
        run(Policy("both", (first, second)), 1)
