"""Plans that choose how residuals are kept: checked, never worse for more budget, honest about both."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner_chains import PAPER_DRIFT, chain, chain_problems, pairs
from test_planner_cp_sat import with_choices
from test_planner_plan import planned

from synccache.errors import PlanError
from synccache.planner import ChainProblem, Plan
from synccache.planner.arcs import fewest_bytes
from synccache.planner.storage import (
    AS_COMPUTED,
    FLOAT8,
    HOST,
    TURNS,
    Form,
    Place,
    Storage,
    storages_named,
)

FEW = settings(max_examples=15, deadline=None)
CHOICES = (AS_COMPUTED, FLOAT8, TURNS, HOST)


@st.composite
def choosy_problems(draw: st.DrawFn) -> tuple[ChainProblem, tuple[Storage, ...], int]:
    """A problem, storages to choose from, and the smallest budget that they leave."""
    problem = with_choices(
        draw(chain_problems(least_gaps=1, most_gaps=4)), lower=draw(st.booleans())
    )
    storages = tuple(draw(st.lists(st.sampled_from(CHOICES), min_size=1, unique=True)))
    least = problem.bytes_without_residuals + min(fewest_bytes(problem, storages).values())
    return problem, storages, least


@FEW
@given(asked=choosy_problems(), more=st.integers(0, 40))
def test_every_plan_with_a_choice_of_storage_passes_its_own_check(
    asked: tuple[ChainProblem, tuple[Storage, ...], int], more: int
) -> None:
    problem, storages, least = asked
    plan = planned(problem, mem_budget=least + more, storages=storages)

    plan.check(problem)
    assert plan.memory.total_bytes <= least + more
    assert Plan.from_json(plan.to_json()) == plan
    assert max(map(len, str(plan).splitlines())) <= 100


@FEW
@given(asked=choosy_problems(), more=st.integers(0, 30), further=st.integers(0, 30))
def test_more_budget_never_worsens_a_plan_with_a_choice_of_storage(
    asked: tuple[ChainProblem, tuple[Storage, ...], int], more: int, further: int
) -> None:
    problem, storages, least = asked
    poor = planned(problem, mem_budget=least + more, storages=storages)
    rich = planned(problem, mem_budget=least + more + further, storages=storages)

    assert len(rich.regions) >= len(poor.regions)
    if len(rich.regions) == len(poor.regions) and poor.drift is not None:
        assert rich.drift <= poor.drift + 1e-6


@FEW
@given(asked=choosy_problems(), more=st.integers(0, 30), data=st.data())
def test_another_storage_to_choose_from_never_worsens_a_plan(
    asked: tuple[ChainProblem, tuple[Storage, ...], int], more: int, data: st.DataObject
) -> None:
    problem, storages, least = asked
    more_storages = (*storages, data.draw(st.sampled_from(CHOICES)))
    poor = planned(problem, mem_budget=least + more, storages=storages)
    rich = planned(problem, mem_budget=least + more, storages=more_storages)

    assert len(rich.regions) >= len(poor.regions)
    if len(rich.regions) == len(poor.regions) and poor.drift is not None:
        assert rich.drift <= poor.drift + 1e-6


def test_where_everything_fits_as_computed_nothing_else_is_chosen() -> None:
    problem = with_choices(chain(4, drift=PAPER_DRIFT))
    plan = planned(problem, mem_budget=10**6, storages=CHOICES)

    assert {region.storage for region in plan.regions} == {"as computed"}


def test_regions_say_where_they_are_kept_and_the_table_what_that_costs() -> None:
    problem = with_choices(chain(3, sizes=1000, drift=dict.fromkeys(pairs(3), 0.1)))
    room = problem.bytes_without_residuals + 4000
    plan = planned(problem, mem_budget=room, storages=(AS_COMPUTED, TURNS))
    text = str(plan)

    assert sorted(region.place.value for region in plan.regions) == [
        "device", "device in turns", "device in turns",
    ]  # fmt: skip
    assert (plan.memory.residual_bytes, plan.memory.host_bytes) == (4000, 4000)
    assert "storages to choose from: as computed, in turns;" in text
    assert "optimal, gap 0.00%, after" in text
    assert "of 4.00 KB kept in main memory" in text


@pytest.mark.parametrize(
    "change",
    [
        {"storage": "float8"},
        {"place": Place.HOST},
        {"tensors": 2},
        {"seconds_lost": 0.5},
        {"predictor": "hold"},
    ],
)
def test_a_plan_tampered_with_in_how_it_keeps_a_region_fails_its_check(
    change: dict[str, object],
) -> None:
    problem = with_choices(chain(3, drift=dict.fromkeys(pairs(3), 0.1)))
    plan = planned(problem, mem_budget=10**6, storages=CHOICES)
    regions = (replace(plan.regions[0], **change), *plan.regions[1:])

    plan.check(problem)
    with pytest.raises(PlanError, match="does not belong to this problem"):
        replace(plan, regions=regions).check(problem)


def test_a_budget_too_small_names_storages_that_would_fit_with_their_figures() -> None:
    problem = replace(
        with_choices(chain(2, sizes=1000, borders=[0])), weights_bytes=0, activation_bytes=0
    )
    fixed = problem.bytes_without_residuals

    with pytest.raises(PlanError) as refusal:
        planned(problem, mem_budget=fixed + 2000)

    assert f"the {(fixed + 4000) / 1000:.2f} KB ({fixed + 4000} bytes) needed at least" in str(
        refusal.value
    )
    for name in ("float8", "in turns", "host"):
        assert f'storages=("as computed", "{name}") needs' in refusal.value.hint
    assert f"({fixed + 2000} bytes): fits." in refusal.value.hint
    planned(problem, mem_budget=fixed + 2000, storages=(AS_COMPUTED, TURNS)).check(problem)


def test_storages_are_found_by_name() -> None:
    assert storages_named(["as computed", HOST]) == (AS_COMPUTED, HOST)
    with pytest.raises(PlanError, match="there is no storage 'disk'; there are as computed, "):
        storages_named(["disk"])
    with pytest.raises(PlanError, match="must be a list of at least one name"):
        storages_named([])
    assert FLOAT8.form is Form.FLOAT8
