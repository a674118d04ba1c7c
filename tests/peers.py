"""Released caching methods on tiny released models: the peer's side of the differential tests.

    theirs = run_peer(build("flux"), FirstBlockCacheConfig(threshold=0.1), watch="transformer_blocks.1")
    ours = run_ours(build("flux"), policies.first_block_cache(0.1))
    theirs.decisions, ours.decisions                  # {"cond": "CSSC...", "uncond": "..."}

Both go through one smooth path of latents with falling timesteps. What a peer decided is read off a
module that runs on computed steps only. Nothing of the peers is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from loops import tensors
from table_models import TableCase
from torch import Tensor, nn

import synccache
from synccache.policies.dsl import Policy

STEPS = 24
BRANCHES = ("cond", "uncond")


@dataclass(frozen=True)
class Ran:
    """What a loop decided for each guidance branch, and its outputs call by call."""

    decisions: dict[str, str]
    outputs: list[tuple[Tensor, ...]] = field(repr=False)


def sigmas(steps: int) -> list[float]:
    """Noise levels of a flow-matching loop: 1 on the first step, towards 0."""
    return [1 - k / steps for k in range(steps)]


def inputs(case: TableCase, step: int, branch: int, steps: int) -> dict[str, Any]:
    """Keyword arguments of one call; the latents move smoothly from one picture to another."""
    _, kwargs = case.inputs(0, 1000 * sigmas(steps)[step], branch)
    _, other = case.inputs(1, 0.0, branch)
    share = 0.4 * step / steps
    first, last = kwargs["hidden_states"], other["hidden_states"]
    return {**kwargs, "hidden_states": (1 - share) * first + share * last}


def loop(
    case: TableCase,
    call: Callable[..., Any],
    context: Callable[[str, int], AbstractContextManager[Any]],
    *,
    steps: int = STEPS,
    branches: tuple[str, ...] = BRANCHES,
) -> list[tuple[Tensor, ...]]:
    """Every call's output: step after step, in each the guidance branches in order."""
    found = []
    for step in range(steps):
        for branch, name in enumerate(branches):
            kwargs = inputs(case, step, branch, steps)
            with torch.no_grad(), context(name, step):
                found.append(tensors(call(**kwargs)))
    return found


@contextmanager
def letters(module: nn.Module) -> Iterator[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """A wrapper for calls, whose ``letters`` say C where ``module`` ran during the call."""
    ran: list[bool] = []
    handle = module.register_forward_hook(lambda *_: ran.append(True))

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(**kwargs: Any) -> Any:
            ran.clear()
            out = call(**kwargs)
            run.letters += "C" if ran else "S"  # type: ignore[attr-defined]
            return out

        run.letters = ""  # type: ignore[attr-defined]
        return run

    yield watched
    handle.remove()


def run_peer(
    case: TableCase,
    config: Any,
    *,
    watch: str,
    steps: int = STEPS,
    branches: tuple[str, ...] = BRANCHES,
    times: int = 1,
) -> Ran:
    """The loop with a cache of diffusers, enabled as its users do; the last of ``times`` runs."""
    case.model.enable_cache(config)

    def context(name: str, step: int) -> AbstractContextManager[Any]:
        sigma = sigmas(steps)[step]
        more = {"step_index": step, "sigma": sigma, "num_inference_steps": steps}
        return case.model.cache_context(name, **more)

    with letters(case.model.get_submodule(watch)) as watched:
        for _ in range(times):
            call = watched(case.model)
            found = loop(case, call, context, steps=steps, branches=branches)
            case.model._reset_stateful_cache()
    return Ran(by_branch(call.letters, branches), found)


def by_branch(letters: str, branches: tuple[str, ...] = BRANCHES) -> dict[str, str]:
    return {name: letters[i :: len(branches)] for i, name in enumerate(branches)}


def run_ours(
    case: TableCase, policy: Policy, *, steps: int = STEPS, branches: tuple[str, ...] = BRANCHES
) -> Ran:
    """The loop with the compiled policy."""
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    compiled.begin(steps=steps)
    found = loop(
        case, compiled, lambda name, _: compiled.cache_context(name), steps=steps, branches=branches
    )
    return Ran(dict(compiled.stats().decisions), found)


def plain(name: str, step: int) -> AbstractContextManager[Any]:
    """No context, for peers that count calls."""
    return nullcontext()
