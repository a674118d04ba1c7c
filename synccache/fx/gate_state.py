"""What the gate of one rule remembers for one guidance branch, from step to step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

from synccache.policies import dsl
from synccache.policies.evaluate import Memory


@dataclass(slots=True)
class Anchors:
    """A probe's values on the last computed steps, oldest first."""

    steps: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def push(self, step: int, tensor: Tensor, keep: int) -> None:
        self.steps = (*self.steps, step)[-keep:]
        self.tensors = (*self.tensors, tensor)[-keep:]


@dataclass(slots=True)
class GateState:
    """References are kept by (probe, since, what is done to it); the numbers stay on the device.

    ``streak`` and ``total`` count this rule's skipped steps; ``blocked`` says, for each side of the
    outermost ``&``, on how many steps it was not true, and the least and greatest it compared.
    """

    memory: Memory = field(default_factory=Memory)
    references: dict[Hashable, Tensor] = field(default_factory=dict)  # (probe, since, transform)
    anchors: dict[Hashable, Anchors] = field(default_factory=dict)  # (probe, predictor or None)
    gains: dict[dsl.Gain, tuple[Tensor, Tensor]] = field(default_factory=dict)  # over, under
    late: dict[dsl.Signal, tuple[int, Tensor]] = field(default_factory=dict)  # step, value
    streak: int = 0
    total: int = 0
    blocked: dict[dsl.Condition, tuple[int, float, float]] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Everything that is kept on the device."""
        kept = [*self.references.values()]
        return kept + [t for a in self.anchors.values() for t in a.tensors]

    def forget_held(self) -> None:
        """Forgets the anchors that go with held residuals, which are held no longer."""
        self.anchors = {key: a for key, a in self.anchors.items() if key[1:] != (None, ())}  # type: ignore[index]
