"""Which steps to compute: the best ones for a predictor, by exact dynamic programming.

What a skipped step t adds is predicted from the last computed steps. Between two computed steps a and
b the sampler integrates the errors with its own step sizes, and errors of opposite sign cancel, so the
price of a segment is the length of the *signed sum*

    error(a', a, b) = | sum over t in (a, b) of  w_t (r_predicted(t) - r_t) |,
    w_t = dsigma_t (1 - sigma_(t+1)) ** -early

(an error made early grows on its way to the end). With payback of strength s the segment keeps
``(1 - s) predicted + s interpolated`` at its end, and a share of the predicted error, which the steps
inside have already seen. The state of the recursion is the last computed steps that a prediction
reads: one, two or three. One table answers every number of computed steps.

Source: the idea of linear multistep methods, and of the corrector of UniPC (arXiv 2302.04867), inside
a cached trajectory; figures in docs/benchmarks.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf

import numpy as np

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_count
from synccache.planner.residual_gram import Matrix, ResidualGram
from synccache.planner.step_plan import Coefficients, StepPlan

RIDGE = 1e-4
"""Of the fit, relative to the mean square of the differences that it mixes."""
EXTRAPOLATION_SHARE = 0.3
"""What the extrapolation error counts beside the interpolation error, where there is payback."""
EARLY = 0.5
"""An error at noise level sigma grows by (1 - sigma) ** -EARLY until the end. 0 for errors that stay
as they are, 1 for errors in proportion to the signal; measured on the portrait model: about 0.5."""
MAX_STATE = 3  # computed steps that a price can depend on
_MOST_STEPS = {1: 400, 2: 200, 3: 64}  # beyond these a table takes minutes


_COUNTS = {
    "reuse": 1,
    "linear": 2,
    "fitted, 2 terms": 2,
    "fitted, 3 terms": 3,
    "fitted, 4 terms": 4,
}


class Terms(enum.Enum):
    """What a skipped residual is made of."""

    REUSE = "reuse"
    LINEAR = "linear"
    FITTED_2 = "fitted, 2 terms"
    FITTED_3 = "fitted, 3 terms"
    FITTED_4 = "fitted, 4 terms"
    """Scheduled as three terms are: the states of four are too many; its weights are of four."""

    @property
    def count(self) -> int:
        """Computed steps that a prediction reads."""
        return _COUNTS[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProblem:
    """A trajectory to plan: what was measured at its steps, and how skipped steps are made.

    Attributes:
        strength, degree: of the payback, 0 for none.
        warmup_steps, last_steps: computed whatever they cost; max_gap: most steps skipped in a row.
    """

    gram: ResidualGram
    terms: Terms = Terms.LINEAR
    strength: float = 0.0
    degree: int = 2
    warmup_steps: int = 1
    last_steps: int = 0
    max_gap: int | None = None
    ridge: float = RIDGE
    share: float = EXTRAPOLATION_SHARE
    early: float = EARLY

    def __post_init__(self) -> None:
        if not self.gram.sigmas:
            raise PlanError(
                "planning computed steps needs the noise levels of the trajectory.",
                hint="Pass sigmas=... to calibrate(), or call m.begin(sigmas=...) inside run.",
            )
        limit = _MOST_STEPS[min(self.terms.count, MAX_STATE)]
        if self.gram.steps > limit:
            raise PlanError(
                f"{self.gram.steps} steps are more than {limit}, the most for {self.terms.value}.",
                hint="Plan with fewer terms, or calibrate and plan in parts.",
            )
        if not 0 <= checked_amount(self.strength, "strength") <= 1:
            raise PlanError(f"strength must lie in [0, 1], not {self.strength!r}.")
        checked_count(self.warmup_steps, "warmup_steps", least=1)
        checked_count(self.last_steps, "last_steps")
        if self.max_gap is not None:
            checked_count(self.max_gap, "max_gap", least=1)

    @property
    def steps(self) -> int:
        """Steps of the trajectory."""
        return self.gram.steps

    @property
    def state(self) -> int:
        """How many computed steps the price of a segment depends on, besides its end."""
        terms = min(self.terms.count, MAX_STATE)
        return max(terms, self.degree if self.strength else 1)

    def allows(self, start: int, end: int) -> bool:
        """Whether the steps between two computed ones may be skipped."""
        skipped = end - start - 1
        if not skipped:
            return True
        late = end - 1 >= self.steps - self.last_steps
        long = self.max_gap is not None and skipped > self.max_gap
        return not (late or long or start + 1 < self.warmup_steps)


Anchors = tuple[int, ...]


def plan_steps(problem: StepProblem, computed: int, *, model: str = "") -> StepPlan:
    """The schedule of exactly this many computed steps with the least error.

    Raises:  PlanError where the rules leave no such schedule.
    """
    steps, error = best_schedules(problem, computed).get(computed, ((), inf))
    if not steps:
        raise PlanError(
            f"no schedule of {computed} computed steps of {problem.steps} keeps the rules.",
            hint="Ask for more computed steps, or for fewer forced ones.",
        )
    return step_plan(problem, steps, source=f"planned for {problem.terms.value}", model=model,
                     error=error)  # fmt: skip


def step_plan(
    problem: StepProblem, computed: Sequence[int], *, source: str, model: str = "",
    error: float | None = None,
) -> StepPlan:  # fmt: skip
    """The plan of a schedule that is given, with the coefficients of the problem's predictor."""
    chosen = sorted(set(computed))
    if not chosen or chosen[0] != 0 or chosen[-1] >= problem.steps:
        raise PlanError(
            f"computed steps must begin with 0 and lie below {problem.steps}: {chosen}."
        )
    found: Coefficients = ()
    for start, end in zip(chosen, [*chosen[1:], problem.steps], strict=True):
        anchors = tuple(i for i in chosen if i <= start)[-problem.terms.count :]
        at = list(range(start + 1, end))
        weights = prediction_weights(problem, anchors, at)
        found += tuple(
            (t, anchors, tuple(row)) for t, row in zip(at, weights.tolist(), strict=True)
        )
    return StepPlan(
        letters="".join("C" if i in chosen else "S" for i in range(problem.steps)),
        coefficients=found,
        timesteps=problem.gram.timesteps,
        predicted_error=schedule_error(problem, chosen) if error is None else error,
        source=source, model=model, strength=problem.strength, degree=problem.degree,
    )  # fmt: skip


def evenly_spaced(steps: int, computed: int) -> tuple[int, ...]:
    """Computed steps from the first to the last, as evenly as whole numbers allow.

    >>> evenly_spaced(10, 4)
    (0, 3, 6, 9)
    """
    checked_count(computed, "computed", least=1)
    if computed > steps:
        raise PlanError(f"{computed} of {steps} steps cannot be computed.")
    if computed == 1:
        return (0,)
    return tuple(round(i * (steps - 1) / (computed - 1)) for i in range(computed))


def best_schedules(problem: StepProblem, most: int) -> dict[int, tuple[tuple[int, ...], float]]:
    """For each number of computed steps up to ``most``: the best schedule and its error, from one table.

    A number that the rules do not allow is absent.
    """
    checked_count(most, "computed", least=1)
    arrays = _Arrays.of(problem)
    costs = {a: _segment_errors(problem, a, arrays) for a in _states(problem)}
    layer: dict[Anchors, float] = {(0,): 0.0}
    parents: list[dict[Anchors, Anchors]] = [{}]
    best: dict[int, tuple[tuple[int, ...], float]] = {}
    for count in range(1, min(most, problem.steps) + 1):
        end = min(layer, key=lambda a: layer[a] + costs[a][problem.steps], default=None)
        if end is not None and layer[end] + costs[end][problem.steps] < inf:
            error = layer[end] + float(costs[end][problem.steps])
            best[count] = (_trace(end, parents), error)
        layer, came_from = _next_layer(problem, layer, costs)
        parents.append(came_from)
    return best


def schedule_error(problem: StepProblem, computed: Sequence[int]) -> float:
    """The error that ``best_schedules`` would give this schedule."""
    total, arrays = 0.0, _Arrays.of(problem)
    for i, end in enumerate([*computed[1:], problem.steps]):
        anchors = tuple(computed[: i + 1][-problem.state :])
        total += float(_segment_errors(problem, anchors, arrays)[end])
    return total


def _states(problem: StepProblem) -> Iterator[Anchors]:
    """The last computed steps, for every point that a schedule can have come to.

    Fewer than ``state`` of them only at the beginning, so then the first is step 0.
    """
    for length in range(1, problem.state + 1):
        for rest in combinations(range(1, problem.steps), length - 1):
            yield (0, *rest)
    yield from combinations(range(1, problem.steps), problem.state)


def _next_layer(
    problem: StepProblem, layer: dict[Anchors, float], costs: dict[Anchors, Matrix]
) -> tuple[dict[Anchors, float], dict[Anchors, Anchors]]:
    following: dict[Anchors, float] = {}
    came_from: dict[Anchors, Anchors] = {}
    for anchors, so_far in layer.items():
        sums = (costs[anchors] + so_far).tolist()
        kept = anchors if len(anchors) < problem.state else anchors[1:]
        for end in range(anchors[-1] + 1, problem.steps):
            if sums[end] < following.get((*kept, end), inf):
                following[*kept, end] = sums[end]
                came_from[*kept, end] = anchors
    return following, came_from


def _trace(end: Anchors, parents: Sequence[dict[Anchors, Anchors]]) -> tuple[int, ...]:
    steps = [end[-1]]
    for came_from in reversed(parents[1:]):
        end = came_from[end]
        steps.append(end[-1])
    return tuple(reversed(steps))


def prediction_weights(
    problem: StepProblem, anchors: Anchors, at: Sequence[int], products: Matrix | None = None
) -> Matrix:
    """Weights [len(at), len(anchors)] of the computed steps, oldest first; each row sums to one.

    ``products``: the problem's, if they are at hand as an array.
    """
    if len(anchors) == 1 or problem.terms is Terms.REUSE:
        weights = np.zeros((len(at), len(anchors)))
        weights[:, -1] = 1.0
        return weights
    if problem.terms is Terms.LINEAR:
        older, newest = anchors[-2:]
        ratio = (np.array(at, dtype=float) - newest) / (newest - older)
        weights = np.zeros((len(at), len(anchors)))
        weights[:, -2], weights[:, -1] = -ratio, 1.0 + ratio
        return weights
    products = np.array(problem.gram.products) if products is None else products
    return _fitted(products, anchors, list(at), problem.ridge)


def _fitted(products: Matrix, anchors: Anchors, at: list[int], ridge: float) -> Matrix:
    """Least squares on the differences to the newest anchor, so that the weights sum to one."""
    older, newest = list(anchors[:-1]), anchors[-1]

    def against_newest(rows: list[int], columns: list[int]) -> Matrix:
        block: Matrix = products[np.ix_(rows, columns)]
        right, below = products[rows, newest], products[newest, columns]
        return block - right[:, None] - below[None, :] + products[newest, newest]

    square = against_newest(older, older)
    damped = square + ridge * np.trace(square) / len(older) * np.eye(len(older))
    found = np.linalg.solve(damped, against_newest(older, at)).T
    return np.column_stack([found, 1.0 - found.sum(axis=1)])


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The numbers of a problem, made once for all segments."""

    products: Matrix
    weights: Matrix
    between: dict[Anchors, Matrix] = field(default_factory=dict)  # what segments share

    @classmethod
    def of(cls, problem: StepProblem) -> _Arrays:
        return cls(np.array(problem.gram.products), _step_weights(problem))


def _segment_errors(problem: StepProblem, anchors: Anchors, arrays: _Arrays) -> Matrix:
    """[steps + 1]: the error of computing at anchors[-1], next at the index; inf where forbidden.

    The last entry stands for skipping to the end of the trajectory.
    """
    start, steps = anchors[-1], problem.steps
    errors = np.full(steps + 1, inf)
    ends = [b for b in range(start + 1, steps + 1) if problem.allows(start, b)]
    if not ends:
        return errors
    skipped = list(range(start + 1, ends[-1]))
    weight, products = arrays.weights[skipped], arrays.products
    rows = np.zeros((len(skipped), steps))
    read = anchors[-problem.terms.count :]
    if skipped:
        rows[:, list(read)] = prediction_weights(problem, read, skipped, products) * weight[:, None]
        rows[np.arange(len(skipped)), skipped] -= weight
    sums = np.vstack([np.zeros(steps), np.cumsum(rows, axis=0)])[[b - start - 1 for b in ends]]
    predicted = _lengths(sums, products)
    errors[ends] = predicted
    if problem.strength:
        inside = [b for b in ends if b < steps]
        kept = sums[: len(inside)] * (1.0 - problem.strength)
        nodes = anchors[-problem.degree :]
        if nodes not in arrays.between:
            arrays.between[nodes] = _interpolated(problem, nodes, inside, weight)
        kept += problem.strength * arrays.between[nodes]
        errors[inside] = _lengths(kept, products) + problem.share * predicted[: len(inside)]
    return errors


def _interpolated(
    problem: StepProblem, anchors: Anchors, ends: list[int], weight: Matrix
) -> Matrix:
    """[len(ends), steps]: signed sums of the interpolation error over the skipped steps."""
    start = anchors[-1]
    rows = np.zeros((len(ends), problem.steps))
    for row, end in zip(rows, ends, strict=True):
        nodes = [*anchors, end]
        at = np.arange(start + 1, end)
        for i in nodes:
            factors = [(at - j) / (i - j) for j in nodes if j != i]
            row[i] += float((weight[: len(at)] * np.prod(factors, axis=0)).sum())
        row[at] -= weight[: len(at)]
    return rows


def _lengths(rows: Matrix, products: Matrix) -> Matrix:
    squares: Matrix = ((rows @ products) * rows).sum(axis=1)
    return np.sqrt(np.maximum(squares, 0.0))


def _step_weights(problem: StepProblem) -> Matrix:
    """What an error of the residual at each step does to the final latents: its step, amplified."""
    sigmas = np.array(problem.gram.sigmas)
    signal = 1.0 - sigmas[1:] if sigmas[0] <= 1.0 else 1.0 / (1.0 + sigmas[1:])
    weights: Matrix = (sigmas[:-1] - sigmas[1:]) * signal**-problem.early
    return weights
