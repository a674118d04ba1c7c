"""The check that nobody foresaw: a recorded graph must give the model's own bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from synccache.errors import VerifyError
from synccache.fx.inputs import flatten
from synccache.fx.written import look_at, restore


class Before:
    """Inputs and random state as they were, so that a forward can be run a second time."""

    def __init__(self, tensors: list[Tensor], arguments: dict[str, Any] | None = None) -> None:
        self.tensors = tensors
        self.copies = [t.detach().clone() for t in tensors]
        self.versions = [None if t.is_inference() else t._version for t in tensors]
        self.random = torch.get_rng_state()
        self.devices = {t.device for t in tensors if t.device.type == "cuda"}
        self.device_random = [torch.cuda.get_rng_state(d) for d in self.devices]
        self.generators: dict[torch.Generator, Tensor] = {}
        self.containers = look_at(arguments or {})

    def restore(self) -> None:
        """Undoes what the forward wrote into its inputs, and what it drew."""
        for tensor, copied, version in zip(self.tensors, self.copies, self.versions, strict=True):
            unchanged = same_bits(tensor, copied) if version is None else tensor._version == version
            if not unchanged:
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(copied)
        restore(self.containers)
        self.draw_again()

    def drawn(self) -> bool:
        """Whether torch's random generators went on since."""
        with _disable_current_modes():  # the state has values, also where shapes are recorded
            return bool(self.generators) or not torch.equal(self.random, torch.get_rng_state())

    def draw_again(self) -> None:
        """Sets random state back."""
        torch.set_rng_state(self.random)
        for device, state in zip(self.devices, self.device_random):
            torch.cuda.set_rng_state(state, device)
        for generator, state in self.generators.items():
            generator.set_state(state)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in every element; NaN equals NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not (left.is_floating_point() or left.is_complex()):
        return torch.equal(left, right)
    both_nan = torch.isnan(left) & torch.isnan(right)
    return bool(((left == right) | both_nan).all())


def _rounded_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by less than the root of their dtype's precision, as a whole."""
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return False
    bound = torch.finfo(a.dtype).eps ** 0.5 * a.double().norm()
    return bool((a.double() - b.double()).norm() <= bound)


def verify(expected: Any, found: Any, where: str, *, split: bool = False) -> None:
    """Raises VerifyError unless two results of a forward are equal to the bit; where branches were
    split at a sum, unless they are equal but for rounding."""
    pairs = zip(flatten(expected)[0], flatten(found)[0], strict=True)
    for i, (a, b) in enumerate(pairs):
        if not (same_bits(a, b) or split and _rounded_alike(a, b)):
            far = (a.double() - b.double()).abs().max().item() if a.is_floating_point() else "some"
            raise VerifyError(
                f"output {i} of the recorded graph differs from the model's own by up to {far}.",
                where=where,
                hint="The forward has a side effect or a source of values that was not seen, or it "
                "is not deterministic: run it twice on the same inputs to find out.",
            )
