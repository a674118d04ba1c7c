"""The chain partition: equal to trying everything, and never worse for being allowed more."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_planner_chains import (
    PAPER_DRIFT,
    UNHURRIED,
    all_cuts,
    chain,
    chain_problems,
    pairs,
    total_bytes,
    total_cost,
)

import synccache
from synccache.errors import PlanError
from synccache.planner import (
    ChainProblem,
    fewest_residual_bytes,
    partition,
    partitions_by_count,
)


def best_by_trying_all(
    problem: ChainProblem,
    *,
    segments: int | None,
    max_bytes: int | None,
    absorbed_price: float,
    exactly: bool,
) -> tuple[int, float] | None:
    """(segments, cost) of the best partition, or None where nothing fits."""
    most = len(problem.gaps) if segments is None else segments
    legal = [
        cuts
        for cuts in all_cuts(problem)
        if (len(cuts) - 1 == most if exactly else len(cuts) - 1 <= most)
        and (max_bytes is None or total_bytes(problem, cuts) <= max_bytes)
    ]
    ranked = [(1 - len(cuts), total_cost(problem, cuts, absorbed_price)) for cuts in legal]
    return (-min(ranked)[0], min(ranked)[1]) if ranked else None


@st.composite
def limits(draw: st.DrawFn, problem: ChainProblem) -> dict[str, object]:
    """Limits that may or may not leave anything possible."""
    count = len(problem.gaps)
    exactly = draw(st.booleans()) and count > 0
    segments = (
        draw(st.integers(problem.fewest_segments, count))
        if exactly or draw(st.booleans())
        else None
    )
    roomy = total_bytes(problem, (*range(count), count) if count else (0,))
    max_bytes = draw(st.none() | st.integers(0, max(1, roomy)))
    price = draw(st.sampled_from([0.0, 0.5, 3.0]))
    return {
        "segments": segments,
        "max_bytes": max_bytes,
        "absorbed_price": price,
        "exactly": exactly,
    }


@UNHURRIED
@given(data=st.data(), problem=chain_problems(most_gaps=7))
def test_the_dynamic_program_equals_trying_every_partition(
    data: st.DataObject, problem: ChainProblem
) -> None:
    asked = data.draw(limits(problem))
    expected = best_by_trying_all(problem, **asked)

    if expected is None:
        with pytest.raises(PlanError, match="hold at least"):
            partition(problem, **asked)
        return
    found = partition(problem, **asked)
    cost = total_cost(problem, found.cuts, asked["absorbed_price"])
    assert (len(found.segments), cost) == (expected[0], pytest.approx(expected[1]))
    assert asked["max_bytes"] is None or found.residual_bytes <= asked["max_bytes"]


@UNHURRIED
@given(problem=chain_problems())
def test_a_partition_carries_the_price_of_its_own_cuts(problem: ChainProblem) -> None:
    found = partition(problem)

    assert found.residual_bytes == total_bytes(problem, found.cuts)
    assert found.drift == pytest.approx(total_cost(problem, found.cuts))


@UNHURRIED
@given(problem=chain_problems(least_gaps=1), data=st.data())
def test_more_budget_never_worsens_the_choice(problem: ChainProblem, data: st.DataObject) -> None:
    fewest = fewest_residual_bytes(problem)
    small = data.draw(st.integers(fewest, fewest * len(problem.gaps) * 9))
    large = data.draw(st.integers(small, 2 * small))

    poor, rich = partition(problem, max_bytes=small), partition(problem, max_bytes=large)

    assert len(rich.segments) >= len(poor.segments)
    if len(rich.segments) == len(poor.segments):
        assert rich.drift <= poor.drift + 1e-9


@UNHURRIED
@given(problem=chain_problems(least_gaps=1))
def test_one_table_gives_the_least_drift_for_every_number_of_segments(
    problem: ChainProblem,
) -> None:
    expected = [
        min(total_cost(problem, cuts) for cuts in all_cuts(problem) if len(cuts) == n + 1)
        for n in range(problem.fewest_segments, len(problem.gaps) + 1)
    ]

    assert [row.drift for row in partitions_by_count(problem)] == pytest.approx(expected)


@UNHURRIED
@given(problem=chain_problems())
def test_the_fewest_bytes_are_enough_and_one_byte_less_is_not(problem: ChainProblem) -> None:
    fewest = fewest_residual_bytes(problem)

    assert partition(problem, max_bytes=fewest).residual_bytes <= fewest
    if problem.gaps:
        with pytest.raises(PlanError, match=f"{fewest} bytes"):
            partition(problem, max_bytes=fewest - 1)


@pytest.mark.parametrize(
    ("count", "drift", "cuts"),
    [
        (1, 0.80, {(0, 4)}),
        (2, 0.60, {(0, 2, 4)}),
        (3, 0.60, {(0, 1, 3, 4)}),
        (4, 0.80, {(0, 1, 2, 3, 4)}),
    ],
)
def test_the_worked_example_of_the_method(
    count: int, drift: float, cuts: set[tuple[int, ...]]
) -> None:
    found = partition(chain(4, drift=PAPER_DRIFT), segments=count, exactly=True)

    assert found.drift == pytest.approx(drift)
    assert found.cuts in cuts


def test_a_price_on_absorbed_branches_moves_the_cuts() -> None:
    drift = {(0, 1): 0.0, (1, 2): 0.5, (2, 3): 0.0, (0, 2): 0.1, (1, 3): 0.5, (0, 3): 1.0}
    problem = chain(3, drift=drift, counts=[3, 1])

    free = partition(problem, segments=2, exactly=True)
    priced = partition(problem, segments=2, exactly=True, absorbed_price=1.0)

    assert (free.cuts, free.absorbed_count) == ((0, 2, 3), 3)
    assert (priced.cuts, priced.absorbed_count) == ((0, 1, 3), 1)


def test_a_budget_that_only_fits_the_smaller_residuals_is_used_to_the_last_byte() -> None:
    sizes = {(0, 1): 5, (1, 2): 5, (2, 3): 5, (0, 2): 9, (1, 3): 5, (0, 3): 14}
    drift = {(0, 1): 0.1, (1, 2): 0.1, (2, 3): 0.1, (0, 2): 0.1, (1, 3): 0.9, (0, 3): 2.0}
    problem = chain(3, sizes=sizes, drift=drift, guidance_branches=1)

    assert partition(problem, max_bytes=14).cuts == (0, 2, 3)
    assert partition(problem, max_bytes=13).cuts == (0, 1, 3)


def test_a_dearer_but_lighter_beginning_is_kept_for_the_sake_of_its_end() -> None:
    halves = {(0, 1): 10, (1, 3): 10, (0, 2): 5, (2, 3): 5} | {
        (3, 4): 15,
        (4, 6): 15,
        (3, 5): 5,
        (5, 6): 5,
    }
    prices = {(0, 1): 1.0, (0, 2): 2.0, (3, 4): 1.0, (3, 5): 10.0}
    everything = pairs(6)
    problem = chain(
        6,
        sizes={pair: halves.get(pair, 50) for pair in everything},
        drift={pair: prices.get(pair, 0.0) for pair in everything},
        borders=[2],
        guidance_branches=1,
    )

    found = partition(problem, segments=4, exactly=True, max_bytes=40)

    assert (found.cuts, found.drift, found.residual_bytes) == ((0, 2, 3, 4, 6), 3.0, 40)


def test_too_few_segments_for_the_borders_are_refused() -> None:
    with pytest.raises(PlanError) as refusal:
        partition(chain(4, borders=[0, 2]), segments=2)

    assert str(refusal.value) == (
        "2 segments cannot be cut from 4 gaps: 2 of the live groups between them may not be "
        "absorbed. Ask for at least 3."
    )


def test_a_chain_without_gaps_has_one_partition_and_it_is_empty() -> None:
    found = partition(chain(0), max_bytes=0)

    assert (found.cuts, found.segments, found.residual_bytes) == ((0,), (), 0)


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        ({"segments": 0}, "segments must be a whole number of at least 1, not 0"),
        ({"segments": 4, "exactly": True}, "exactly 4 segments cannot be cut from 3 gaps"),
        ({"exactly": True}, "exactly=True needs a number of segments"),
        ({"max_bytes": -1}, "max_bytes must be a whole number"),
        ({"absorbed_price": -1.0}, "absorbed_price must be a finite number"),
        ({"max_bytes": 1999}, "3 segments hold at least 2000 bytes (2.00 KB)"),
    ],
)
def test_an_impossible_wish_is_refused_with_its_numbers(
    asked: dict[str, object], fact: str
) -> None:
    with pytest.raises(PlanError) as refusal:
        partition(chain(3), **asked)

    assert fact in str(refusal.value)


def test_a_hundred_boundaries_take_milliseconds() -> None:
    drift = {
        (i, j): (j - i) ** 0.5 + (7 * i + 3 * j) % 11 / 11
        for i in range(101)
        for j in range(101)
        if i < j
    }
    problem = chain(100, drift=drift)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        partitions_by_count(problem)
        times.append(time.perf_counter() - start)

    assert min(times) < 0.25  # 0.02 on an idle core (benchmarks/planner.py); here cores are shared


def test_planning_loads_neither_torch_nor_a_solver() -> None:
    # The package's own door may load torch; the planner behind it must not need it.
    package = str(Path(synccache.__path__[0]))
    code = f"""
import sys, types
door = types.ModuleType("synccache")
door.__path__ = [{package!r}]
sys.modules["synccache"] = door
from synccache.planner import Gap, ChainProblem, parse_bytes, plan_chain
gap = Gap(name="a", labels="mlp", seconds=0.1, flops=1, held_bytes=8)
problem = ChainProblem(
    gaps=(gap,), lives=(), live_total=1, merged_bytes=((0, 8), (0, 0)), weights_bytes=1,
    activation_bytes=1, guidance_branches=1, dtype="float32", predictor="hold residual",
)
print(plan_chain(problem, policy="p", model="m", mem_budget=parse_bytes("1KB")))
heavy = {{"torch", "ortools", "sympy", "numpy", "networkx"}} & set(sys.modules)
assert not heavy, heavy
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
