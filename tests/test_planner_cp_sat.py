"""CP-SAT: equal to the dynamic program and to trying everything, also where storage is a choice."""

from dataclasses import replace
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from test_planner_chains import PAPER_DRIFT, all_cuts, chain, chain_problems, pairs
from test_planner_dynamic_program import best_by_trying_all, limits

from synccache.errors import PlanError
from synccache.planner import ChainProblem, partition
from synccache.planner.arcs import fewest_bytes
from synccache.planner.cp_sat import partition_cp_sat
from synccache.planner.problem import LowerOrder
from synccache.planner.solver import Proof, deadline, solve
from synccache.planner.storage import AS_COMPUTED, Form, Place, Storage

HALF = Storage(name="float8", form=Form.FLOAT8, drift=0.2)
TURNS = Storage(name="in turns", place=Place.TURNS, seconds_per_gb=0.03)
HOST = Storage(name="host", place=Place.HOST, seconds_per_gb=0.04)


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


CHOICES = (AS_COMPUTED, HALF, TURNS, HOST)


def with_choices(problem: ChainProblem, *, lower: bool = False) -> ChainProblem:
    """The problem, with float8 at half the bytes (rounded up) and, if asked, reuse of one tensor."""
    halves = tuple(tuple((size + 1) // 2 for size in row) for row in problem.merged_bytes)
    drift = problem.drift and tuple(tuple(2 * d for d in row) for row in problem.drift)
    order = LowerOrder(predictor="hold", tensors=1, drift=drift)
    orders = (order,) if lower and problem.tensors_per_segment > 1 else ()
    return replace(problem, bytes_as=((Form.FLOAT8, halves),), lower_orders=orders)


def kept(problem: ChainProblem, i: int, j: int, how: Storage, lower: bool) -> tuple[float, ...]:
    """(drift, seconds, device bytes, staged bytes) of one segment, straight from the definitions."""
    tensors = 1 if lower else problem.tensors_per_segment
    size = problem.merged_bytes[i][j] * tensors
    stored = (problem.merged_bytes[i][j] + 1) // 2 * tensors if how is HALF else size
    copies = {Place.DEVICE: problem.guidance_branches, Place.TURNS: 1, Place.HOST: 0}[how.place]
    drift = problem.segment_drift(i, j) + how.drift
    if lower:
        drift = drift + 1.0 if problem.drift is None else 2 * problem.drift[i][j] + how.drift
    lost = how.seconds_per_gb * size / 10**9
    return drift, lost, stored * copies, 2 * stored if how is HOST else 0


def best_storage_by_trying_all(
    problem: ChainProblem, max_bytes: int, seconds_price: float
) -> tuple[int, float] | None:
    """(segments, cost) over every partition, every storage and predictor of every segment."""
    lowers = (False, True) if problem.lower_orders else (False,)
    ranked = []
    for cuts in all_cuts(problem):
        options = [
            [kept(problem, i, j, how, lower) for how in CHOICES for lower in lowers]
            for i, j in pairwise(cuts)
        ]
        for chosen in product(*options):
            drifts, losses, sizes, staged = zip(*chosen, strict=True)
            if sum(sizes) + max(staged) <= max_bytes:
                ranked.append((1 - len(cuts), sum(drifts) + seconds_price * sum(losses)))
    return (-min(ranked)[0], min(ranked)[1]) if ranked else None


@settings(max_examples=15, deadline=None)
@given(
    problem=chain_problems(least_gaps=1, most_gaps=3),
    max_bytes=st.integers(0, 60),
    seconds_price=st.sampled_from([0.0, 1e8, 1e10]),
    lower=st.booleans(),
)
def test_the_choice_of_storage_and_predictor_equals_trying_everything(
    problem: ChainProblem, max_bytes: int, seconds_price: float, lower: bool
) -> None:
    problem = with_choices(problem, lower=lower)
    expected = best_storage_by_trying_all(problem, max_bytes, seconds_price)
    asked = {"max_bytes": max_bytes, "storages": CHOICES, "seconds_price": seconds_price}

    if expected is None:
        with pytest.raises(PlanError, match="no partition into"):
            partition_cp_sat(problem, **asked, workers=1)
        assert min(fewest_bytes(problem, CHOICES).values()) > max_bytes
        return
    found = partition_cp_sat(problem, **asked, workers=1)

    assert len(found.storages) == len(found.partition.segments) == expected[0]
    assert found.drift + seconds_price * found.seconds_lost == pytest.approx(expected[1], abs=1e-6)
    assert found.device_bytes + found.staging_bytes <= max_bytes
    fitting = [k for k, size in fewest_bytes(problem, CHOICES).items() if size <= max_bytes]
    assert max(fitting) == expected[0]


def test_a_cheaper_storage_buys_more_segments() -> None:
    problem = with_choices(chain(4, drift=PAPER_DRIFT, sizes=1000, guidance_branches=1))

    plain = partition_cp_sat(problem, max_bytes=2000)
    stored = partition_cp_sat(problem, max_bytes=2000, storages=(AS_COMPUTED, HALF))

    assert (plain.partition.cuts, plain.drift) == ((0, 2, 4), pytest.approx(0.60))
    assert stored.partition.cuts == (0, 1, 2, 3, 4)
    assert stored.storages == (HALF,) * 4
    assert (stored.device_bytes, stored.drift) == (2000, pytest.approx(0.80 + 4 * 0.2))


def test_a_lower_order_buys_more_segments_and_only_where_it_must() -> None:
    plain = chain(4, drift=PAPER_DRIFT, sizes=1000, guidance_branches=1, tensors_per_segment=2)
    problem = with_choices(plain, lower=True)

    found = partition_cp_sat(problem, max_bytes=6000)

    assert len(found.arcs) == 4
    assert [arc.tensors for arc in found.arcs] == [1, 2, 1, 2]  # of the least drifts 0.1, 0.4, 0.1
    assert found.drift == pytest.approx(0.80 + 0.1 + 0.1)


def test_of_equal_drift_the_storage_that_loses_fewest_seconds_is_taken() -> None:
    problem = chain(3, sizes=1000, guidance_branches=2, drift=dict.fromkeys(pairs(3), 0.1))

    found = partition_cp_sat(problem, max_bytes=4000, storages=(HOST, TURNS, AS_COMPUTED))

    assert len(found.arcs) == 3
    assert sorted(s.name for s in found.storages) == ["as computed", "in turns", "in turns"]
    assert found.host_bytes == 4000


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

    found = partition_cp_sat(problem, max_bytes=6 * 10**9, storages=(HOST,))

    assert found.seconds_lost == pytest.approx(2 * 3 * 0.04)
    assert (found.device_bytes, found.host_bytes) == (0, 12 * 10**9)
    assert found.staging_bytes == 6 * 10**9  # the region in use and the next, 3 tensors each


def test_copies_back_from_the_host_need_room_too() -> None:
    with pytest.raises(PlanError, match=r"fits 5999999999 bytes .* with storage host"):
        partition_cp_sat(
            chain(2, sizes=10**9, tensors_per_segment=3), max_bytes=6 * 10**9 - 1, storages=(HOST,)
        )


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
        ({"form": "float8"}, "storage 'x' needs a Form and a Place, not 'float8'"),
        ({"drift": -1.0}, "drift of storage 'x' must be"),
        ({"seconds_per_gb": float("nan")}, "seconds_per_gb of storage 'x'"),
    ],
)
def test_a_storage_with_impossible_figures_is_refused(values: dict[str, float], fact: str) -> None:
    with pytest.raises(PlanError) as refusal:
        Storage(name="x", **values)

    assert fact in str(refusal.value)


def test_a_form_that_the_problem_has_no_bytes_for_is_refused() -> None:
    with pytest.raises(PlanError, match="does not say how many bytes its residuals take as float8"):
        partition_cp_sat(chain(2), storages=(HALF,))


def test_no_storage_at_all_is_refused() -> None:
    with pytest.raises(PlanError, match="storages must name at least one"):
        partition_cp_sat(chain(2), storages=())
