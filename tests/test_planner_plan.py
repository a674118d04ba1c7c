"""Plans: what is chosen within the limits, how it prints, and that tampering is found out."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_planner_chains import PAPER_DRIFT, UNHURRIED, chain, chain_problems

from synccache.errors import PlanError
from synccache.planner import (
    ChainProblem,
    DriftSource,
    Plan,
    fewest_residual_bytes,
    plan_chain,
    segments_for_ratio,
)
from synccache.planner.fingerprint import Fingerprint
from synccache.planner.storage import Place

FINGERPRINT = Fingerprint(
    model="Net", parameters="f00d", resolution=(1, 12, 16), policy="Policy('asymmetric', ())"
)


def planned(problem: ChainProblem, **limits: object) -> Plan:
    return plan_chain(problem, policy="asymmetric", model="Net", fingerprint=FINGERPRINT, **limits)


@st.composite
def problems_with_limits(draw: st.DrawFn) -> tuple[ChainProblem, dict[str, object]]:
    """A problem with a budget that suffices, a ratio, both or neither."""
    problem = draw(chain_problems())
    ratio = draw(st.none() | st.floats(0.01, 1.0))
    count = None if ratio is None else segments_for_ratio(problem, ratio)
    least = problem.bytes_without_residuals + fewest_residual_bytes(problem, segments=count)
    budget = draw(st.none() | st.integers(least, least + 500))
    return problem, {"mem_budget": budget, "cache_ratio": ratio}


@UNHURRIED
@given(problems_with_limits())
def test_every_plan_passes_its_own_check(asked: tuple[ChainProblem, dict[str, object]]) -> None:
    problem, limits = asked

    planned(problem, **limits).check(problem)


@UNHURRIED
@given(problems_with_limits())
def test_a_plan_keeps_within_its_limits(asked: tuple[ChainProblem, dict[str, object]]) -> None:
    problem, limits = asked
    plan = planned(problem, **limits)
    budget, ratio = limits["mem_budget"], limits["cache_ratio"]

    assert budget is None or plan.memory.total_bytes <= budget
    if ratio is not None and budget is None:
        assert len(plan.regions) == segments_for_ratio(problem, ratio)
    if ratio is not None:
        assert len(plan.regions) <= segments_for_ratio(problem, ratio)


@UNHURRIED
@given(problems_with_limits())
def test_a_printed_plan_fits_a_hundred_columns(
    asked: tuple[ChainProblem, dict[str, object]],
) -> None:
    plan = planned(asked[0], **asked[1])

    assert max(map(len, str(plan).splitlines())) <= 100


@UNHURRIED
@given(problem=chain_problems(least_gaps=1), data=st.data())
def test_more_budget_never_worsens_a_plan(problem: ChainProblem, data: st.DataObject) -> None:
    ratio = data.draw(st.none() | st.floats(0.01, 1.0))
    count = None if ratio is None else segments_for_ratio(problem, ratio)
    least = problem.bytes_without_residuals + fewest_residual_bytes(problem, segments=count)
    small = data.draw(st.integers(least, least + 300))
    large = data.draw(st.integers(small, small + 300))

    poor = planned(problem, mem_budget=small, cache_ratio=ratio)
    rich = planned(problem, mem_budget=large, cache_ratio=ratio)

    assert len(rich.regions) >= len(poor.regions)
    if len(rich.regions) == len(poor.regions) and poor.drift is not None:
        assert rich.drift <= poor.drift + 1e-9


@UNHURRIED
@given(problem=chain_problems(least_gaps=1), data=st.data())
def test_a_higher_ratio_never_means_fewer_regions(
    problem: ChainProblem, data: st.DataObject
) -> None:
    low = data.draw(st.floats(0.01, 1.0))
    high = data.draw(st.floats(low, 1.0))

    assert len(planned(problem, cache_ratio=high).regions) >= len(
        planned(problem, cache_ratio=low).regions
    )


def tampered(plan: Plan) -> list[Plan]:
    """Plans that differ from `plan` in one figure each and are still consistent in themselves."""
    region = plan.regions[1]
    changes: list[dict[str, object]] = [
        {"drift": 0.0001},
        {"held_bytes": region.held_bytes - 1},
        {"seconds_saved": region.seconds_saved + 0.001},
        {"absorbed": ("audio.9",)},
        {"absorbed_count": region.absorbed_count + 1},
        {"dtype": "float8"},
        {"place": Place.HOST},
        {"predictor": "magic"},
        {"name": "blocks.7"},
        {"labels": "nothing"},
    ]
    regions = [replace(region, **change) for change in changes]
    others: list[dict[str, object]] = [
        {"regions": (plan.regions[0], other, *plan.regions[2:])} for other in regions
    ]
    memory = plan.memory
    others += [
        {"memory": replace(memory, **{field.name: getattr(memory, field.name) + 1})}
        for field in fields(memory)
    ]
    row = plan.frontier[0]
    others += [
        {"frontier": (replace(row, **change), *plan.frontier[1:])}
        for change in ({"drift": 0.1}, {"cache_bytes": 1}, {"absorbed_count": 9}, {"cuts": (0, 1)})
    ]
    others += [
        {"frontier": ()},
        {"kept_lives": ()},
        {"live_total": 99},
        {"drift_source": DriftSource.WARM_UP},
        {"cache_ratio": 1.0},
        {"regions": plan.regions[:2]},
    ]
    return [replace(plan, **other) for other in others]


@pytest.mark.parametrize("index", range(28))
def test_a_tampered_plan_fails_its_check(index: int) -> None:
    problem = chain(4, drift=PAPER_DRIFT, tail_lives=1)
    versions = tampered(planned(problem, cache_ratio=0.75))

    assert len(versions) == 28
    with pytest.raises(PlanError, match="asymmetric on Net: the plan does not belong"):
        versions[index].check(problem)


def test_a_plan_with_needlessly_few_regions_fails_its_check() -> None:
    problem = chain(4, drift=PAPER_DRIFT)
    plan = planned(problem, cache_ratio=0.7, mem_budget=10**9)

    plan.check(problem)
    with pytest.raises(PlanError, match="number of regions is 2, not 4"):
        replace(plan, cache_ratio=None).check(problem)


def test_a_plan_that_joins_across_a_border_fails_its_check() -> None:
    plan = planned(chain(4), cache_ratio=0.7)

    assert plan.cuts == (0, 2, 4)
    with pytest.raises(PlanError, match=r"regions\[1\] absorbs what it may not is \['audio.2'\]"):
        plan.check(chain(4, borders=[2]))


def test_a_plan_for_other_drifts_fails_its_check() -> None:
    problem = chain(4, drift=PAPER_DRIFT)
    other = chain(4, drift={**PAPER_DRIFT, (0, 1): 0.11})

    with pytest.raises(PlanError, match="drift is"):
        planned(problem).check(other)


def test_a_plan_for_another_number_of_gaps_fails_its_check() -> None:
    with pytest.raises(PlanError, match="regions cover 4 gaps, the problem has 3"):
        planned(chain(4)).check(chain(3))


def test_a_ratio_takes_exactly_its_number_of_regions() -> None:
    plan = planned(chain(4, drift=PAPER_DRIFT, tail_lives=1), cache_ratio=0.75)

    assert plan.cuts == (0, 1, 3, 4)
    assert plan.drift == pytest.approx(0.60)
    assert plan.kept_lives == ("audio.0", "audio.2")
    assert plan.regions[1].absorbed == ("audio.1",)


def test_without_limits_every_gap_is_a_region_and_nothing_is_absorbed() -> None:
    plan = planned(chain(5))

    assert [(region.first_gap, region.last_gap) for region in plan.regions] == [
        (index, index) for index in range(5)
    ]
    assert (plan.absorbed_count, plan.budget_bytes, plan.cache_ratio) == (0, None, None)


def test_unmeasured_drift_is_shown_as_unmeasured() -> None:
    plan = planned(chain(3), cache_ratio=0.5)

    assert plan.drift_source is DriftSource.ASSUMED
    assert plan.drift is None
    assert {region.drift for region in plan.regions} == {None}
    assert "not measured" in str(plan)


def test_without_measured_drift_absorbed_branches_are_spread_evenly() -> None:
    plan = planned(chain(12, tail_lives=1), cache_ratio=0.34)

    assert [len(region.absorbed) for region in plan.regions] == [2, 2, 2, 2]


def test_the_memory_of_a_plan_adds_up() -> None:
    plan = planned(chain(3, sizes=1000, guidance_branches=2, tensors_per_segment=2))

    assert plan.memory.residual_bytes == 3 * 1000 * 2 * 2
    assert plan.memory.invariant_bytes == 2 * 300
    assert plan.memory.cache_bytes == 12_000 + 600 + 400
    assert plan.memory.total_bytes == 50_000 + 7_000 + 13_000


def test_a_budget_too_small_is_refused_with_the_smallest_that_works() -> None:
    problem = chain(4, tensors_per_segment=2)
    least = 50_000 + 7_000 + 600 + 400 + 4000

    with pytest.raises(PlanError) as refusal:
        planned(problem, mem_budget=least - 1)

    assert str(refusal.value) == (
        "asymmetric on Net: the budget of 62.00 KB (61999 bytes) is below the 62.00 KB "
        "(62000 bytes) needed at least: weights 50.00 KB, activations at their peak 7.00 KB, "
        "residuals 4.00 KB, step-invariant values 600 B, probe, masks and constants 400 B "
        "(2 guidance branches, 1 region, 2 held tensors for each). Raise mem_budget to 62000. "
        'storages=("as computed", "in turns") needs 60.00 KB (60000 bytes): fits. '
        "A predictor that holds 1 tensor needs 60.00 KB (60000 bytes): fits. "
        'policy="exact", which holds no residual, needs 57.60 KB (57600 bytes): fits. '
        "A smaller resolution or fewer frames: about 99% of the present tokens fit, "
        "if everything but the weights grows with their number."
    )
    assert planned(problem, mem_budget=least).memory.total_bytes == least


def test_a_budget_too_small_for_regions_that_may_not_be_joined_names_that_way_out() -> None:
    problem = chain(3, borders=[0, 1])

    with pytest.raises(PlanError) as refusal:
        planned(problem, mem_budget=60_000)

    assert "Raise mem_budget to 64000." in str(refusal.value)
    assert "cache_ratio needs 60.00 KB (60000 bytes): fits." in str(refusal.value)


def test_a_plan_keeps_the_borders_that_it_is_given() -> None:
    plan = planned(chain(4, borders=[0, 2]), cache_ratio=0.1)

    assert plan.cuts == (0, 1, 3, 4)
    assert [row.segments for row in plan.frontier] == [3, 4]


def test_a_budget_below_the_weights_says_so() -> None:
    with pytest.raises(PlanError, match="The weights alone fill the budget"):
        planned(chain(4), mem_budget=40_000)


def test_a_budget_too_small_for_a_model_without_regions_is_refused() -> None:
    with pytest.raises(PlanError, match=r"Raise mem_budget to 58000\."):
        planned(chain(0), mem_budget=57_999)


@pytest.mark.parametrize("ratio", [0.0, 1.5, -1.0, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match=r"asymmetric on Net: cache_ratio must lie in \(0, 1\]"):
        planned(chain(4), cache_ratio=ratio)


@pytest.mark.parametrize("budget", [0, -5, True, 1.5, "24GB"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: object) -> None:
    with pytest.raises(PlanError, match="asymmetric on Net: mem_budget must be a whole number"):
        planned(chain(4), mem_budget=budget)


def test_a_plan_that_exceeds_its_own_budget_cannot_be_built() -> None:
    plan = planned(chain(2), mem_budget=62_000)

    with pytest.raises(PlanError, match=r"takes 62000 bytes .* more than its budget of 61999"):
        replace(plan, budget_bytes=61_999)


def test_a_plan_without_regions_prints_that_nothing_is_skipped() -> None:
    text = str(planned(chain(0)))

    assert "No region is skipped: every step computes every branch." in text
    assert "weights" in text
    assert "drift" not in text


def test_a_plan_prints_what_a_newcomer_needs() -> None:
    problem = chain(4, drift=PAPER_DRIFT, tail_lives=2)
    text = str(planned(problem, cache_ratio=0.6, mem_budget=100_000))

    assert text == PRINTED


PRINTED = """\
Plan of policy 'asymmetric' for Net
On a skipped step held residuals replace 3 regions; computed between them: 2 live groups.
Absorbed into regions, so not refreshed on a skipped step: 1 of 5 audio branches.
Cache ratio: 0.6.

#  skips                 held/branch  stored as        predictor       drift      saves
---------------------------------------------------------------------------------------
0  blocks.0                  1.00 KB  float32, device  hold residual  0.1000   10.00 ms
   self-attention, mlp
1  blocks.1 to blocks.2      1.00 KB  float32, device  hold residual  0.3000   51.00 ms
   self-attention, mlp
   absorbs audio.1
2  blocks.3                  1.00 KB  float32, device  hold residual  0.2000   40.00 ms
   self-attention, mlp
   together                  3.00 KB                                  0.6000  101.00 ms
held/branch: for each guidance branch. saves: on one skipped forward of one branch.
drift: relative change of a residual, summed over steps; measured over a calibration run.

memory on the device       size
------------------------------------------------------------------------
weights                50.00 KB
activations, peak       7.00 KB
residuals               6.00 KB  2 guidance branches
step-invariant values     600 B  2 guidance branches
shared by branches        400 B  probe, masks, constants
together               64.00 KB  of a budget of 100.00 KB, 36.00 KB free

Least drift for each number of regions, budget aside:
    regions   caches  absorbed audio   drift
--------------------------------------------
          1  3.00 KB               3  0.8000
          2  5.00 KB               2  0.6000
->        3  7.00 KB               1  0.6000
          4  9.00 KB               0  0.8000"""


def test_the_frontier_shows_neighbours_and_ends_only() -> None:
    text = str(planned(chain(30, tail_lives=1), cache_ratio=0.5))

    assert "(21 more in plan.frontier)" in text
    assert "->       15" in text


def test_plans_that_differ_say_where() -> None:
    problem = chain(4, drift=PAPER_DRIFT, tail_lives=1)
    mine, other = planned(problem, cache_ratio=0.75), planned(problem, cache_ratio=0.5)

    lines = mine.diff(other).splitlines()

    assert "cache_ratio: 0.75 -> 0.5" in lines
    assert "memory.residual_bytes: 6000 -> 4000" in lines
    assert "regions[2].index: 2 -> absent" in lines
    assert mine.diff(mine) == "no difference"
