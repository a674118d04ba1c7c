"""``calibrate``: measure, on the user's own sampling loop, how fast each segment's residual drifts.

    measured = synccache.calibrate(model, lambda m: sample(m, ...))
    measured.save("portrait.drift.json")
    compiled = synccache.compile(model, cache_ratio=0.4, calibration=measured)

The loop runs once, uncached and exact; it may sample several clips. The planner then knows the drift
of every way to merge regions, for every budget, and the inner products of the residuals of all steps,
from which it plans which steps to compute: one calibration serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synccache.compiler import build_variant, checked_request
from synccache.errors import StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.drift import DriftMeter
from synccache.fx.gram import GramMeter
from synccache.fx.held import tensor_bytes
from synccache.fx.planning import digest_of
from synccache.fx.variant import Variant
from synccache.planner.calibration import Calibration
from synccache.planner.region_steps import RegionSteps
from synccache.planner.residual_gram import ResidualGram
from synccache.planner.storage import Form
from synccache.policies.dsl import Policy

DEFAULT_STRIDE = 4


def calibrate(
    model: nn.Module,
    run: Callable[[CachedModel], Any],
    policy: str | Path | Policy = "asymmetric",
    *,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    stride: int = DEFAULT_STRIDE,
    sigmas: Sequence[float] | None = None,
) -> Calibration:
    """Drift of every segment that ``policy`` could hold, and the inner products of all residuals.

    Args:
        run: the caller's sampling loop; it is called with a model to use in place of ``model``.
        stride: every how many tokens are looked at; memory shrinks and noise grows with it. The
            samples of one trajectory stay in main memory until it ends, at most 1,024 tokens of each
            run: steps x tokens x channels x 4 bytes for each run and guidance branch.
        sigmas: noise levels of all steps and the one after, if ``run`` does not say them itself with
            ``m.begin(sigmas=...)``. Planned schedules need them.

    Raises:
        StateError: the loop made fewer than two steps, or the policy has no regions here.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise StateError(f"calibrate(stride=...) takes a positive integer, got {stride!r}.")
    request = checked_request(policy, conditions=conditions, masks=masks, measure=True)
    measuring = CachedModel(model, request, build_variant)
    measuring.measure(stride)
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
