"""Samplers as linear recursions in the model's outputs: what payback needs to know of them.

    x[n+1] = sum over j of  state[j] x[j] + output[j] v[j],      j = n, n - 1, ...

with v the velocity of flow matching, ``noise - clean``, so that the clean estimate is x - sigma v.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from synccache.errors import PlanError


class Sampler(enum.Enum):
    """The samplers whose recursion is known here."""

    EULER = "euler"
    """x + dsigma v: diffusers' FlowMatchEulerDiscreteScheduler, and most released loops."""
    ADAMS_BASHFORTH_2 = "adams_bashforth_2"
    """Two steps of the velocity, with variable step sizes; the first step is Euler's."""
    DPM_SOLVER_PP_2M = "dpm_solver_pp_2m"
    """Two steps of the clean estimate in log-SNR (DPM-Solver++, arXiv 2211.01095), flow sigmas; the
    first and the last step are of first order."""


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """One step: the weights of states and of outputs, by the step they belong to."""

    state: Mapping[int, float]
    output: Mapping[int, float]


ORDER = MappingProxyType(
    {Sampler.EULER: 1, Sampler.ADAMS_BASHFORTH_2: 2, Sampler.DPM_SOLVER_PP_2M: 2}
)
"""How many steps a recursion reads."""


def sampler_row(sampler: Sampler, sigmas: Sequence[float], step: int) -> SamplerRow:
    """The recursion of one step.

    Raises:  PlanError for what is no Sampler.
    """
    if sampler not in _ROWS:
        raise PlanError(
            f"no recursion is known for the sampler {sampler!r}.",
            hint=f"Known are {', '.join(str(s) for s in Sampler)}; payback has to stay 0 with others.",
        )
    return _ROWS[sampler](sigmas, step)


def _euler(sigmas: Sequence[float], n: int) -> SamplerRow:
    return SamplerRow({n: 1.0}, {n: sigmas[n + 1] - sigmas[n]})


def _adams_bashforth(sigmas: Sequence[float], n: int) -> SamplerRow:
    if n == 0:
        return _euler(sigmas, n)
    now, before = sigmas[n + 1] - sigmas[n], sigmas[n] - sigmas[n - 1]
    half = now / before / 2
    return SamplerRow({n: 1.0}, {n: now * (1 + half), n - 1: -now * half})


def _dpm_solver(sigmas: Sequence[float], n: int) -> SamplerRow:
    level, following = sigmas[n], sigmas[n + 1]
    if following == 0.0:
        return SamplerRow({n: 1.0}, {n: -level})
    gap = _log_snr(following) - _log_snr(level)
    whole = -(1.0 - following) * math.expm1(-gap)
    before = _log_snr(level) - _log_snr(sigmas[n - 1]) if n else math.inf
    older = 0.0 if math.isinf(before) else -whole * gap / (2 * before)
    newer = whole - older
    states = {n: following / level + newer}
    outputs = {n: -newer * level}
    if older:
        states[n - 1], outputs[n - 1] = older, -older * sigmas[n - 1]
    return SamplerRow(states, outputs)


def _log_snr(sigma: float) -> float:
    """log((1 - sigma) / sigma); minus infinity for pure noise."""
    return math.log((1.0 - sigma) / sigma) if sigma < 1.0 else -math.inf


_ROWS: Mapping[Sampler, Callable[[Sequence[float], int], SamplerRow]] = MappingProxyType({
    Sampler.EULER: _euler,
    Sampler.ADAMS_BASHFORTH_2: _adams_bashforth,
    Sampler.DPM_SOLVER_PP_2M: _dpm_solver,
})  # fmt: skip
