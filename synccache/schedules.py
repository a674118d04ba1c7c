"""``choose_schedule``: which planned schedule is best, by running candidates on calibration clips.

    measured = synccache.calibrate(model, run_all, policies.step_mask("CS"))
    chosen = synccache.choose_schedule(model, [run_first, run_second], measured, computed=10)
    compiled = synccache.compile(model, policies.planned(chosen.plan))

A plan predicts errors along the uncached trajectory; a cached one leaves it, and how far that carries
only a run can tell. So plans of several predictors, strengths of payback and prices of early errors,
evenly spaced schedules and those that gates make are run and compared with the uncached output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from synccache.compiler import build_variant, checked_request
from synccache.errors import PlanError, StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.planning import border_shape, digest_of
from synccache.fx.swap import with_policy
from synccache.planner.calibration import Calibration
from synccache.planner.computed_steps import (
    StepProblem,
    Terms,
    best_schedules,
    evenly_spaced,
    step_plan,
)
from synccache.planner.samplers import Sampler
from synccache.planner.step_plan import StepPlan
from synccache.policies import exact, planned
from synccache.policies.dsl import Policy, Skip, branches

Run = Callable[[CachedModel], Tensor]
Gate = Callable[[float], Policy]
"""A threshold to a policy that skips more the higher it is."""

STRENGTHS = (0.0, 0.5, 1.0)
EARLY = (0.0, 0.5, 1.0)
_THRESHOLDS = (1e-4, 1e4)
_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best plan, and what was tried.

    Attributes:
        errors: plan -> decibels below the uncached latents, mean over the clips it was run on;
            higher is better. Finalists ran on every clip, the others on the first.
    """

    plan: StepPlan
    decibels: float
    tried: tuple[tuple[StepPlan, float], ...]

    def __str__(self) -> str:
        rows = sorted(self.tried, key=lambda row: -row[1])[:8]
        lines = [f"{d:6.1f} dB  {p.letters}  {p.source}, payback {p.strength:g}" for p, d in rows]
        return "\n".join(
            [f"chosen of {len(self.tried)}: {self.decibels:.1f} dB", str(self.plan), *lines]
        )


@dataclass(slots=True)
class _Trial:
    """Runs candidates and remembers how they did."""

    base: CachedModel
    runs: Sequence[Run]
    sigmas: tuple[float, ...]
    sampler: Sampler
    skip: Skip
    calibration: Calibration
    advance: Callable[[], object]
    references: dict[int, Tensor] = field(default_factory=dict)
    found: dict[tuple[StepPlan, int], float] = field(default_factory=dict)

    def run(self, model: CachedModel, clip: int) -> Tensor:
        model.begin(sigmas=self.sigmas, sampler=self.sampler)
        with torch.no_grad():
            out = self.runs[clip](model)
        if not isinstance(out, Tensor):
            raise StateError(f"a run must return the final latents, got {type(out).__name__}.")
        self.advance()
        return out.detach().float()

    def check(self, model: CachedModel) -> None:
        """Raises PlanError where the calibration belongs to something else."""
        layout = model.variant.layout
        self.calibration.check(
            model=type(model.model).__name__, regions=tuple(r.label for r in layout.regions),
            shape=border_shape(layout), parameters=digest_of(model.model),
        )  # fmt: skip

    def reference(self, clip: int) -> Tensor:
        """The uncached final latents of a clip."""
        if clip not in self.references:
            self.references[clip] = self.run(self.base, clip)
        return self.references[clip]

    def decibels(self, plan: StepPlan, clips: Sequence[int]) -> float:
        """-10 log10 of the relative squared error of the final latents, mean over these clips."""
        wanted = [clip for clip in clips if (plan, clip) not in self.found]
        references = [
            self.reference(clip) for clip in wanted
        ]  # recorded before policies are swapped
        model = with_policy(self.base, planned(plan, skip=self.skip)) if wanted else self.base
        if wanted:
            self.check(model)
        for clip, reference in zip(wanted, references, strict=True):
            error = (self.run(model, clip) - reference).square().sum() / reference.square().sum()
            ratio = max(float(error), 1e-30) if math.isfinite(float(error)) else 1e30
            self.found[plan, clip] = -10.0 * math.log10(ratio)
        return sum(self.found[plan, clip] for clip in clips) / len(clips)


def choose_schedule(
    model: nn.Module, runs: Sequence[Run], calibration: Calibration, *, computed: int,
    sigmas: Sequence[float] | None = None, sampler: Sampler = Sampler.EULER,
    gates: Sequence[Gate] = (), terms: Sequence[Terms] = tuple(Terms),
    strengths: Sequence[float] = STRENGTHS, early: Sequence[float] = EARLY, skip: Skip = branches,
    finalists: int = 4, moves: int = 16, base: CachedModel | None = None,
) -> Chosen:  # fmt: skip
    """The plan of ``computed`` steps that comes closest to the uncached output on these clips.

    Args:
        runs: one function for each calibration clip: it is called with a model, samples with it and
            returns the final latents. ``begin`` is called before each.
        calibration: of this model and ``skip``; resampled where ``sigmas`` are not its own.
        sigmas, sampler: of the runs, if they are not those of the calibration.
        gates: functions from a threshold to a gated policy; the schedule that each makes at the
            threshold with this many computed steps is tried with every predictor.
        terms, strengths, early: what is tried: predictors, payback, prices of early errors.
        finalists: that run on every clip; moves: schedules one step away from the best that are run.
        base: the model compiled with any policy, to use its recordings.

    Raises:
        PlanError: the calibration has no inner products or belongs to something else.
    """
    if not runs:
        raise PlanError("choose_schedule needs at least one run.")
    gram = calibration.residuals
    if gram is None:
        raise PlanError(
            "the calibration holds no inner products of residuals.", hint="Calibrate again."
        )
    levels = tuple(float(s) for s in sigmas) if sigmas is not None else gram.sigmas
    gram = gram if levels == gram.sigmas and levels else gram.at(levels)
    if base is None:
        base = CachedModel(model, checked_request(exact()), build_variant)
    else:
        base = with_policy(base, exact())
    silent = not Console().is_terminal
    with Progress(transient=True, disable=silent) as progress:
        task = progress.add_task("schedules", total=None)
        trial = _Trial(
            base, runs, levels, sampler, skip, calibration, lambda: progress.advance(task)
        )
        problems = [
            StepProblem(gram=gram, terms=t, strength=s, early=e)
            for t in terms for s in strengths for e in early
        ]  # fmt: skip
        schedules = [("evenly spaced", evenly_spaced(gram.steps, computed))]
        schedules += [(name, s) for name, s in _gated(trial, gates, computed)]
        candidates = list(dict.fromkeys([
            *_planned(problems, computed, type(model).__name__),
            *_given(problems, schedules, type(model).__name__),
        ]))  # fmt: skip
        return _compared(trial, candidates, problems, finalists, moves)


def _planned(problems: Sequence[StepProblem], computed: int, name: str) -> Iterator[StepPlan]:
    for problem in problems:
        steps, error = best_schedules(problem, computed)[computed]
        source = f"planned for {problem.terms.value}, early {problem.early:g}"
        yield step_plan(problem, steps, source=source, model=name, error=error)


def _given(
    problems: Sequence[StepProblem], schedules: Sequence[tuple[str, tuple[int, ...]]], name: str
) -> Iterator[StepPlan]:
    """Schedules that no plan made, with every predictor; the price of early errors is not used."""
    for source, steps in schedules:
        for problem in problems:
            if problem.early == problems[0].early:
                text = f"{source}, {problem.terms.value}"
                yield step_plan(problem, steps, source=text, model=name)


def _compared(
    trial: _Trial, candidates: Sequence[StepPlan], problems: Sequence[StepProblem], finalists: int,
    moves: int,
) -> Chosen:  # fmt: skip
    first = sorted(candidates, key=lambda plan: -trial.decibels(plan, [0]))
    every = range(len(trial.runs))
    best = max(first[:finalists], key=lambda plan: trial.decibels(plan, every))
    for _ in range(moves):
        step = next(
            (p for p in _moved(best, problems) if (p, 0) not in trial.found), None
        )  # fmt: skip
        if step is None:
            break
        if trial.decibels(step, [0]) > trial.decibels(best, [0]):
            best = max((best, step), key=lambda plan: trial.decibels(plan, every))
    tried = {
        plan: trial.decibels(plan, [c for p, c in trial.found if p == plan])
        for plan, _ in trial.found
    }
    return Chosen(best, trial.decibels(best, every), tuple(tried.items()))


def _moved(plan: StepPlan, problems: Sequence[StepProblem]) -> Iterator[StepPlan]:
    """The plan with one computed step moved by one, its weights made for the new schedule."""
    problem = next(
        p for p in problems
        if p.strength == plan.strength and plan.source.split(", early")[0].endswith(p.terms.value)
    )  # fmt: skip
    steps = plan.computed
    for i in range(1, len(steps)):
        for by in (-1, 1):
            other = steps[i] + by
            if other < len(plan.letters) and other not in steps:
                moved = sorted((*steps[:i], other, *steps[i + 1 :]))
                yield step_plan(problem, moved, source=plan.source, model=plan.model)


def _gated(
    trial: _Trial, gates: Sequence[Gate], computed: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What each gate computes on the first clip at the threshold with this many computed steps."""
    for gate in gates:
        trial.reference(0)
        low, high = map(math.log, _THRESHOLDS)
        for _ in range(_HALVINGS):
            threshold = math.exp((low + high) / 2)
            model = with_policy(trial.base, gate(threshold))
            trial.run(model, 0)
            letters = next(iter(model.stats().decisions.values()))
            if letters.count("C") == computed:
                name = model._request.policy.name
                yield f"as {name}", tuple(i for i, letter in enumerate(letters) if letter == "C")
                break
            low, high = (math.log(threshold), high) if letters.count("C") > computed else (
                low, math.log(threshold),
            )  # fmt: skip
