"""The user's own sampling loop, watched: how far it is, and what its trajectories were.

    with watched_loop(model, "calibrating") as ran:
        run(model)
    ran[0].timesteps

Nothing is shown where standard output is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from synccache.errors import StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.conditions import SAMPLE, nodes_tagged
from synccache.fx.runtime import Trajectory


@dataclass(slots=True)
class Ran:
    """One trajectory; ``latents`` of its first guidance branch, on the host, where asked for."""

    trajectory: Trajectory
    timesteps: list[float | None] = field(default_factory=list)  # None: no input is the timestep
    latents: list[Tensor] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many steps ran."""
        return len(self.timesteps)

    @property
    def sampler(self) -> str:
        """Its name, if the loop said it."""
        return self.trajectory.said_sampler

    @property
    def known_timesteps(self) -> tuple[float, ...]:
        """Of all steps, or none where no input is the timestep."""
        known = [t for t in self.timesteps if t is not None]
        return tuple(known) if len(known) == self.steps else ()


@contextmanager
def watched_loop(model: CachedModel, title: str, *, latents: bool = False) -> Iterator[list[Ran]]:
    """Shows the forwards made inside, and gathers the trajectories they belong to."""
    ran: list[Ran] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(title, total=None)

        def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
            run = model._trajectories[model._key.get()]
            if not ran or ran[-1].trajectory is not run:
                ran.append(Ran(run))
            last = ran[-1]
            if run.step >= last.steps:
                known = run.level is not None and run.level.timestep is not None
                last.timesteps.append(run.noise if known else None)
                if latents:
                    last.latents.append(_latent(model, args, kwargs))
            of = "" if run.steps is None else f" of {run.steps}"
            progress.update(task, description=f"{title}: clip {len(ran)}, step {run.step + 1}{of}")

        handle = model.register_forward_hook(look, with_kwargs=True)
        try:
            yield ran
        finally:
            handle.remove()


def alike(ran: Sequence[Ran], where: str) -> Ran:
    """The last trajectory, if all were of one schedule.

    Raises:  StateError where there is none, or two differ in timesteps or sampler.
    """
    if not ran:
        raise StateError(
            "the sampling loop never called the model that it was given.", where=where,
            hint="Run the whole loop inside `run`, with the model that it is given.",
        )  # fmt: skip
    first = ran[0]
    for number, one in enumerate(ran[1:], start=2):
        if (one.timesteps, one.sampler) != (first.timesteps, first.sampler):
            raise StateError(
                f"trajectory {number} was {_said(one)}, the first was {_said(first)}.", where=where,
                hint="Calibrate with one sampler schedule.",
            )  # fmt: skip
    return ran[-1]


def _said(one: Ran) -> str:
    known = one.known_timesteps
    span = f" from timestep {known[0]:g} to {known[-1]:g}" if known else ""
    return f"{one.steps} steps{span}{f' with {one.sampler}' if one.sampler else ''}"


def _latent(model: CachedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The sample that the forward was called with."""
    variant = model.variant
    samples = nodes_tagged(variant.tags, SAMPLE)
    if len(samples) != 1:
        raise StateError(
            f"{len(samples)} inputs are the noisy sample; a trajectory is measured of one.",
            where=type(model.model).__name__,
        )
    tensors, _, _ = model._inputs(args, kwargs)
    return tensors[variant.captured.placeholders.index(samples[0])].detach().to("cpu", copy=True)
