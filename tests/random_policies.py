"""Hypothesis strategies for policies: any that the language can say, however useless."""

from hypothesis import strategies as st

from synccache.policies import dsl

NAMES = st.text(min_size=1, max_size=6)
LIMITS = st.one_of(st.floats(0, 10), st.integers(0, 50), st.just(dsl.inf))
INDICES = st.none() | st.integers(-50, 50)
COEFFICIENTS = st.lists(st.floats(allow_nan=False), min_size=1, max_size=4).map(tuple)

selectors: st.SearchStrategy[dsl.Selector] = st.recursive(
    st.one_of(
        st.just(dsl.branches),
        st.builds(dsl.Blocks, INDICES, INDICES),
        st.builds(dsl.Reading, st.sampled_from(dsl.TAGS) | NAMES),
        st.builds(dsl.OfKind, st.sampled_from(dsl.Kind)),
    ),
    lambda inner: st.one_of(
        st.builds(dsl.After, inner),
        st.builds(dsl.Either, inner, inner),
        st.builds(dsl.Both, inner, inner),
        st.builds(dsl.Without, inner, inner),
    ),
    max_leaves=4,
)
ORDERS = st.integers(0, 4)
by_steps: st.SearchStrategy[dsl.Predictor] = st.one_of(
    st.just(dsl.Hold()),
    st.just(dsl.Linear()),
    st.builds(dsl.Taylor, ORDERS, st.integers(0, 5)),
    st.builds(dsl.Newton, ORDERS),
    st.builds(dsl.Feedback, st.floats(0, 1)),
    st.builds(dsl.Hermite, ORDERS, st.floats(0.1, 1.5), st.integers(0, 5)),
)
one_weight = st.one_of(
    st.builds(dsl.MaskWeight, NAMES, st.floats(0, 1e6)),
    st.builds(dsl.Spectral, st.floats(0, 4), st.floats(1, 1000)),
    st.builds(dsl.ChannelStride, st.integers(1, 9)),
)
weights = st.none() | one_weight | st.lists(one_weight, min_size=1, max_size=2).map(tuple)
early = st.one_of(
    st.builds(dsl.Output, selectors),
    st.builds(dsl.Residual, selectors),
    st.builds(dsl.Entering, selectors),
    st.builds(dsl.Modulated, selectors),
    st.builds(dsl.ModuleOutput, selectors),
    st.just(dsl.latent),
    st.builds(dsl.TimeEmbedding, st.sampled_from(dsl.Stage)),
    st.just(dsl.given("speech")),
)
since = st.sampled_from(dsl.Since) | st.builds(dsl.Forecast, by_steps)
relative = st.builds(
    dsl.RelativeL1, early, since, weights, st.sampled_from(dsl.Norm),
    st.sampled_from(dsl.Denominator), st.floats(0, 1),
)  # fmt: skip
filtered = st.builds(
    dsl.RelativeL1, early, since, st.builds(dsl.TokenFilter, st.floats(0, 1)), st.just(dsl.RATIO_OF_MEANS)
)  # fmt: skip
known_late = st.one_of(
    st.builds(dsl.RelativeL1, st.just(dsl.prediction), since, st.none()),
    st.builds(dsl.ExactError, selectors, st.sampled_from(dsl.Norm)),
)
leaves = st.one_of(
    relative,
    filtered,
    st.builds(dsl.MeanChange, early, since, weights),
    st.builds(dsl.SizeRatio, early, st.sampled_from(dsl.Since)),
    st.builds(dsl.MeanSize, early | st.just(dsl.prediction), st.sampled_from(dsl.Since)),
    st.builds(dsl.Gain, early | st.just(dsl.prediction), early),
    st.builds(dsl.Lagged, known_late, st.none() | st.floats(0, 1)),
    st.just(dsl.given("loudness")),
)
FACTORS = st.floats(-10, 10)
measured: st.SearchStrategy[dsl.Signal] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(dsl.Accumulated, inner, st.sampled_from(dsl.Reset)),
        st.builds(dsl.Polynomial, inner, COEFFICIENTS),
        st.builds(dsl.Deviation, inner),
        st.builds(dsl.Lagged, inner, st.none() | FACTORS),
        st.builds(dsl.Absolute, inner),
        st.builds(dsl.Arithmetic, inner, st.sampled_from("+-*/"), inner | FACTORS),
    ),
    max_leaves=3,
)
counters = st.sampled_from(list(dsl.COUNTERS)).map(dsl.Counter)
signals = st.one_of(
    measured,
    counters,
    st.builds(dsl.Table, COEFFICIENTS),
    st.builds(dsl.Share, st.floats(0, 1), st.sampled_from(dsl.Rounding)),
)
limits = LIMITS | signals | st.builds(dsl.Decay, st.floats(0, 9), st.floats(0, 1), st.floats(0, 1))
simple = st.one_of(
    st.builds(dsl.Compare, signals, st.sampled_from(["<", "<=", ">", ">="]), limits),
    st.builds(dsl.Steps, st.text("CS", min_size=1, max_size=9)),
    st.builds(dsl.Steps, st.just("CSC"), st.just((1000.0, 500.5, 1.0))),
    st.builds(dsl.Between, signals, st.floats(-9, 0), st.floats(1, 9)),
    st.builds(
        dsl.Every,
        st.sampled_from([dsl.step, dsl.steps_left]),
        st.integers(1, 9),
        st.integers(-9, 9),
    ),
)
conditions: st.SearchStrategy[dsl.Condition] = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(dsl.And, inner, inner),
        st.builds(dsl.Or, inner, inner),
        st.builds(dsl.Not, inner),
        st.builds(lambda of, then: dsl.choose(of, then, 1.0) <= 0.5, inner, signals),
        st.builds(lambda of, signal: dsl.accumulated(signal, counting=of) <= 0.5, inner, measured),
    ),
    max_leaves=4,
)
predictors: st.SearchStrategy[dsl.Predictor] = st.one_of(
    by_steps,
    st.just(dsl.Foca()),
    st.builds(dsl.Fitted, st.floats(-2, 2).map(lambda w: ((3, (0, 2), (-w, 1.0 + w)),))),
    st.builds(dsl.Fixed, st.floats(-2, 2).map(lambda w: (-w, 1 + w))),
    st.builds(dsl.TwoAnchor, st.floats(0, 1), st.floats(1, 2)),
    st.builds(dsl.Split, by_steps, by_steps, st.floats(0, 1), st.sampled_from(dsl.Transform)),
)
skips = st.one_of(
    selectors,
    st.builds(dsl.Segments, selectors),
    st.builds(dsl.Values, selectors | st.just(dsl.network)),
    st.builds(dsl.Whole, selectors),
    st.just(dsl.nothing),
    st.builds(dsl.Modules, selectors, st.booleans()),
    st.just(dsl.network),
)
anchored = st.builds(
    lambda when, of: when & (dsl.relative_l1(dsl.output(of), since=dsl.PREVIOUS) <= 0.1),
    conditions,
    selectors,
)  # TwoAnchor needs a probe of its own kind
SHARES = st.floats(0.01, 1)
SEEDS = st.integers(0, 99)
tokens: st.SearchStrategy[dsl.Tokens] = st.one_of(
    st.builds(dsl.OnePerCluster, st.integers(1, 64), SHARES, st.integers(1, 9), SEEDS, selectors),
    st.builds(dsl.TopTokens, st.sampled_from(dsl.Score), SHARES, SHARES, st.integers(1, 4), SEEDS),
)
rules = st.one_of(
    st.builds(
        dsl.Rule, skips, conditions, predictors.filter(lambda p: not isinstance(p, dsl.TwoAnchor))
    ),
    st.builds(dsl.Rule, skips, anchored, predictors),
    st.builds(dsl.Rule, st.builds(dsl.Modules, selectors), conditions, by_steps, tokens),
)
siblings = st.builds(
    dsl.Rule,
    st.just(dsl.values(dsl.network)),
    conditions,
    st.builds(dsl.FromSibling, SHARES, SHARES, st.just((1, 2.5)), st.just((-1, 9))),
)
measured_on = st.builds(
    dsl.MeasuredOn, NAMES, NAMES, st.lists(st.integers(1, 99), max_size=3).map(tuple),
    st.none() | st.integers(1, 50), st.sampled_from(["", "euler"]),
)  # fmt: skip
policies = st.one_of(
    st.builds(
        dsl.Policy, NAMES, st.lists(rules, max_size=3).map(tuple), st.sampled_from(dsl.Leader)
    ),
    st.builds(dsl.Policy, NAMES, st.lists(siblings, max_size=2).map(tuple)),
    st.builds(dsl.Policy, NAMES, measured_on=st.lists(measured_on, max_size=2).map(tuple)),
)
