"""How long planning takes: `python benchmarks/planner.py`.

The aims: 100 boundaries and all budgets in less than 50 ms; 60 regions, 50 steps and three storages
proven best within 30 s on two cores, or the gap reported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from synccache.planner import (
    ChainProblem,
    DriftSource,
    Gap,
    Live,
    fewest_residual_bytes,
    partition,
    partitions_by_count,
    plan_chain,
    segment_table,
)
from synccache.planner.cp_sat import partition_cp_sat
from synccache.planner.schedule import schedule
from synccache.planner.schedule_problem import ScheduleProblem, SteppedRegion
from synccache.planner.solver import Solved
from synccache.planner.storage import AS_COMPUTED, FLOAT8, HOST, Form


def chain_problem(gap_count: int, *, sizes: tuple[int, ...], seed: int = 0) -> ChainProblem:
    """Random drifts; the residual of a segment has one of `sizes`."""
    draw = random.Random(seed)
    merged = segment_table(gap_count, lambda first, end: draw.choice(sizes))
    gaps = tuple(
        Gap(
            name=f"blocks.{index}",
            labels="self-attention, mlp",
            seconds=0.04,
            flops=10**12,
            held_bytes=merged[index][index + 1],
        )
        for index in range(gap_count)
    )
    lives = tuple(
        Live(name=f"audio.{index}", count=1, seconds=0.001, flops=10**9, bytes=1000)
        for index in range(gap_count - 1)
    )
    return ChainProblem(
        gaps=gaps,
        lives=lives,
        live_total=gap_count,
        merged_bytes=merged,
        weights_bytes=10**6,
        activation_bytes=10**6,
        guidance_branches=2,
        dtype="bfloat16",
        predictor="hold residual",
        bytes_as=((Form.FLOAT8, tuple(tuple((size + 1) // 2 for size in row) for row in merged)),),
        drift=segment_table(gap_count, lambda first, end: (end - first) ** 0.5 + draw.random()),
        drift_source=DriftSource.CALIBRATION,
    )


def best_milliseconds(run: Callable[[], object], *, repeats: int = 5) -> float:
    """CPU time of the shortest of a few runs: what the code costs, whatever else the machine does."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def schedule_problem(region_count: int, steps: int, *, seed: int = 0) -> ScheduleProblem:
    """Regions that drift along random paths; five warm-up steps, at most six skipped in a row."""
    draw = random.Random(seed)

    def region(index: int) -> SteppedRegion:
        speed = draw.uniform(0.2, 2.0)
        walk = [speed * draw.uniform(0.5, 1.5) for _ in range(steps)]
        position = [sum(walk[:step]) for step in range(steps)]
        return SteppedRegion(
            name=f"blocks.{index}",
            seconds=draw.uniform(0.5, 1.5),
            held_bytes=10**9,
            bytes_as=((Form.FLOAT8, 5 * 10**8),),
            drift=tuple(
                tuple(max(0.0, position[step] - position[computed]) for step in range(steps))
                for computed in range(steps)
            ),
        )

    return ScheduleProblem(
        regions=tuple(region(index) for index in range(region_count)),
        steps=steps,
        fixed_seconds_per_step=1.0,
        warmup_steps=5,
        last_steps=1,
        max_gap=6,
    )


def report_solver(name: str, solved: Solved) -> None:
    print(f"{name:45}  {solved.seconds:8.2f} s   {solved.proof.value}, gap {solved.gap:.3%}")


def main() -> None:
    one_size = chain_problem(100, sizes=(1000,))
    streams = chain_problem(100, sizes=(1000, 1300))
    every_size = chain_problem(40, sizes=tuple(range(1000, 2000)))
    rows = {
        "100 gaps, one size, all numbers of segments": lambda: partitions_by_count(one_size),
        "100 gaps, one size, one budget": lambda: partition(one_size, max_bytes=60 * 2000),
        "100 gaps, one size, whole plan": lambda: plan_chain(
            one_size, policy="p", model="m", mem_budget=2 * 10**6 + 60 * 2000
        ),
        "100 gaps, two sizes, one budget": lambda: partition(
            streams, max_bytes=fewest_residual_bytes(streams) + 70 * 2150
        ),
        "40 gaps, a thousand sizes, one budget": lambda: partition(every_size, max_bytes=30 * 2500),
    }
    for name, run in rows.items():
        print(f"{name:45}  {best_milliseconds(run):8.1f} ms")
    storages = (
        AS_COMPUTED,
        FLOAT8,
        HOST,
    )
    stored = partition_cp_sat(
        chain_problem(60, sizes=(1000, 1300)),
        max_bytes=40 * 2000,
        storages=storages,
        time_limit_seconds=30.0,
    )
    report_solver("CP-SAT: 60 gaps, three storages, one budget", stored.solved)
    planned = schedule(
        schedule_problem(60, 50),
        compute_fraction=0.3,
        max_bytes=30 * 10**9,
        storages=storages,
        time_limit_seconds=30.0,
    )
    report_solver("CP-SAT: 60 regions, 50 steps, three storages", planned.solved)


if __name__ == "__main__":
    main()
