"""Hypothesis strategies for policies that any generated model can run, in all words of the language.

What random_policies.py draws can be said; what is drawn here also matches a model of two blocks or
more, whose block 0 is never skipped, so that every probe lies before what it decides about.
"""

import re
from dataclasses import replace

from hypothesis import strategies as st

from synccache.errors import StateError
from synccache.policies import dsl
from synccache.policies.dsl import blocks, branches
from synccache.policies.prospects import check_prospects

FIRST = blocks[0]
VISUAL = branches.after(FIRST) - branches.reading(dsl.AUDIO)
RUNS = (blocks[1:], VISUAL, branches.mlp - FIRST, branches.attention & blocks[1:], blocks[-1])
STEPS = 6

scalars: st.SearchStrategy[dsl.Predictor] = st.one_of(
    st.just(dsl.Hold()),
    st.just(dsl.Linear()),
    st.builds(dsl.Taylor, st.integers(0, 2), st.integers(0, 2)),
    st.builds(dsl.Newton, st.integers(0, 2)),
    st.builds(dsl.Hermite, st.integers(0, 2), st.floats(0.3, 1.0)),
)
predictors: st.SearchStrategy[dsl.Predictor] = st.one_of(
    scalars,
    st.just(dsl.Foca()),
    st.just(dsl.Fixed((-0.5, 1.5))),
    st.builds(dsl.Split, scalars, scalars, st.floats(0.1, 0.6), st.just(dsl.TOKEN_FFT)),
)

# ---- signals of about 0.01 to 2

masks = st.builds(dsl.MaskWeight, st.just("person"), st.floats(0, 5))
weights = st.one_of(
    st.none(),
    masks,
    st.builds(dsl.ChannelStride, st.integers(1, 3)),
    st.tuples(st.just(dsl.ChannelStride(2)), masks),
)
streams = st.sampled_from(
    [
        dsl.output(FIRST),
        dsl.residual(FIRST),
        dsl.modulated(FIRST),
        dsl.module(FIRST),
        dsl.entering(blocks[1]),
    ]
)
since = st.one_of(
    st.sampled_from(dsl.Since),
    st.builds(dsl.Forecast, scalars),
)
changes = st.builds(
    dsl.RelativeL1,
    streams,
    since,
    weights,
    st.sampled_from(dsl.Norm),
    st.sampled_from(dsl.Denominator),
    st.sampled_from([0.0, 1e-3]),
)
filtered = st.builds(
    dsl.RelativeL1, streams, since, st.builds(dsl.TokenFilter, st.floats(0.05, 0.5))
)
whole = st.builds(dsl.RelativeL1, st.sampled_from([dsl.latent, dsl.time_embedding]), since)
latents = st.builds(
    dsl.RelativeL1, st.just(dsl.latent), st.sampled_from(dsl.Since), st.builds(dsl.Spectral)
)
easy = dsl.gain(dsl.prediction, dsl.latent) * dsl.mean_change(dsl.latent, since=dsl.PREVIOUS)
late = st.builds(dsl.Lagged, st.builds(dsl.RelativeL1, st.just(dsl.prediction), since))
numbers = st.one_of(
    changes,
    changes,
    filtered,
    whole,
    latents,
    late,
    st.just(easy / dsl.mean_size(dsl.prediction)),
    st.builds(dsl.Deviation, st.builds(dsl.Table, st.just((1.0, 0.9, 1.1, 0.95, 1.2)))),
)
signals = st.one_of(
    numbers,
    st.builds(dsl.Accumulated, numbers, st.sampled_from(dsl.Reset)),
    st.builds(dsl.Polynomial, numbers, st.sampled_from([(1.0, 0.0), (2.0, -0.1, 0.01)])),
    st.builds(dsl.Arithmetic, numbers, st.sampled_from("+-*"), numbers | st.floats(0.1, 2)),
    st.builds(dsl.Absolute, st.builds(dsl.Arithmetic, numbers, st.just("-"), numbers)),
    st.builds(dsl.Lagged, numbers, st.none() | st.floats(0, 1)),
)

# ---- conditions

limits = st.one_of(
    st.floats(0.01, 1.5), st.builds(dsl.Decay, st.floats(0.1, 2), st.floats(0.1, 1), st.just(0.05))
)
measured = st.builds(dsl.Compare, signals, st.sampled_from(["<", "<=", ">"]), limits)
counted = st.sampled_from(
    [
        dsl.step >= 2,
        dsl.skips < 2,
        dsl.skipped < 3,
        dsl.progress >= 0.2,
        dsl.steps_left > 0,
        dsl.step >= dsl.share(0.3),
        dsl.step >= dsl.share(0.4, rounding=dsl.NEAREST),
        dsl.between(dsl.timestep, 100, 800),
        ~dsl.every(dsl.step, 3),
        dsl.every(dsl.step, 3, 1),
        dsl.Steps("CSSCS"),
    ]
)
choices = st.builds(lambda of, a, b: dsl.choose(of, a, b) <= 0.5, counted, signals, limits)
counting = st.builds(lambda of, s: dsl.accumulated(s, counting=of) <= 0.5, counted, numbers)
conditions = st.one_of(
    measured,
    st.builds(dsl.And, measured, counted),
    st.builds(dsl.Or, measured, counted),
    st.builds(dsl.And, st.builds(dsl.Or, measured, measured), st.builds(dsl.Not, counted)),
    choices,
    counting,
    counted,
)
leaders = st.sampled_from(dsl.Leader)


def policies(
    skips: st.SearchStrategy[dsl.Skip], *, whole: bool = False
) -> st.SearchStrategy[dsl.Policy]:
    """One rule with any condition and predictor over these forms of skipping.

    whole: nothing of the network runs on a skipped step, so only what comes before it is probed.
    """
    when = conditions.filter(lambda c: not _STREAMS.search(repr(c))) if whole else conditions
    rules = st.builds(dsl.Rule, skips, when, predictors)
    made = st.builds(lambda rule, leader: dsl.Policy("random", (rule,), leader), rules, leaders)
    return made.filter(may_skip)


def may_skip(policy: dsl.Policy) -> bool:
    """Whether a run of STEPS steps is not refused because the policy could skip nothing in it."""
    try:
        check_prospects(policy, STEPS)
    except StateError:
        return False
    return True


_STREAMS = re.compile(r"probe=(Output|Residual|ModuleOutput|Modulated|Entering)")

anchored = st.builds(
    lambda moved, when, low, high: dsl.Rule(
        blocks[1:], (moved < 1.0) & when, dsl.TwoAnchor(low, high)
    ),
    st.builds(dsl.RelativeL1, st.sampled_from([dsl.output(FIRST), dsl.residual(FIRST)]), since),
    counted,
    st.floats(0, 1),
    st.floats(1, 2),
)
two_anchors = st.builds(
    lambda rule, leader: dsl.Policy("two", (rule,), leader), anchored, leaders
).filter(may_skip)
whole_with_anchors = st.builds(
    lambda policy: policy.with_(
        rules=tuple(replace(rule, skip=dsl.whole(branches)) for rule in policy.rules)
    ),
    two_anchors,
)
