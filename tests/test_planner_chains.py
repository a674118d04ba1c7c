"""Chain problems: how tests build them, at random and by hand, and what is refused as a problem."""

from collections.abc import Collection
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synccache.errors import PlanError
from synccache.planner import (
    ChainProblem,
    DriftSource,
    Gap,
    Live,
    parse_bytes,
    segment_table,
    segments_for_ratio,
)

UNHURRIED = settings(deadline=None)
"""Two shared cores: a slow example says nothing about the code."""


def chain(
    gap_count: int,
    *,
    sizes: object = 1000,
    drift: object = None,
    counts: object = 1,
    tail_lives: int = 0,
    guidance_branches: int = 2,
    tensors_per_segment: int = 1,
    borders: Collection[int] = (),
) -> ChainProblem:
    """A problem; sizes and drift are a number or a mapping {(first, end): number}.

    `borders` are the live groups that may not be absorbed.
    """
    merged = segment_table(
        gap_count, lambda first, end: sizes[first, end] if isinstance(sizes, dict) else sizes
    )
    gaps = tuple(
        Gap(
            name=f"blocks.{index}",
            labels="self-attention, mlp",
            seconds=0.01 * (index + 1),
            flops=10**9,
            held_bytes=merged[index][index + 1],
        )
        for index in range(gap_count)
    )
    lives = tuple(
        Live(
            name=f"audio.{index}",
            count=counts[index] if isinstance(counts, list) else counts,
            seconds=0.001,
            flops=10**6,
            bytes=10**3,
            absorbable=index not in borders,
        )
        for index in range(max(0, gap_count - 1))
    )
    return ChainProblem(
        gaps=gaps,
        lives=lives,
        live_total=sum(live.count for live in lives) + tail_lives,
        merged_bytes=merged,
        weights_bytes=50_000,
        activation_bytes=7_000,
        guidance_branches=guidance_branches,
        dtype="float32",
        predictor="hold residual",
        tensors_per_segment=tensors_per_segment,
        fixed_bytes_per_branch=300,
        shared_bytes=400,
        drift=None
        if drift is None
        else segment_table(gap_count, lambda first, end: drift[first, end]),
        drift_source=DriftSource.ASSUMED if drift is None else DriftSource.CALIBRATION,
    )


PAPER_DRIFT = {
    (0, 1): 0.10,
    (1, 2): 0.40,
    (2, 3): 0.10,
    (3, 4): 0.20,
    (0, 2): 0.35,
    (1, 3): 0.30,
    (2, 4): 0.25,
    (0, 3): 0.50,
    (1, 4): 0.60,
    (0, 4): 0.80,
}
"""The worked example of reference/policies.md, 3.2(d)."""


def pairs(gap_count: int) -> list[tuple[int, int]]:
    return list(combinations(range(gap_count + 1), 2))


@st.composite
def chain_problems(
    draw: st.DrawFn, *, least_gaps: int = 0, most_gaps: int = 6, one_size: bool | None = None
) -> ChainProblem:
    """Problems small enough to try every partition: drifts and sizes with ties, zeros and none."""
    gap_count = draw(st.integers(least_gaps, most_gaps))
    segments = pairs(gap_count)
    if one_size is None:
        one_size = draw(st.booleans())
    size = st.integers(1, 9)
    sizes = draw(size) if one_size else {pair: draw(size) for pair in segments}
    amount = st.one_of(st.integers(0, 4).map(float), st.floats(0, 10, allow_subnormal=False))
    drift = {pair: draw(amount) for pair in segments} if draw(st.booleans()) else None
    return chain(
        gap_count,
        sizes=sizes,
        drift=drift,
        counts=[draw(st.integers(0, 3)) for _ in range(max(0, gap_count - 1))],
        tail_lives=draw(st.integers(0, 3)),
        guidance_branches=draw(st.integers(1, 3)),
        tensors_per_segment=draw(st.integers(1, 3)),
        borders=draw(st.just(()) | st.sets(st.integers(0, most_gaps), max_size=3)),
    )


def all_cuts(problem: ChainProblem) -> list[tuple[int, ...]]:
    """The cuts of every partition there is."""
    gap_count = len(problem.gaps)
    if gap_count == 0:
        return [(0,)]
    borders = {index + 1 for index, live in enumerate(problem.lives) if not live.absorbable}
    return [
        (0, *chosen, gap_count)
        for count in range(gap_count)
        for chosen in combinations(range(1, gap_count), count)
        if borders <= set(chosen)
    ]


def total_bytes(problem: ChainProblem, cuts: tuple[int, ...]) -> int:
    copies = problem.guidance_branches * problem.tensors_per_segment
    return copies * sum(problem.merged_bytes[i][j] for i, j in pairwise(cuts))


def total_cost(problem: ChainProblem, cuts: tuple[int, ...], price: float = 0.0) -> float:
    cost = 0.0
    for first, end in pairwise(cuts):
        absorbed = sum(live.count for live in problem.lives[first : end - 1])
        drift = (
            absorbed * (absorbed + 1) / 2 if problem.drift is None else problem.drift[first][end]
        )
        cost += drift + price * absorbed
    return cost


def test_a_segment_absorbs_the_live_groups_inside_it() -> None:
    problem = chain(4, counts=[1, 2, 4])

    assert [live.name for live in problem.absorbed(1, 4)] == ["audio.1", "audio.2"]
    assert problem.absorbed_count(1, 4) == 6
    assert problem.absorbed(2, 3) == ()


def test_a_skipped_segment_saves_its_gaps_and_what_it_absorbs() -> None:
    problem = chain(3)

    assert problem.segment_seconds(0, 3) == pytest.approx(0.01 + 0.02 + 0.03 + 2 * 0.001)


def test_unmeasured_drift_counts_the_nth_absorbed_audio_branch_n_times() -> None:
    problem = chain(3, counts=[2, 3])

    assert problem.segment_drift(0, 3) == 1 + 2 + 3 + 4 + 5
    assert problem.segment_drift(1, 2) == 0.0


def test_residual_bytes_count_every_guidance_branch_and_the_whole_history() -> None:
    problem = chain(2, sizes=10, guidance_branches=3, tensors_per_segment=4)

    assert problem.residual_bytes(0, 2) == 120


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.0, 12), (0.4, 4), (0.1, 1), (0.01, 1), (0.5, 6), (0.99, 11)]
)
def test_a_cache_ratio_stands_for_a_number_of_segments(ratio: float, expected: int) -> None:
    problem = chain(13)

    assert problem.live_total == 12
    assert segments_for_ratio(problem, ratio) == expected


def test_a_cache_ratio_means_the_decimal_it_prints_as() -> None:
    problem = chain(101)

    assert 100 * 0.29 < 29
    assert segments_for_ratio(problem, 0.29) == 29


def test_a_cache_ratio_never_asks_for_more_segments_than_gaps() -> None:
    assert segments_for_ratio(chain(2, tail_lives=50), 1.0) == 2
    assert segments_for_ratio(chain(0, tail_lives=5), 1.0) == 0


@pytest.mark.parametrize(
    "ratio", [0, 0.0, -0.1, 1.0001, 40, float("nan"), float("inf"), True, "0.4"]
)
def test_a_cache_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match=r"cache_ratio must lie in \(0, 1\], not"):
        segments_for_ratio(chain(3), ratio)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"lives": ()}, "3 gaps have 2 live groups between them, but 0 were given"),
        ({"live_total": 1}, "live_total must be a whole number of at least 2, not 1"),
        ({"guidance_branches": 0}, "guidance_branches must be a whole number of at least 1, not 0"),
        ({"tensors_per_segment": True}, "tensors_per_segment must be a whole number"),
        ({"weights_bytes": -1}, "weights_bytes must be a whole number of at least 0, not -1"),
        ({"activation_bytes": 1.5}, "activation_bytes must be a whole number"),
        ({"dtype": " "}, "dtype must be a text that is not empty"),
        ({"merged_bytes": ((0, 1), (0, 0))}, "merged_bytes must be 4 rows of 4 for 3 gaps"),
        ({"merged_bytes": segment_table(3, lambda i, j: 7)}, "alone holds 1000 bytes, but"),
        (
            {"drift": segment_table(3, lambda i, j: 1.0)},
            "a drift table was given with drift_source",
        ),
        ({"drift_source": DriftSource.WARM_UP}, "no drift was given with drift_source 'warm-up'"),
        ({"drift_source": "warm-up"}, "drift_source must be a DriftSource"),
    ],
)
def test_a_problem_that_contradicts_itself_is_refused(change: dict[str, object], fact: str) -> None:
    with pytest.raises(PlanError) as refusal:
        replace(chain(3), **change)

    assert fact in str(refusal.value)


@pytest.mark.parametrize("drift", [-0.1, float("nan"), float("inf"), "0.1"])
def test_a_drift_that_is_no_amount_is_refused(drift: float) -> None:
    with pytest.raises(PlanError, match=r"drift\[0\]\[1\] must be"):
        chain(1, drift={(0, 1): drift})


def test_a_table_entry_that_belongs_to_no_segment_must_be_zero() -> None:
    problem = chain(1)

    with pytest.raises(PlanError, match=r"merged_bytes\[1\]\[0\] must be 0"):
        replace(problem, merged_bytes=((0, 1000), (5, 0)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5GB", 1_500_000_000),
        (" 1.5 gb ", 1_500_000_000),
        ("512 MiB", 512 * 2**20),
        ("3KB", 3000),
        ("3KiB", 3072),
        ("2TB", 2 * 10**12),
        ("2TiB", 2 * 2**40),
        ("7B", 7),
        ("7", 7),
        (7, 7),
        ("0.1GB", 10**8),
    ],
)
def test_amounts_of_memory_are_read_exactly(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


NO_AMOUNTS = [
    "24 gigs",
    "-1",
    "",
    "GB",
    "24GBs",
    "1e9",
    "1,5GB",
    "0",
    "0.1B",
    "nan",
    "24 G B",
    "٣GB",
]
NO_AMOUNTS_EITHER = [-1, 0, True, False, None, 1.5, float("nan"), b"24GB", "24GB\n24GB"]


@pytest.mark.parametrize("amount", [*NO_AMOUNTS, *NO_AMOUNTS_EITHER])
def test_anything_else_is_named_and_the_accepted_forms_are_shown(amount: object) -> None:
    with pytest.raises(PlanError) as refusal:
        parse_bytes(amount)

    assert repr(amount) in str(refusal.value)
    assert '"24GB", "24GiB"' in str(refusal.value)


@UNHURRIED
@given(st.integers(1, 10**15))
def test_a_whole_number_of_bytes_reads_back_as_itself(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == parse_bytes(f"{size}B") == size


@UNHURRIED
@given(problem=chain_problems())
def test_the_fewest_segments_are_those_of_the_coarsest_partition(problem: ChainProblem) -> None:
    assert problem.fewest_segments == min(len(cuts) - 1 for cuts in all_cuts(problem))


def test_a_ratio_never_asks_for_fewer_segments_than_borders_leave() -> None:
    assert segments_for_ratio(chain(6, borders=[1, 3]), 0.01) == 3


def test_a_live_group_that_may_not_be_absorbed_is_a_border() -> None:
    problem = chain(4, borders=[1])

    assert problem.is_segment(0, 2)
    assert problem.is_segment(2, 4)
    assert not problem.is_segment(1, 3)
    assert not problem.is_segment(2, 2)
