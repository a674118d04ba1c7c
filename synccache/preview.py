"""``plan``: what a policy would cost on a model, without weights and without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synccache.compiler import Prepared, checked_request, prepare
from synccache.errors import MatchError, PlanError
from synccache.fx.fake import fake_capture
from synccache.fx.planning import make_plan
from synccache.fx.request import Request
from synccache.fx.sampling import sample
from synccache.planner import Plan
from synccache.planner.calibration import Calibration
from synccache.planner.derivation import derive
from synccache.planner.devices import DEFAULT_DEVICE, Device, device
from synccache.planner.quantities import checked_count
from synccache.planner.sizes import Axis, checked_sizes
from synccache.planner.storage import Storage
from synccache.planner.symbolic import Sample
from synccache.policies.dsl import Policy


def plan(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    policy: str | Path | Policy = "asymmetric",
    mem_budget: str | int | None = None,
    cache_ratio: float | None = None,
    guidance_branches: int = 2,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    calibration: Calibration | str | Path | None = None,
    storages: Sequence[str | Storage] | None = None,
    on: str | Device = DEFAULT_DEVICE,
    inputs: Callable[..., Mapping[str, Any]] | None = None,
    axes: Sequence[Axis] = (),
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """The plan that ``compile`` would make for this model and call; nothing large is computed.

    Weights and inputs may be on the meta device or fake: only shapes are needed, and large real ones
    count as shapes too. What the forward reads (timesteps, grid sizes, small tables) must be real;
    build the model inside ``synccache.without_weights()``, which keeps small tensors real.

    Args:
        args, kwargs: one call of ``model.forward``.
        guidance_branches: forwards of one denoising step that keep caches of their own; 2 with
            classifier-free guidance in two calls, 1 without guidance or where branches are batched.
        on: the device whose published rates seconds are estimated by: a name of
            ``synccache.planner.devices.DEVICES`` or a ``Device``. Bytes do not depend on it.
        inputs, axes, sizes: instead of args and kwargs, a function from sizes to keyword arguments,
            the sizes that the model takes (``synccache.planner.sizes.Axis``), and those to plan for.
            The plan is then known at every size: ``plan.at(frames=129, height=720, width=1280)``. It
            takes some ten recordings to derive.
        policy, mem_budget, cache_ratio, conditions, masks, calibration, storages: as for ``compile``.

    Raises:
        PolicyError, PlanError: an impossible request, or a budget too small, with ways out.
        CaptureError: the forward reads a value that is not there; the line is named.
        MatchError: no stream is found, or nothing that the policy selects.
    """
    request = checked_request(
        policy, mem_budget=mem_budget, cache_ratio=cache_ratio, conditions=conditions, masks=masks,
        calibration=calibration, storages=storages,
    )  # fmt: skip
    checked_count(guidance_branches, "guidance_branches", least=1)
    chosen = device(on)

    def prepared(call: tuple[Any, ...], named: Mapping[str, Any]) -> Prepared:
        captured = fake_capture(model, call, dict(named), chosen)
        return prepare(model, request, captured, guidance_branches)

    if inputs is None:
        if axes or sizes:
            raise PlanError("axes and sizes are of inputs=, a function from sizes to arguments.")
        return _planned(model, request, prepared(args, kwargs or {}))
    if args or kwargs or masks or calibration is not None:
        raise PlanError("inputs= makes the arguments at every size; args, kwargs, masks and "
                        "calibration are of one.")  # fmt: skip
    stated = checked_sizes(axes, sizes or {})
    first = prepared((), inputs(**stated))
    made = _planned(model, request, first)

    def record(at: Mapping[str, int]) -> Sample:
        found = first if dict(at) == stated else prepared((), inputs(**at))
        program, problem = found.program, found.problem
        assert program is not None and problem is not None
        return sample(model, at, program, found.layout, problem, found.bytes_per_branch)

    return replace(made, symbolic=derive(record, axes, stated, chosen))


def _planned(model: nn.Module, request: Request, found: Prepared) -> Plan:
    if found.program is None or found.problem is None:
        raise MatchError("no stream was found in this model.", where=type(model).__name__)
    return make_plan(model, request, found.program, found.matches, found.problem)
