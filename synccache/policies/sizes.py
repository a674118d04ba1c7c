"""Signals of how large a probe is, not of how much it changed."""

from __future__ import annotations

from dataclasses import dataclass

from synccache.policies.checks import expect
from synccache.policies.conditions import Signal
from synccache.policies.probes import LAST_COMPUTED, PROBES, Probe, Since

PROBE_HINT = "Probes are output(...), residual(...), modulated(...), latent, time_embedding, ..."


@dataclass(frozen=True, slots=True)
class MeanSize(Signal):
    """``mean|q|``: q the probe as it was at ``since``."""

    probe: Probe
    since: Since = LAST_COMPUTED

    def __post_init__(self) -> None:
        expect(self.probe, PROBES, "mean_size's probe", PROBE_HINT)
        expect(self.since, Since, "mean_size(since=...)", "Use PREVIOUS or LAST_COMPUTED.")


def mean_size(probe: Probe, *, since: Since = LAST_COMPUTED) -> MeanSize:
    """Mean absolute value that a probe had."""
    return MeanSize(probe, since)


@dataclass(frozen=True, slots=True)
class SizeRatio(Signal):
    """The mean over tokens of ``||p|| / ||q||``: p the probe now, q at ``since``, Euclidean norms.

    Source: MagCache, arXiv 2506.09045 (its calibration).
    """

    probe: Probe
    since: Since

    def __post_init__(self) -> None:
        expect(self.probe, PROBES, "size_ratio's probe", PROBE_HINT)
        expect(self.since, Since, "size_ratio(since=...)", "Use PREVIOUS or LAST_COMPUTED.")


def size_ratio(probe: Probe, *, since: Since) -> SizeRatio:
    """How many times as large a probe is as it was."""
    return SizeRatio(probe, since)
