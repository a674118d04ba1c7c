"""compile() with plans: how residuals are kept, what a saved plan may be used with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import TOKENS, WIDTH, denoise, talking, voices

import synccache
from synccache import policies
from synccache.compiler import prepare
from synccache.errors import PlanError
from synccache.fx.cached_model import CachedModel
from synccache.planner import Plan
from synccache.planner.storage import FLOAT8, HOST, TURNS, Place, Storage
from synccache.policies.dsl import AUDIO, Linear, Policy, Rule, blocks, branches, segments, step

HIDDEN = TOKENS * WIDTH * 4
SKIPPING = policies.asymmetric(threshold=9.0)
LINEAR = Policy(
    "linear",
    (Rule(segments(branches.after(blocks[0]) - branches.reading(AUDIO)), step >= 2, Linear()),),
)


def held(compiled: CachedModel, place: Place) -> int:
    """Bytes of residuals that the last trajectory keeps in a place."""
    states = compiled._trajectories[None].branches.values()
    return sum(h.bytes_at(place) for state in states for h in state.held.values())


@pytest.mark.parametrize("policy", [SKIPPING, LINEAR], ids=["hold", "linear"])
@pytest.mark.parametrize("storage", ["as computed", "bfloat16", "float8", "in turns", "host"])
def test_a_run_holds_the_residuals_of_its_plan_to_the_byte(policy: Policy, storage: str) -> None:
    compiled = synccache.compile(talking(), policy, storages=[storage])
    denoise(compiled)
    memory = compiled.plan.memory

    assert {region.storage for region in compiled.plan.regions} == {storage}
    assert held(compiled, Place.DEVICE) == memory.residual_bytes
    if storage == "host":
        assert (
            held(compiled, Place.HOST)
            == memory.host_bytes
            == 3 * 2 * HIDDEN * (2 if policy is LINEAR else 1)
        )


@pytest.mark.parametrize("storage", [HOST, TURNS])
def test_what_goes_to_the_host_and_back_changes_no_bit(storage: Storage) -> None:
    expected = denoise(synccache.compile(talking(), SKIPPING))
    found = denoise(synccache.compile(talking(), SKIPPING, storages=[storage]))

    assert torch.equal(expected, found)


def test_float8_comes_close() -> None:
    expected = denoise(synccache.compile(talking(), SKIPPING))
    found = denoise(synccache.compile(talking(), SKIPPING, storages=[FLOAT8]))

    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 0.05


def test_a_small_budget_stores_in_fewer_bits_before_it_absorbs_audio() -> None:
    roomy = synccache.compile(talking(), SKIPPING)
    denoise(roomy)
    budget = roomy.plan.memory.total_bytes - HIDDEN
    tight = synccache.compile(
        talking(), SKIPPING, mem_budget=budget, storages=["as computed", "float8"]
    )
    denoise(tight)

    assert len(tight.plan.regions) == len(roomy.plan.regions) == 3
    assert sorted(region.storage for region in tight.plan.regions) == [
        "as computed", "as computed", "float8",
    ]  # fmt: skip
    assert held(tight, Place.DEVICE) == tight.plan.memory.residual_bytes
    assert tight.plan.memory.total_bytes <= budget


def test_a_small_budget_lowers_the_order_of_a_predictor_before_it_absorbs_audio() -> None:
    roomy = synccache.compile(talking(), LINEAR)
    denoise(roomy)
    tight = synccache.compile(talking(), LINEAR, mem_budget=roomy.plan.memory.total_bytes - HIDDEN)
    denoise(tight)
    denoise(tight)  # the second guidance branch made a new plan, in the middle of the first step

    assert [region.tensors for region in roomy.plan.regions] == [2, 2, 2]
    assert sorted(region.tensors for region in tight.plan.regions) == [1, 2, 2]
    assert held(tight, Place.DEVICE) == tight.plan.memory.residual_bytes


def test_main_memory_is_no_way_out_for_a_model_that_lies_in_it() -> None:
    compiled = synccache.compile(talking(), SKIPPING, mem_budget="1GB", storages=["host"])

    with pytest.raises(PlanError, match="this model lies in main memory itself"):
        denoise(compiled)


def checked(compiled: CachedModel) -> None:
    """The compiled model's plan against the problem that its recording makes."""
    found = prepare(compiled.model, compiled._request, compiled.variant.captured, 2)
    assert found.problem is not None
    compiled.plan.check(found.problem)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"cache_ratio": 0.5},
        {"storages": ["float8"], "cache_ratio": 0.75},
        {"storages": ["as computed", "bfloat16", "float8"], "mem_budget": 70_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", [SKIPPING, LINEAR], ids=["hold", "linear"])
def test_a_compiled_plan_passes_its_own_check(policy: Policy, asked: dict[str, object]) -> None:
    compiled = synccache.compile(talking(), policy, **asked)
    denoise(compiled)

    checked(compiled)


def test_the_plan_of_a_schedule_passes_its_own_check() -> None:
    known = synccache.calibrate(talking(), denoise, SKIPPING)
    found = synccache.plan_schedule(known, max_drift=1.0)
    compiled = synccache.compile(talking(), SKIPPING, schedule=found)
    denoise(compiled)

    checked(compiled)


# ------------------------------------------------------------------------ plans made elsewhere


def saved(path: Path, **asked: object) -> Plan:
    compiled = synccache.compile(talking(), SKIPPING, **asked)
    denoise(compiled)
    compiled.plan.save(path)
    return compiled.plan


def test_a_saved_plan_runs_as_the_one_it_was_saved_from(tmp_path: Path) -> None:
    plan = saved(tmp_path / "plan.json", cache_ratio=0.5, storages=["float8"])
    expected = denoise(synccache.compile(talking(), SKIPPING, cache_ratio=0.5, storages=["float8"]))
    again = synccache.compile(talking(), SKIPPING, plan=tmp_path / "plan.json")

    assert torch.equal(expected, denoise(again))
    assert again.plan == plan


def test_a_plan_for_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    saved(tmp_path / "plan.json")
    for model, policy, fact in (
        (talking(5), SKIPPING, "parameters: "),
        (talking(), policies.asymmetric(threshold=0.5), "policy: "),
    ):
        compiled = synccache.compile(model, policy, plan=tmp_path / "plan.json")
        with pytest.raises(PlanError, match=fact):
            denoise(compiled)


def test_a_plan_whose_figures_are_not_those_found_here_is_refused(tmp_path: Path) -> None:
    plan = saved(tmp_path / "plan.json")
    regions = tuple(replace(r, held_bytes=r.held_bytes + 4) for r in plan.regions)

    with pytest.raises(
        PlanError, match=r"does not fit what was found here: regions\[0\].held_bytes"
    ):
        denoise(synccache.compile(talking(), SKIPPING, plan=replace(plan, regions=regions)))


def test_a_plan_without_a_fingerprint_is_refused(tmp_path: Path) -> None:
    plan = replace(saved(tmp_path / "plan.json"), fingerprint=None)

    with pytest.raises(PlanError, match="says nothing of what it was made for"):
        denoise(synccache.compile(talking(), SKIPPING, plan=plan))


def test_a_plan_for_fewer_guidance_branches_is_refused() -> None:
    compiled = synccache.compile(talking(), SKIPPING)
    denoise(compiled, audio=voices()[:1])
    again = synccache.compile(talking(), SKIPPING, plan=compiled.plan)

    with pytest.raises(PlanError, match=r"made for 1 guidance branch\(es\), this loop has 2"):
        denoise(again)


def test_a_plan_larger_than_the_budget_is_refused(tmp_path: Path) -> None:
    plan = saved(tmp_path / "plan.json")
    compiled = synccache.compile(talking(), SKIPPING, plan=plan, mem_budget=1000)

    with pytest.raises(PlanError, match="more than mem_budget=1000"):
        denoise(compiled)


def test_a_plan_and_a_wish_for_another_are_refused(tmp_path: Path) -> None:
    plan = saved(tmp_path / "plan.json")

    with pytest.raises(PlanError, match="plan= and cache_ratio= each say what is skipped"):
        synccache.compile(talking(), SKIPPING, plan=plan, cache_ratio=0.5)
    with pytest.raises(PlanError, match="plan= says already how residuals are kept"):
        synccache.compile(talking(), SKIPPING, plan=plan, storages=["float8"])
