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
weights = st.none() | st.builds(dsl.MaskWeight, NAMES, st.floats(0, 1e6))
measured: st.SearchStrategy[dsl.Signal] = st.recursive(
    st.builds(
        dsl.RelativeL1,
        st.builds(dsl.Output, selectors) | st.builds(dsl.Residual, selectors),
        st.sampled_from(dsl.Since),
        weights,
    ),
    lambda inner: st.one_of(
        st.builds(dsl.Accumulated, inner), st.builds(dsl.Polynomial, inner, COEFFICIENTS)
    ),
    max_leaves=3,
)
signals = measured | st.sampled_from(list(dsl.COUNTERS)).map(dsl.Counter)
conditions: st.SearchStrategy[dsl.Condition] = st.recursive(
    st.one_of(
        st.builds(dsl.Compare, signals, st.sampled_from(["<", "<=", ">", ">="]), LIMITS),
        st.builds(dsl.Steps, st.text("CS", min_size=1, max_size=9)),
    ),
    lambda inner: st.one_of(
        st.builds(dsl.And, inner, inner),
        st.builds(dsl.Or, inner, inner),
        st.builds(dsl.Not, inner),
    ),
    max_leaves=4,
)
ORDERS = st.integers(0, 4)
by_steps: st.SearchStrategy[dsl.Predictor] = st.one_of(
    st.just(dsl.Hold()),
    st.just(dsl.Linear()),
    st.builds(dsl.Taylor, ORDERS, st.integers(0, 5)),
    st.builds(dsl.Newton, ORDERS),
    st.builds(dsl.Hermite, ORDERS, st.floats(0.1, 1.5), st.integers(0, 5)),
)
predictors: st.SearchStrategy[dsl.Predictor] = st.one_of(
    by_steps,
    st.just(dsl.Foca()),
    st.builds(dsl.Fixed, st.floats(-2, 2).map(lambda w: (-w, 1 + w))),
    st.builds(dsl.TwoAnchor, st.floats(0, 1), st.floats(1, 2)),
    st.builds(dsl.Split, by_steps, by_steps, st.floats(0, 1), st.sampled_from(dsl.Transform)),
)
skips = st.one_of(
    selectors,
    st.builds(dsl.Segments, selectors),
    st.builds(dsl.Values, selectors | st.just(dsl.network)),
    st.builds(dsl.Modules, selectors, st.booleans()),
    st.just(dsl.network),
)
rules = st.builds(dsl.Rule, skips, conditions, predictors)
policies = st.builds(
    dsl.Policy, NAMES, st.lists(rules, max_size=3).map(tuple), st.sampled_from(dsl.Leader)
)
