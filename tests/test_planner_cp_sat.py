"""CP-SAT: equal to the dynamic program and to trying everything, also where storage is a choice."""

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from test_planner_chains import PAPER_DRIFT, all_cuts, chain, chain_problems
from test_planner_dynamic_program import best_by_trying_all, limits

from synccache.errors import PlanError
from synccache.planner import ChainProblem, partition
from synccache.planner.cp_sat import AS_COMPUTED, Storage, partition_cp_sat
from synccache.planner.solver import Proof, deadline, solve

HALF = Storage(name="float8", device_share=0.5, drift=0.2)
HOST = Storage(name="host", device_share=0.0, seconds_per_gb=0.04)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), problem=chain_problems(least_gaps=1, most_gaps=5))
def test_cp_sat_equals_the_dynamic_program_and_trying_everything(
    data: st.DataObject, problem: ChainProblem
) -> None:
    asked = data.draw(limits(problem))
    expected = best_by_trying_all(problem, **asked)

    if expected is None:
        with pytest.raises(PlanError, match="no partition into"):
            partition_cp_sat(problem, **asked, workers=1)
        return
    solved = partition_cp_sat(problem, **asked, workers=1)
    exact = partition(problem, **asked)
    price = asked["absorbed_price"]
    found = [
        (len(p.segments), p.drift + price * p.absorbed_count) for p in (solved.partition, exact)
    ]

    assert found[0] == (expected[0], pytest.approx(expected[1], abs=1e-6))
    assert found[1] == (expected[0], pytest.approx(expected[1], abs=1e-6))
    assert (solved.solved.proof, solved.solved.gap) == (Proof.OPTIMAL, pytest.approx(0, abs=1e-6))


def best_storage_by_trying_all(
    problem: ChainProblem, max_bytes: int, seconds_price: float
) -> tuple[int, float] | None:
    """(segments, cost) over every partition and every storage of every segment."""
    ranked = []
    for cuts in all_cuts(problem):
        segments = list(pairwise(cuts))
        for storages in product((AS_COMPUTED, HALF, HOST), repeat=len(segments)):
            pairs = list(zip(segments, storages, strict=True))
            held = sum(s.device_bytes(problem.residual_bytes(i, j)) for (i, j), s in pairs)
            if held > max_bytes:
                continue
            lost = sum(
                s.seconds(problem.held_bytes(i, j) * problem.tensors_per_segment)
                for (i, j), s in pairs
            )
            drift = sum(problem.segment_drift(i, j) + s.drift for (i, j), s in pairs)
            ranked.append((-len(segments), drift + seconds_price * lost))
    return (-min(ranked)[0], min(ranked)[1]) if ranked else None


@settings(max_examples=15, deadline=None)
@given(
    problem=chain_problems(least_gaps=1, most_gaps=4),
    max_bytes=st.integers(0, 60),
    seconds_price=st.sampled_from([0.0, 1e8, 1e10]),
)
def test_the_choice_of_storage_equals_trying_everything(
    problem: ChainProblem, max_bytes: int, seconds_price: float
) -> None:
    segments, cost = best_storage_by_trying_all(problem, max_bytes, seconds_price)

    found = partition_cp_sat(
        problem,
        max_bytes=max_bytes,
        storages=(AS_COMPUTED, HALF, HOST),
        seconds_price=seconds_price,
        workers=1,
    )

    assert len(found.storages) == len(found.partition.segments) == segments
    assert found.drift + seconds_price * found.seconds_lost == pytest.approx(cost, abs=1e-6)
    assert found.device_bytes <= max_bytes


def test_a_cheaper_storage_buys_more_segments() -> None:
    problem = chain(4, drift=PAPER_DRIFT, sizes=1000, guidance_branches=1)

    plain = partition_cp_sat(problem, max_bytes=2000)
    stored = partition_cp_sat(problem, max_bytes=2000, storages=(AS_COMPUTED, HALF))

    assert (plain.partition.cuts, plain.drift) == ((0, 2, 4), pytest.approx(0.60))
    assert stored.partition.cuts == (0, 1, 2, 3, 4)
    assert stored.storages == (HALF,) * 4
    assert (stored.device_bytes, stored.drift) == (2000, pytest.approx(0.80 + 4 * 0.2))


def test_cp_sat_joins_nothing_across_a_border() -> None:
    drift = {(i, j): float(j - i != 3) for j in range(5) for i in range(j)}
    free, bordered = chain(4, drift=drift), chain(4, drift=drift, borders=[1])

    assert partition_cp_sat(free, segments=2, exactly=True).drift == 1.0
    assert partition_cp_sat(bordered, segments=2, exactly=True).partition.cuts == (0, 2, 4)


def test_a_price_on_seconds_keeps_residuals_on_the_device() -> None:
    problem = chain(2, sizes=10**9, drift={(0, 1): 0.1, (1, 2): 0.1, (0, 2): 0.5})
    roomy = 4 * 10**9

    found = partition_cp_sat(
        problem, max_bytes=roomy, storages=(HOST, AS_COMPUTED), seconds_price=1.0
    )

    assert found.storages == (AS_COMPUTED, AS_COMPUTED)
    assert found.seconds_lost == 0


def test_seconds_lost_count_one_forward_of_one_branch() -> None:
    problem = chain(2, sizes=10**9, guidance_branches=2, tensors_per_segment=3)

    found = partition_cp_sat(problem, max_bytes=0, storages=(HOST,))

    assert found.seconds_lost == pytest.approx(2 * 3 * 0.04)
    assert found.device_bytes == 0


def test_a_chain_without_gaps_needs_no_solver() -> None:
    found = partition_cp_sat(chain(0))

    assert (found.partition.cuts, found.storages, found.solved.proof) == (
        (0,),
        (),
        Proof.OPTIMAL,
    )


def test_a_time_limit_of_nothing_is_refused_and_says_so() -> None:
    drift = {(i, j): ((7 * i + 5 * j) % 13) / 13 for j in range(31) for i in range(j)}
    problem = chain(30, drift=drift)

    with pytest.raises(PlanError, match=r"CP-SAT found no plan in .* s, and no proof"):
        partition_cp_sat(problem, max_bytes=20_000, time_limit_seconds=0.0)


def ruler(marks: int) -> cp_model.CpModel:
    """The shortest ruler whose marks all lie at different distances: easy to find, hard to prove."""
    model = cp_model.CpModel()
    at = [model.new_int_var(0, marks**2, f"mark {index}") for index in range(marks)]
    model.add(at[0] == 0)
    for before, after in pairwise(at):
        model.add(before < after)
    distances = [right - left for left, right in combinations(at, 2)]
    model.add_all_different(distances)
    model.minimize(at[-1])
    return model


def test_at_the_time_limit_the_best_found_is_returned_with_its_gap() -> None:
    answer = solve(ruler(14), deadline(1.5, workers=2))

    assert answer is not None
    assert answer.solved.proof is Proof.TIME_LIMIT
    assert 0 < answer.solved.gap < 1
    assert answer.solved.seconds < 30


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"device_share": 1.5}, "device_share of 'x' must be at most 1"),
        ({"device_share": -0.5}, "device_share of 'x' must be a finite number of at least 0"),
        ({"device_share": 0.5, "drift": -1.0}, "drift of storage 'x' must be"),
        ({"device_share": 0.5, "seconds_per_gb": float("nan")}, "seconds_per_gb of storage 'x'"),
    ],
)
def test_a_storage_with_impossible_figures_is_refused(values: dict[str, float], fact: str) -> None:
    with pytest.raises(PlanError) as refusal:
        Storage(name="x", **values)

    assert fact in str(refusal.value)


def test_no_storage_at_all_is_refused() -> None:
    with pytest.raises(PlanError, match="storages must name at least one"):
        partition_cp_sat(chain(2), storages=())
