"""`synccache plan`: what a policy would hold and save on a model, without weights."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synccache.cli.refusals import one_line_errors
from synccache.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

    from synccache.planner import Plan

__all__ = ["plan_command"]

_MODEL = (
    "wan2.2-s2v-14b, wan2.1-t2v-14b, hunyuanvideo, ltx-2, or module:callable of your own, which gets "
    "the sizes that are stated and returns (model, args, kwargs, conditions)."
)
_BUDGET = 'What weights, activations and caches may use together: "24GB". [default: no limit]'
_RATIO = "The share of the live branches that stay live, in (0, 1]."
_POLICY = "A method of the library, or a policy file. [default: the model's]"
_BRANCHES = "Forwards of one step that hold caches of their own. [default: the model's]"
_DEVICE = "Whose published rates seconds are estimated by: h100, h200, a100, l40s, rtx4090."


def plan_command(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    mem_budget: Annotated[str | None, typer.Option(help=_BUDGET)] = None,
    cache_ratio: Annotated[float | None, typer.Option(help=_RATIO)] = None,
    policy: Annotated[str | None, typer.Option(help=_POLICY)] = None,
    frames: Annotated[int | None, typer.Option(help="Of the finished video.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the finished video, in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the finished video, in pixels.")] = None,
    guidance_branches: Annotated[int | None, typer.Option(help=_BRANCHES)] = None,
    device: Annotated[str, typer.Option(help=_DEVICE)] = "h100",
    out: Annotated[Path | None, typer.Option(help="A file to write the plan to.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The plan as JSON on stdout.")] = False,
) -> None:
    """What a policy would hold and save on a model, without weights and without running it."""
    with one_line_errors():
        stated = {"frames": frames, "height": height, "width": width}
        found = _planned(
            model, stated, policy, guidance_branches,
            {"mem_budget": mem_budget, "cache_ratio": cache_ratio, "on": device},
        )  # fmt: skip
        if out is not None:
            found.save(out)
        typer.echo(found.to_json() if json else str(found))


def _planned(
    model: str, stated: Mapping[str, int | None], policy: str | None, branches: int | None,
    limits: dict[str, Any],
) -> Plan:  # fmt: skip
    from synccache.integrations.geometries import geometry  # needs torch
    from synccache.planner.sizes import checked_sizes
    from synccache.preview import plan

    if ":" in model:
        built, args, kwargs, conditions = _own_model(model, stated)
        return plan(
            built, args, kwargs, conditions=conditions, policy=policy or "asymmetric",
            guidance_branches=2 if branches is None else branches, **limits,
        )  # fmt: skip
    shape = geometry(model)
    sizes = checked_sizes(shape.axes, stated)
    return plan(
        shape.build(), (), shape.inputs(**sizes), conditions=shape.conditions,
        policy=policy or shape.policy,
        guidance_branches=shape.guidance_branches if branches is None else branches, **limits,
    )  # fmt: skip


def _own_model(
    spec: str, stated: Mapping[str, int | None]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]:
    name, _, function = spec.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as problem:
        raise PlanError(f"{spec} cannot be imported: {problem}.") from problem
    finally:
        sys.path.remove(os.getcwd())
    found = made(**{name: size for name, size in stated.items() if size is not None})
    if not isinstance(found, tuple) or len(found) != 4:
        raise PlanError(
            f"{spec} must return (model, args, kwargs, conditions), got {type(found).__name__}"
            + (f" of {len(found)}" if isinstance(found, tuple) else "")
            + "."
        )
    return found
