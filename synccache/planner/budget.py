"""A budget that does not fit: the smallest that does, what takes the space, and the ways out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synccache.errors import PlanError
from synccache.planner.arcs import fewest_bytes
from synccache.planner.dynamic_program import fewest_residual_bytes
from synccache.planner.problem import ChainProblem
from synccache.planner.quantities import counted, format_bytes
from synccache.planner.storage import AS_COMPUTED, FLOAT8, FLOAT8_HOST, HOST, TURNS, Storage

OTHER_STORAGES = (FLOAT8, TURNS, HOST, FLOAT8_HOST)
"""What a way out may ask for, from what loses least to what takes least."""


def check_budget(
    problem: ChainProblem, count: int, budget: int, storages: Sequence[Storage]
) -> None:
    """Nothing, where some partition into at most `count` segments fits `budget` bytes.

    Raises:  PlanError with the smallest budget that works, its parts, and what would need less.
    """
    room = budget - problem.bytes_without_residuals
    if AS_COMPUTED in storages and fewest_residual_bytes(problem, segments=count) <= room:
        return
    segments, residuals = _least(problem, count, storages)
    needed = problem.bytes_without_residuals + residuals
    if needed <= budget:
        return
    parts = {
        "weights": problem.weights_bytes,
        "activations at their peak": problem.activation_bytes,
        "residuals": residuals,
        "step-invariant values": problem.invariant_bytes,
        "probe, masks and constants": problem.shared_bytes,
    }
    taken = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    raise PlanError(
        f"the budget of {_exactly(budget)} is below the {_exactly(needed)} needed at least: {taken}"
        f" ({counted(problem.guidance_branches, 'guidance branch', 'guidance branches')}, "
        f"{counted(segments, 'region')}, "
        f"{counted(problem.tensors_per_segment, 'held tensor')} for each)",
        hint=" ".join(_ways_out(problem, count, residuals, budget, storages)),
    )


def _least(problem: ChainProblem, count: int, storages: Sequence[Storage]) -> tuple[int, int]:
    """(segments, device bytes) of the partition of at most `count` segments that takes least."""
    fewest = fewest_bytes(problem, storages)
    return min(
        ((k, size) for k, size in fewest.items() if k <= count), key=lambda row: row[1],
        default=(0, 0),
    )  # fmt: skip


def _ways_out(
    problem: ChainProblem, count: int, residuals: int, budget: int, storages: Sequence[Storage]
) -> list[str]:
    """Sentences, each with its figure, of what would help; nothing that does not exist."""
    fixed = problem.bytes_without_residuals
    needed = fixed + residuals
    ways = [f"Raise mem_budget to {needed}."]

    def offer(what: str, size: int) -> None:
        if size < needed:
            fits = "fits" if size <= budget else "does not fit either"
            ways.append(f"{what} needs {_exactly(size)}: {fits}.")

    possible = {form for form, _ in problem.bytes_as}
    for storage in OTHER_STORAGES:
        if storage not in storages and (storage.form in possible or storage in (TURNS, HOST)):
            _, size = _least(problem, count, (*storages, storage))
            offer(f'storages=("as computed", "{storage.name}")', fixed + size)
    if problem.tensors_per_segment > 1 and not problem.lower_orders:
        one = replace(problem, tensors_per_segment=1)
        offer("A predictor that holds 1 tensor", fixed + _least(one, count, storages)[1])
    joined = replace(problem, lives=tuple(replace(live, absorbable=True) for live in problem.lives))
    offer(
        "A policy that lets the planner join regions, skip=segments(...), or a lower cache_ratio",
        fixed + _least(joined, len(problem.gaps), storages)[1],
    )
    exact = problem.weights_bytes + problem.activation_bytes + problem.invariant_bytes
    offer('policy="exact", which holds no residual,', exact)
    room = budget - problem.weights_bytes
    if room <= 0:
        ways.append("The weights alone fill the budget: load them in a smaller dtype.")
    else:
        percent = 100 * room // (needed - problem.weights_bytes)
        ways.append(
            f"A smaller resolution or fewer frames: about {percent}% of the present tokens fit, "
            "if everything but the weights grows with their number."
        )
    return ways


def _exactly(size: int) -> str:
    return f"{format_bytes(size)} ({size} bytes)"
