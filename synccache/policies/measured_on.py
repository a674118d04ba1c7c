"""What the numbers in a policy were measured on, so that another model or run can refuse them."""

from __future__ import annotations

from dataclasses import dataclass

from synccache.errors import PolicyError
from synccache.policies.checks import plain_integer, plain_number


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """A model and its runs. Compiled for others, or run otherwise, the policy is refused.

    Attributes:
        model: class name; parameters: digest of the names, shapes and dtypes of its parameters.
        resolution: shape of the stream that blocks add to.
        steps, sampler, timesteps: of the measured runs; None, "" and () are not known, or need not
            agree: MagCache's ratios are stretched over any number of steps.
    """

    model: str
    parameters: str
    resolution: tuple[int, ...]
    steps: int | None = None
    sampler: str = ""
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("model", "parameters", "sampler"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value and name != "sampler":
                raise PolicyError(f"MeasuredOn({name}=...) takes a text, got {value!r}.")
        sizes = tuple(
            plain_integer(n, "a size of MeasuredOn(resolution=...)") for n in self.resolution
        )
        times = tuple(plain_number(t, "a timestep of MeasuredOn") for t in self.timesteps)
        object.__setattr__(self, "resolution", sizes)
        object.__setattr__(self, "timesteps", times)
        if self.steps is not None and plain_integer(self.steps, "MeasuredOn(steps=...)") < 1:
            raise PolicyError(f"MeasuredOn(steps=...) takes a positive integer, got {self.steps}.")
        if times and self.steps is not None and len(times) != self.steps:
            raise PolicyError(f"MeasuredOn has {len(times)} timesteps of {self.steps} steps.")
