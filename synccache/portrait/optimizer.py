"""Muon in fp32 for matrices and AdamW for everything else, and an exponential moving average of weights."""

import copy
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

__all__ = ["Average", "Muon", "PortraitOptimizer"]

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Keller Jordan's Muon
_NEWTON_SCHULZ_STEPS = 5


class Muon:
    """Momentum whose matrix update is orthogonalised. Source: Keller Jordan, github.com/KellerJordan/Muon.

    Matrices of one shape are stacked, so that the Newton-Schulz iteration is a few batched products.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            self.groups.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        self.buffers = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([_gradient(parameter).reshape(shape) for parameter in group])
            buffer = self.buffers[shape].lerp_(gradient, 1.0 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            scale = learning_rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1.0 - learning_rate * self.weight_decay)
                parameter.sub_(change.reshape(parameter.shape), alpha=scale)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, roughly [n, rows, columns]."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        product = x @ x.transpose(1, 2)
        x = a * x + (b * product + c * product @ product) @ x
    return x.transpose(1, 2) if tall else x


class PortraitOptimizer:
    """Muon for the matrices a model names, AdamW for the rest; both follow one schedule in [0, 1]."""

    def __init__(
        self,
        model: nn.Module,
        is_matrix: Callable[[str, nn.Parameter], bool],
        muon_rate: float,
        adam_rate: float,
    ) -> None:
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.muon = Muon([parameter for name, parameter in named if is_matrix(name, parameter)])
        rest = [parameter for name, parameter in named if not is_matrix(name, parameter)]
        self.adam = torch.optim.AdamW(
            rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def step(self, schedule: float) -> None:
        """One update with both learning rates scaled by `schedule`."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * schedule
        self.adam.step()
        self.muon.step(self.muon_rate * schedule)

    def state_dict(self) -> dict[str, object]:
        return {"adam": self.adam.state_dict(), "muon": self.muon.buffers}

    def load_state_dict(self, state: dict[str, object]) -> None:
        adam, muon = state["adam"], state["muon"]
        assert isinstance(adam, dict) and isinstance(muon, dict)
        self.adam.load_state_dict(adam)
        self.muon.buffers = muon


class Average(Generic[Model]):
    """A copy of a model whose weights follow it slowly, quicker in the beginning."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = 1.0 - min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        for slow, fast in zip(self.model.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, weight)
