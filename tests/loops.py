"""Denoising loops for tests: the same inputs through a model and through what is made of it."""

from collections.abc import Callable
from typing import Any

import torch
from real_models import tensor_of
from torch import Tensor

START = 1000.0


def timesteps(count: int) -> list[float]:
    """Falling timesteps of one trajectory."""
    return [START * (1 - k / (count + 1)) for k in range(count)]


def outputs(
    call: Callable[..., Any], case: Any, steps: int = 4, branches: int = 2, seed: int = 0
) -> list[tuple[Tensor, ...]]:
    """The output tensors of every call of a loop, guidance branch after guidance branch."""
    found = []
    for k, timestep in enumerate(timesteps(steps)):
        for branch in range(branches):
            args, kwargs = case.new_inputs(seed + k, timestep, branch)
            with torch.no_grad():
                found.append(tensors(call(*args, **kwargs)))
    return found


def tensors(output: Any) -> tuple[Tensor, ...]:
    """The tensors in an output, cloned: some outputs are views of what a cache holds."""
    if isinstance(output, tuple):
        return tuple(t.clone() for t in output)
    return (tensor_of(output).clone(),)


def same(expected: list[tuple[Tensor, ...]], found: list[tuple[Tensor, ...]]) -> bool:
    """Whether two loops gave the same bits."""
    pairs = [
        (a, b) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def difference(expected: list[tuple[Tensor, ...]], found: list[tuple[Tensor, ...]]) -> float:
    """The largest difference between two loops, relative to the largest value."""
    pairs = [
        (a, b) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True)
    ]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
