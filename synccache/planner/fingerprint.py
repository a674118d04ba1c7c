"""A fingerprint: what a plan, a calibration or a schedule was made for, and what it may be used with.

Not the machine: a plan made on one runs on another. Not the weights' values: a fine-tuned model may
use the plan of its base; drift that no longer fits is what a new calibration is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields

from synccache.errors import PlanError
from synccache.planner.quantities import checked_count, checked_text

_DIGEST_LETTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What must agree. An empty `sampler` or `steps` of None is not known, and agrees with any.

    Attributes:
        model: class name; parameters: `parameters_digest` of its parameters and buffers.
        resolution: shape of the stream that regions lie on, e.g. (1, 75600, 5120).
        policy: the policy as it is written, `repr(policy)`.
        sampler: name of the sampler; steps: of one trajectory.
    """

    model: str
    parameters: str
    resolution: tuple[int, ...]
    policy: str
    sampler: str = ""
    steps: int | None = None

    def __post_init__(self) -> None:
        checked_text(self.model, "model of a fingerprint")
        checked_text(self.parameters, "parameters of a fingerprint")
        checked_text(self.policy, "policy of a fingerprint")
        for size in self.resolution:
            checked_count(size, "a size in the resolution of a fingerprint")
        if not isinstance(self.sampler, str):
            raise PlanError(f"sampler of a fingerprint must be a text, not {self.sampler!r}")
        if self.steps is not None:
            checked_count(self.steps, "steps of a fingerprint", least=1)

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """`name: mine there, other's here` for everything known on both sides that disagrees."""
        return tuple(
            f"{field.name}: {mine!r} there, {theirs!r} here"
            for field in fields(self)
            if (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
            and (field.name not in ("sampler", "steps") or (mine and theirs))
        )

    def check(self, other: Fingerprint, what: str) -> None:
        """Raises PlanError naming all that differs; `what` is the thing that was made: "the plan"."""
        wrong = self.differences(other)
        if wrong:
            raise PlanError(
                f"{what} was made for something else: {'; '.join(wrong)}.",
                hint="Make it again with this model, policy, resolution and sampler.",
            )


def parameters_digest(entries: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """A short digest of (name, shape, dtype) of parameters and buffers, whatever their order.

    >>> parameters_digest([("a", (2, 3), "float32"), ("b", (3,), "float32")])
    'e53ea29daa281cbe'
    """
    lines = sorted(f"{name} {list(shape)} {dtype}" for name, shape, dtype in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGEST_LETTERS]
