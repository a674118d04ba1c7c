"""The schedule of regions over steps: equal to trying every one, and legal whatever is asked."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synccache.errors import PlanError
from synccache.planner.schedule import Schedule, schedule
from synccache.planner.schedule_problem import NOT_HELD, ScheduleProblem, SteppedRegion
from synccache.planner.solver import Proof
from synccache.planner.storage import AS_COMPUTED, Form, Place, Storage

HALF = Storage(name="float8", form=Form.FLOAT8, drift=0.25, seconds_per_gb=2e7)
HOST = Storage(name="host", place=Place.HOST, seconds_per_gb=5e7)
STORAGES = (AS_COMPUTED, HALF, HOST)


def upper_table(steps: int, values: list[float]) -> tuple[tuple[float, ...], ...]:
    rest = iter(values)
    return tuple(
        tuple(next(rest) if computed < step else 0.0 for step in range(steps))
        for computed in range(steps)
    )


@st.composite
def schedule_problems(draw: st.DrawFn) -> ScheduleProblem:
    """Two regions over at most five steps, so that every schedule can be tried."""
    steps = draw(st.integers(1, 5))
    cells = steps * (steps - 1) // 2
    drifts = st.lists(st.integers(0, 8).map(float), min_size=cells, max_size=cells)
    return ScheduleProblem(
        regions=tuple(
            SteppedRegion(
                name=f"blocks.{index}",
                seconds=draw(st.sampled_from([0.25, 1.0, 2.0])),
                held_bytes=draw(st.integers(1, 9)),
                drift=upper_table(steps, draw(drifts)),
                bytes_as=((Form.FLOAT8, draw(st.integers(1, 5))),),
            )
            for index in range(draw(st.integers(1, 2)))
        ),
        steps=steps,
        fixed_seconds_per_step=draw(st.sampled_from([0.0, 0.5])),
        warmup_steps=draw(st.integers(0, 2)),
        last_steps=draw(st.integers(0, 1)),
        max_gap=draw(st.integers(0, 4)),
    )


def legal_rows(problem: ScheduleProblem) -> list[tuple[int, ...]]:
    """The computed steps of one region, for every way that keeps the rules."""
    steps = range(problem.steps)
    rows = []
    for mask in product((True, False), repeat=problem.steps):
        computed = tuple(step for step in steps if mask[step])
        forced = {0, *steps[: problem.warmup_steps], *steps[problem.steps - problem.last_steps :]}
        longest = max((len(run) for run in "".join(".#"[on] for on in mask).split("#")), default=0)
        if forced <= set(computed) and longest <= problem.max_gap:
            rows.append(computed)
    return rows


def priced(
    problem: ScheduleProblem, index: int, computed: tuple[int, ...], storage: Storage
) -> tuple[float, float, int, int]:
    """(drift, seconds, device bytes, staged bytes) of one region, straight from the definitions."""
    region = problem.regions[index]
    drift, seconds = 0.0, len(computed) * region.seconds
    for step in range(problem.steps):
        if step not in computed:
            anchor = max(before for before in computed if before < step)
            drift += region.drift[anchor][step] + storage.drift
            seconds += storage.seconds(region.held_bytes)
    size = dict(region.bytes_as)[Form.FLOAT8] if storage is HALF else region.held_bytes
    skips = len(computed) < problem.steps
    held = size if skips and storage.place is Place.DEVICE else 0
    return drift, seconds, held, 2 * size if skips and storage is HOST else 0


def least_drift_by_trying_all(
    problem: ScheduleProblem, fraction: float, max_bytes: int | None
) -> float | None:
    options = [
        [
            priced(problem, index, row, storage)
            for row in legal_rows(problem)
            for storage in STORAGES
        ]
        for index in range(len(problem.regions))
    ]
    fixed = problem.steps * problem.fixed_seconds_per_step
    fitting = [
        sum(option[0] for option in chosen)
        for chosen in product(*options)
        if fixed + sum(option[1] for option in chosen)
        <= fraction * problem.full_seconds * (1 + 1e-9)
        and (
            max_bytes is None
            or sum(option[2] for option in chosen) + max(option[3] for option in chosen)
            <= max_bytes
        )
    ]
    return min(fitting, default=None)


@settings(max_examples=40, deadline=None)
@given(
    problem=schedule_problems(),
    fraction=st.sampled_from([0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0]),
    max_bytes=st.none() | st.integers(0, 18),
)
def test_the_schedule_equals_trying_every_schedule(
    problem: ScheduleProblem, fraction: float, max_bytes: int | None
) -> None:
    asked = {"compute_fraction": fraction, "max_bytes": max_bytes, "storages": STORAGES}
    expected = least_drift_by_trying_all(problem, fraction, max_bytes)

    if expected is None:
        with pytest.raises(PlanError, match=r"no schedule takes .* need"):
            schedule(problem, **asked, workers=1)
        return
    found = schedule(problem, **asked, workers=1)

    assert found.drift == pytest.approx(expected, abs=1e-6)
    assert found.solved.proof is Proof.OPTIMAL
    assert_keeps_its_word(problem, found)
    assert found.compute_fraction <= fraction * (1 + 1e-8)
    assert max_bytes is None or found.device_bytes <= max_bytes


def fastest_by_trying_all(
    problem: ScheduleProblem, max_drift: float, max_bytes: int | None
) -> tuple[float, float] | None:
    """(seconds, drift) of the fastest schedule within a drift, of those the one of least drift."""
    options = [
        [
            priced(problem, index, row, storage)
            for row in legal_rows(problem)
            for storage in STORAGES
        ]
        for index in range(len(problem.regions))
    ]
    fixed = problem.steps * problem.fixed_seconds_per_step
    fitting = [
        (round(fixed + sum(o[1] for o in chosen), 9), sum(o[0] for o in chosen))
        for chosen in product(*options)
        if sum(o[0] for o in chosen) <= max_drift + 1e-9
        and (
            max_bytes is None or sum(o[2] for o in chosen) + max(o[3] for o in chosen) <= max_bytes
        )
    ]
    return min(fitting, default=None)


@settings(max_examples=25, deadline=None)
@given(
    problem=schedule_problems(),
    max_drift=st.integers(0, 12),
    max_bytes=st.none() | st.integers(0, 18),
)
def test_the_fastest_schedule_within_a_drift_equals_trying_every_schedule(
    problem: ScheduleProblem, max_drift: int, max_bytes: int | None
) -> None:
    expected = fastest_by_trying_all(problem, max_drift, max_bytes)
    assert expected is not None
    found = schedule(
        problem, max_drift=float(max_drift), max_bytes=max_bytes, storages=STORAGES, workers=1
    )

    assert (found.seconds, found.drift) == pytest.approx(expected, abs=1e-6)
    assert_keeps_its_word(problem, found)


def test_a_schedule_is_asked_for_by_one_goal() -> None:
    for goals in ({}, {"compute_fraction": 0.5, "max_drift": 1.0}):
        with pytest.raises(PlanError, match="by compute_fraction or by max_drift, one of them"):
            schedule(two_regions(), **goals)


def assert_keeps_its_word(problem: ScheduleProblem, found: Schedule) -> None:
    """Every row keeps the rules and has the figures that its computed steps have."""
    for index, row in enumerate(found.rows):
        assert row.computed_steps in legal_rows(problem)
        figures = (row.drift, row.seconds, row.device_bytes, row.staged_bytes)
        assert figures == pytest.approx(priced(problem, index, row.computed_steps, row.storage))


def moving(name: str, *, speed: float, steps: int = 8) -> SteppedRegion:
    """A region whose residual drifts away at a constant speed."""
    return SteppedRegion(
        name=name,
        seconds=1.0,
        held_bytes=10,
        drift=tuple(
            tuple(max(0.0, speed * (step - computed)) for step in range(steps))
            for computed in range(steps)
        ),
    )


def two_regions(**rules: int) -> ScheduleProblem:
    return ScheduleProblem(
        regions=(moving("quick", speed=3.0), moving("slow", speed=1.0)),
        steps=8,
        fixed_seconds_per_step=0.0,
        **{"warmup_steps": 1, "last_steps": 0, "max_gap": 7, **rules},
    )


def test_steps_go_to_the_region_that_drifts_faster() -> None:
    found = schedule(two_regions(), compute_fraction=0.5)
    quick, slow = found.rows

    assert len(quick.computed_steps) + len(slow.computed_steps) == 8
    assert len(quick.computed_steps) > len(slow.computed_steps)


def test_a_schedule_prints_as_a_grid_with_its_proof() -> None:
    found = schedule(two_regions(warmup_steps=2, last_steps=1, max_gap=2), compute_fraction=0.75)
    lines = str(found).splitlines()

    assert lines[0] == "# computed   . skipped"
    assert lines[1].startswith("quick  ##") and lines[1].endswith("#")
    assert lines[2].startswith("slow   ##")
    assert lines[3].startswith("75.0% of the compute, predicted drift ")
    assert lines[4].startswith("optimal after ") and lines[4].endswith("gap 0.00%")


def test_seconds_that_storage_loses_count_as_compute() -> None:
    problem = ScheduleProblem(
        regions=(moving("only", speed=1.0),),
        steps=8,
        fixed_seconds_per_step=0.0,
        warmup_steps=1,
        last_steps=0,
        max_gap=7,
    )
    slow = HOST  # half a second for 10 bytes

    found = schedule(problem, compute_fraction=0.75, storages=(slow,))

    assert len(found.rows[0].computed_steps) == 4
    assert found.seconds == pytest.approx(4 * 1.0 + 4 * 0.5)


def test_a_region_without_room_is_computed_at_every_step() -> None:
    found = schedule(two_regions(), compute_fraction=0.75, max_bytes=10)
    storages = {row.name: row.storage for row in found.rows}

    assert sorted(storage.name for storage in storages.values()) == ["as computed", "not held"]
    assert storages["quick"] == NOT_HELD


def test_a_fraction_out_of_reach_is_refused_with_the_smallest_within_reach() -> None:
    problem = two_regions(warmup_steps=4, max_gap=1)

    with pytest.raises(PlanError) as refusal:
        schedule(problem, compute_fraction=0.5)

    assert "takes 50.00% of the compute: 4 warm-up steps, 0 last steps" in str(refusal.value)
    assert "at most 1 skipped in a row need 75.00%" in str(refusal.value)
    assert schedule(problem, compute_fraction=0.75).compute_fraction == pytest.approx(0.75)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0, float("nan")])
def test_a_compute_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(PlanError, match="compute_fraction must"):
        schedule(two_regions(), compute_fraction=fraction)


def test_drift_of_another_number_of_steps_is_refused() -> None:
    with pytest.raises(PlanError, match="has drift for 8 steps, the problem has 9"):
        ScheduleProblem(
            regions=(moving("quick", speed=1.0),),
            steps=9,
            fixed_seconds_per_step=0.0,
            warmup_steps=1,
            last_steps=0,
            max_gap=3,
        )


def test_a_large_schedule_is_legal_and_its_gap_says_how_good_it_is() -> None:
    regions = tuple(
        moving(f"blocks.{index}", speed=1 + index * 0.37, steps=40) for index in range(40)
    )
    problem = ScheduleProblem(
        regions=regions,
        steps=40,
        fixed_seconds_per_step=0.1,
        warmup_steps=4,
        last_steps=1,
        max_gap=6,
    )

    found = schedule(problem, compute_fraction=0.4, time_limit_seconds=2.0)

    assert found.compute_fraction <= 0.4 + 1e-8
    assert found.solved.bound <= found.drift * (1 + 1e-8)
    assert (found.solved.proof is Proof.OPTIMAL) == (found.solved.gap < 1e-6)
