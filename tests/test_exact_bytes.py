"""A plan's bytes are what the run then holds, exactly: on released classes and on generated ones."""

from typing import Any

import pytest
from generated_models import Spec, build, specs
from hypothesis import HealthCheck, given, settings
from real_models import build as build_real
from table_models import NAMES as TABLE
from table_models import build as build_table
from torch import nn

import synccache
from synccache import policies
from synccache.planner.storage import Place
from synccache.policies.dsl import (
    AUDIO,
    LAST_COMPUTED,
    Linear,
    Policy,
    Rule,
    Taylor,
    blocks,
    branches,
    output,
    relative_l1,
    segments,
    step,
)

STEPS, GUIDANCE = 5, 2
LIVE_AUDIO = segments(branches.after(blocks[0]) - branches.reading(AUDIO))
MOVED = relative_l1(output(blocks[0]), since=LAST_COMPUTED)
REST = [
    policies.first_block_cache(threshold=9.0),
    Policy("linear", (Rule(blocks[1:], step >= 2, Linear()),)),
    Policy(
        "taylor",
        (Rule(branches.mlp - blocks[0], (step >= 3) & (MOVED < 9.0), Taylor(order=2)),),
    ),
]


def bytes_of(model: nn.Module, inputs: Any, policy: Policy, **asked: Any) -> tuple[Any, Any]:
    """(what the run holds, what the plan says): on the device in all, of residuals, on the host."""
    compiled = synccache.compile(model, policy, **asked)
    for k in range(STEPS):
        for branch in range(GUIDANCE):
            args, kwargs = inputs(k, 1000.0 - 100 * k, branch)
            compiled(*args, **kwargs)
    states = compiled._trajectories[None].branches.values()
    held = [h for state in states for h in state.held.values()]
    memory = compiled.plan.memory
    found = (
        compiled.stats().bytes_held,
        sum(h.bytes_at(Place.DEVICE) for h in held),
        sum(h.bytes_at(Place.HOST) for h in held),
    )
    assert "S" in "".join(compiled.stats().decisions.values())
    return found, (memory.cache_bytes, memory.residual_bytes, memory.host_bytes)


@pytest.mark.parametrize("policy", REST, ids=lambda p: p.name)
def test_a_released_model_holds_what_its_plan_says(policy: Policy) -> None:
    case = build_real("wan_i2v")
    found, planned = bytes_of(case.model, case.new_inputs, policy)

    assert found == planned


def test_wan_s2v_with_joined_segments_in_float8_holds_what_its_plan_says() -> None:
    case = build_table("wan_s2v")
    policy = Policy("audio", (Rule(LIVE_AUDIO, step >= 1),))
    found, planned = bytes_of(
        case.model, case.inputs, policy, conditions=case.conditions, cache_ratio=0.5,
        storages=["float8"],
    )  # fmt: skip

    assert found == planned


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_model_of_the_table_holds_what_its_plan_says(name: str) -> None:
    case = build_table(name)
    found, planned = bytes_of(case.model, case.inputs, REST[0], conditions=case.conditions or None)

    assert found == planned


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
@given(spec=specs())
def test_a_generated_model_holds_the_residuals_of_its_plan_and_no_more_of_the_rest(
    spec: Spec,
) -> None:
    """Step-invariant values may be fewer: of an input that no branch uses, none need be kept."""
    case = build(spec)
    policy = Policy("audio", (Rule(LIVE_AUDIO, step >= 1),))
    found, planned = bytes_of(case.model, case.new_inputs, policy)

    assert found[1:] == planned[1:]
    assert found[0] <= planned[0]


def test_two_recordings_of_one_program_keep_its_values_once() -> None:
    case = build_table("mochi")
    compiled = synccache.compile(case.model, REST[0], conditions=case.conditions or None)
    for branch in range(GUIDANCE):
        args, kwargs = case.inputs(0, 1000.0, branch)
        compiled(*args, **kwargs)
    kept = compiled._trajectories[None].kept

    assert compiled.captures == 2
    assert sorted(len(entries) for entries in kept.values()) == [1, 2]
