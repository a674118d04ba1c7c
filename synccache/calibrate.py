"""``calibrate``: measure, on the user's own sampling loop, how fast each segment's residual drifts.

    measured = synccache.calibrate(model, lambda m: sample(m, ...))
    measured.save("portrait.drift.json")
    compiled = synccache.compile(model, cache_ratio=0.4, calibration=measured)

    numbers = synccache.calibrate(model, lambda m: sample(m, ...), "magcache")
    compiled = synccache.compile(model, numbers.policy(threshold=0.12))

The loop runs once, uncached and exact; it may sample several clips. The planner then knows the drift
of every way to merge regions, for every budget, and the inner products of the residuals of all steps,
from which it plans which steps to compute: one calibration serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from synccache.compiler import build_variant, checked_request
from synccache.errors import StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.drift import DriftMeter
from synccache.fx.gram import GramMeter
from synccache.fx.held import tensor_bytes
from synccache.fx.planning import digest_of
from synccache.fx.variant import Variant
from synccache.measure import METHODS, MethodNumbers, method_numbers
from synccache.planner.calibration import Calibration
from synccache.planner.region_steps import RegionSteps
from synccache.planner.residual_gram import ResidualGram
from synccache.planner.storage import Form
from synccache.policies.dsl import Policy, Probe
from synccache.watched import alike, watched_loop

Run = Callable[[CachedModel], Any]
DEFAULT_STRIDE = 4


@overload
def calibrate(  # type: ignore[overload-overlap]  # these names, of all texts
    model: nn.Module, run: Run, policy: Literal["teacache", "magcache", "omnicache"], *,
    conditions: Mapping[str, Sequence[str]] | None = None, probe: Probe | None = None,
) -> MethodNumbers: ...  # fmt: skip


@overload
def calibrate(
    model: nn.Module, run: Run, policy: str | Path | Policy = "asymmetric", *,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None, stride: int = DEFAULT_STRIDE,
    sigmas: Sequence[float] | None = None,
) -> Calibration: ...  # fmt: skip


def calibrate(
    model: nn.Module,
    run: Run,
    policy: str | Path | Policy = "asymmetric",
    *,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    stride: int = DEFAULT_STRIDE,
    sigmas: Sequence[float] | None = None,
    probe: Probe | None = None,
) -> Calibration | MethodNumbers:
    """What the policy needs measured, with what it was measured on; used elsewhere it is refused.

    The name of a method that is built from numbers gives ``MethodNumbers``:

    - ``"teacache"``: the polynomial of degree 4 from the relative change of ``probe`` to the output's,
      both against the step before, least squares over all steps, guidance branches and clips;
    - ``"magcache"``: the mean over clips of the ratio of the norms of consecutive whole-stack residuals
      at each step, of the first guidance branch;
    - ``"omnicache"``: the mean over clips of how much the trajectory bends at each step.

    Every other policy gives a ``Calibration``: the drift of every segment that it could hold, and the
    inner products of all residuals.

    Args:
        run: the caller's sampling loop; it is called with a model to use in place of ``model``. How
            far it is is shown in a terminal.
        probe: for ``"teacache"``: what the policy will watch, ``modulated(blocks[0])`` if left out.
        stride: every how many tokens are looked at; memory shrinks and noise grows with it. The
            samples of one trajectory stay in main memory until it ends, at most 1,024 tokens of each
            run: steps x tokens x channels x 4 bytes for each run and guidance branch.
        sigmas: noise levels of all steps and the one after, if ``run`` does not say them itself with
            ``m.begin(sigmas=...)``. Planned schedules need them.

    Raises:
        StateError: the loop made too few steps, its clips differ in their schedule, or the policy
            has no regions here.
    """
    if probe is not None and policy != "teacache":
        raise StateError('calibrate(probe=...) is for "teacache" alone.')
    if isinstance(policy, str) and policy in METHODS:
        other = {"masks": masks, "sigmas": sigmas, "stride": stride}
        unused = {"masks": None, "sigmas": None, "stride": DEFAULT_STRIDE}
        said = [f"{name}=" for name, value in other.items() if value is not unused[name]]
        if said:
            raise StateError(
                f"calibrate({policy!r}) measures no segments: leave {', '.join(said)} out."
            )
        chosen = {} if probe is None else {"probe": probe}
        return method_numbers(model, run, policy, conditions=conditions, **chosen)
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise StateError(f"calibrate(stride=...) takes a positive integer, got {stride!r}.")
    request = checked_request(policy, conditions=conditions, masks=masks, measure=True)
    measuring = CachedModel(model, request, build_variant)
    measuring.measure(stride)
    with watched_loop(measuring, "calibrating") as ran:
        run(measuring)
    meter: DriftMeter | None = measuring.meter
    gram: GramMeter | None = measuring.gram
    if meter is None or gram is None or meter.steps == 0:
        raise StateError(
            "the sampling loop made fewer than two steps of one guidance branch, so no change could "
            "be measured.",
            where=f"calibrate({request.policy.name}) on {type(model).__name__}",
            hint="Run the whole loop inside `run`, with the model that it is given.",
        )
    gram.finish_trajectory()
    variant = measuring.variant
    shapes = [list(r.runs[0].end.meta["shape"]) for r in variant.layout.regions]
    return Calibration(
        model=type(model).__name__,
        regions=tuple(r.label for r in variant.layout.regions),
        shape=tuple(shapes[0]),
        steps=max(len(d) for d in measuring.stats().decisions.values()),
        guidance_branches=len(measuring.stats().decisions),
        stride=stride,
        drift=tuple(tuple(d / gram.clips for d in row) for row in meter.table()),
        residuals=_residuals(gram, sigmas),
        parameters=digest_of(model),
        sampler=alike(ran, f"calibrate({request.policy.name})").sampler,
        by_region=_by_region(gram, variant, len(measuring.stats().decisions)),
    )


def _by_region(gram: GramMeter, variant: Variant, guidance_branches: int) -> RegionSteps | None:
    """What each region does at each step; None where a region holds no residual to compare."""
    regions, plan = variant.layout.regions, variant.plan
    if plan is None or set(gram.by_region) != set(range(len(regions))):
        return None
    history = [variant.matches[r.rule].keep for r in regions]
    seconds = tuple(float(sum(b.seconds for b in r.branches)) for r in regions)
    whole = sum(n.meta.get("seconds", 0.0) for n in variant.captured.graph.nodes)

    def sizes(form: Form) -> tuple[int, ...]:
        return tuple(
            history[i]
            * sum(
                tensor_bytes(run.end.meta["shape"], run.end.meta["dtype"], form) for run in r.runs
            )
            for i, r in enumerate(regions)
        )

    return RegionSteps(
        regions=tuple(r.label for r in regions),
        seconds=seconds,
        held_bytes=sizes(Form.AS_COMPUTED),
        bytes_as=tuple((form, sizes(form)) for form in Form if form is not Form.AS_COMPUTED),
        fixed_seconds=max(0.0, float(whole) - sum(seconds)),
        guidance_branches=guidance_branches,
        products=tuple(tuple(map(tuple, gram.by_region[i].tolist())) for i in range(len(regions))),
        timesteps=gram.timesteps,
    )


def _residuals(meter: GramMeter, sigmas: Sequence[float] | None) -> ResidualGram | None:
    found = meter.result()
    return found if found is None or sigmas is None else found.with_sigmas(sigmas)
