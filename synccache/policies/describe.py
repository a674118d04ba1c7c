"""Conditions, signals, probes and selectors in words, for reports and refusals."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from synccache.policies import conditions as c
from synccache.policies import counters as n
from synccache.policies import fitted as f
from synccache.policies import probes as p
from synccache.policies import selectors as sel
from synccache.policies import signals as s
from synccache.policies import sizes


def describe(item: Any) -> str:
    """A part of a policy as a reader would say it."""
    if isinstance(item, bool) or item is None:
        return str(item)
    if isinstance(item, (int, float)):
        return f"{item:g}"
    if isinstance(item, enum.Enum):
        return str(item.value).replace("_", " ")
    say = _SAY.get(type(item))
    return repr(item) if say is None else say(item)


def _relative(of: s.RelativeL1) -> str:
    extra = [describe(w) for w in s.weights_of(of)]
    extra += [] if of.norm is p.RATIO_OF_MEANS else [describe(of.norm)]
    extra += [] if of.denominator is p.OLD else ["over the new value"]
    return ", ".join([f"change of {describe(of.probe)} since {describe(of.since)}", *extra])


def _arithmetic(of: c.Arithmetic) -> str:
    if of.right == 0.0 and of.operator in "+-":
        return describe(of.left)
    return f"({describe(of.left)} {of.operator} {describe(of.right)})"


def _blocks(of: sel.Blocks) -> str:
    one = of.start is not None and of.stop is not None and of.stop == of.start + 1
    start, stop = ("" if edge is None else edge for edge in (of.start, of.stop))
    return f"blocks[{of.start}]" if one else f"blocks[{start}:{stop}]"


def _accumulated(of: s.Accumulated) -> str:
    ever = " over the run" if of.reset is s.NEVER else ""
    return f"accumulated {describe(of.of)}{ever}"


def _lagged(of: s.Lagged) -> str:
    return f"{describe(of.of)} on the step before"


_SAY: dict[type, Callable[[Any], str]] = {
    c.And: lambda of: f"{describe(of.left)} and {describe(of.right)}",
    c.Or: lambda of: f"({describe(of.left)} or {describe(of.right)})",
    c.Not: lambda of: f"not ({describe(of.of)})",
    c.Compare: lambda of: f"{describe(of.left)} {of.operator} {describe(of.limit)}",
    c.Between: lambda of: f"{describe(of.of)} between {of.low:g} and {of.high:g}",
    c.Every: lambda of: (
        f"every {of.n} of {describe(of.of)}" + (f" from {of.offset}" if of.offset else "")
    ),
    c.Steps: lambda of: f"steps {of.letters}",
    c.Arithmetic: _arithmetic,
    c.Absolute: lambda of: f"|{describe(of.of)}|",
    n.Counter: lambda of: of.name,
    n.Share: lambda of: f"{of.of:g} of the steps",
    n.Decay: lambda of: f"{of.base:g} falling by {of.rate:g}, at least {of.floor:g}",
    n.Table: lambda of: f"a table of {len(of.values)} steps",
    p.Output: lambda of: f"output of {describe(of.of)}",
    p.Entering: lambda of: f"stream before {describe(of.of)}",
    p.Residual: lambda of: f"residual of {describe(of.of)}",
    p.Modulated: lambda of: f"modulated input of {describe(of.of)}",
    p.ModuleOutput: lambda of: f"module output of {describe(of.of)}",
    p.Latent: lambda of: "the sample",
    p.TimeEmbedding: lambda of: f"time {describe(of.stage)}",
    p.Prediction: lambda of: "the model's output",
    p.Given: lambda of: f"given {of.name}",
    p.Forecast: lambda of: f"its forecast by {of.predictor!r}",
    p.MaskWeight: lambda of: f"{of.name} weighs {of.inside:g}",
    p.Spectral: lambda of: "noise filtered out",
    p.TokenFilter: lambda of: f"tokens that moved by more than {of.threshold:g}",
    p.ChannelStride: lambda of: f"every channel {of.n} apart",
    s.RelativeL1: _relative,
    s.MeanChange: lambda of: f"mean change of {describe(of.probe)} since {describe(of.since)}",
    sizes.SizeRatio: lambda of: f"size of {describe(of.probe)} over that at {describe(of.since)}",
    sizes.MeanSize: lambda of: f"mean size of {describe(of.probe)} at {describe(of.since)}",
    s.Gain: lambda of: f"gain of {describe(of.of)} per {describe(of.per)}",
    s.ExactError: lambda of: f"error against exact {describe(of.of)}",
    s.Polynomial: lambda of: f"polynomial of {describe(of.of)}",
    s.Accumulated: _accumulated,
    s.Deviation: lambda of: f"accumulated deviation of {describe(of.of)}",
    s.Lagged: _lagged,
    s.Choice: lambda of: (
        f"({describe(of.then)} where {describe(of.condition)}, else {describe(of.otherwise)})"
    ),
    sel.Blocks: _blocks,
    f.Fitted: lambda of: (
        f"constant weights for {len(of.mixes)} skipped steps, each of at most {of.history} tensors"
    ),
    f.Payback: lambda of: (
        f"payback of {of.strength:g} of the error, interpolated with degree {of.degree}"
    ),
}
