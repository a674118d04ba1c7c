"""``plan``: what a policy would cost on a model, without weights and without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synccache.compiler import checked_request, prepare
from synccache.errors import MatchError
from synccache.fx.fake import fake_capture
from synccache.fx.planning import make_plan
from synccache.planner import Plan
from synccache.planner.calibration import Calibration
from synccache.planner.devices import DEFAULT_DEVICE, Device, device
from synccache.planner.quantities import checked_count
from synccache.planner.storage import Storage
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
    captured = fake_capture(model, args, dict(kwargs or {}), device(on))
    found = prepare(model, request, captured, guidance_branches)
    if found.program is None or found.problem is None:
        raise MatchError("no stream was found in this model.", where=type(model).__name__)
    return make_plan(model, request, found.program, found.matches, found.problem)
