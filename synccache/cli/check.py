"""`synccache policies check`: what a policy selects on a model, what it holds, what a run would do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import synccache
from synccache.planner import format_bytes
from synccache.policies.dsl import Policy

__all__ = ["Trial", "show", "try_out"]

BRANCHES = ("cond", "uncond")
Inputs = Callable[[float, int], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a policy on a model, beside the model itself on the same inputs.

    Attributes:
        explanation: streams, branches, rules, regions and plan, as ``compiled.explain()`` prints them.
        noise: the noise level of each step.
        drift: by guidance branch and step, ``|cached - exact| / |exact|`` of the outputs (L1; no unit).
        stats: figures of the run.
    """

    policy: Policy
    model: str
    explanation: str
    noise: tuple[float, ...]
    drift: Mapping[str, tuple[float, ...]]
    stats: Any


def try_out(policy: Policy, model: nn.Module, inputs: Inputs, *, steps: int) -> Trial:
    """Compiles the policy into the model and runs ``steps`` steps of two guidance branches."""
    levels = tuple(1 - k / steps for k in range(steps))
    compiled = synccache.compile(model, policy)
    compiled.begin(steps=steps)
    drift: dict[str, list[float]] = {name: [] for name in BRANCHES}
    with torch.no_grad():
        for noise in levels:
            for branch, name in enumerate(BRANCHES):
                given = inputs(noise, branch)
                exact = _tensor(model(**given))
                with compiled.cache_context(name):
                    found = _tensor(compiled(**given))
                drift[name].append(float((found - exact).abs().sum() / exact.abs().sum()))
    return Trial(
        policy=policy,
        model=type(model).__name__,
        explanation=compiled.explain(),
        noise=levels,
        drift={name: tuple(values) for name, values in drift.items()},
        stats=compiled.stats(),
    )


def _tensor(output: Any) -> Tensor:
    """The first tensor of an output, however it is wrapped."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


def show(trial: Trial, console: Console) -> None:
    """Prints a trial: what matched and is held, the steps, the totals."""
    console.print(Text(trial.explanation), soft_wrap=True)
    console.print(f"\n{trial.policy.name} on {trial.model}, {len(trial.noise)} steps")
    console.print(_steps(trial))
    console.print(Text("\n".join(_totals(trial))), soft_wrap=True)


def _steps(trial: Trial) -> Table:
    table = Table()
    table.add_column("step", justify="right")
    table.add_column("noise", justify="right")
    for name in BRANCHES:
        table.add_column(name)
        table.add_column("drift", justify="right")
    decisions: Mapping[Hashable, str] = trial.stats.decisions
    for step, noise in enumerate(trial.noise):
        cells = [str(step), f"{noise:.3f}"]
        for name in BRANCHES:
            cells += [decisions[name][step], f"{trial.drift[name][step]:.2%}"]
        table.add_row(*cells)
    return table


def _totals(trial: Trial) -> list[str]:
    stats, letters = trial.stats, "".join(trial.stats.decisions.values())
    held = format_bytes(stats.bytes_held)
    lines = [
        f"skipped     {letters.count('S')} of {len(letters)} forwards, in part or whole; "
        f"{1 - stats.flops_fraction:.1%} of the FLOPs",
        f"held        {held} at the end, both guidance branches",
        f"syncs       {stats.syncs} device-to-host transfers in {len(letters)} forwards",
        "drift       |cached - exact| / |exact| of the output on the same inputs; of a random model, so",
        "            it says how wrong a skipped step may be, not how the picture would look",
    ]
    return [*lines, f"note        {stats.note}"] if stats.note else lines
