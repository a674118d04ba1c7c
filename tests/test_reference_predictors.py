"""Predictors as one weighted sum give what their published recurrences give, on any history."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_predictors import Kept, predicted

from synccache.fx.predict import predict
from synccache.policies.dsl import (
    GRID_DCT,
    TOKEN_FFT,
    Fixed,
    Foca,
    Hermite,
    Hold,
    Linear,
    Newton,
    Predictor,
    Split,
    Taylor,
    TwoAnchor,
)

TOKENS, CHANNELS = 9, 2  # a square grid
ROUNDING = 1e-9

orders, starts = st.integers(0, 4), st.integers(0, 6)
scalars = st.one_of(
    st.just(Hold()),
    st.just(Linear()),
    st.builds(Taylor, orders, starts),
    st.builds(Newton, orders),
    st.builds(Hermite, orders, st.floats(0.1, 1.5), starts),
)
predictors = st.one_of(
    scalars,
    st.builds(TwoAnchor, st.floats(0, 1), st.floats(1, 3)),
    st.builds(Split, scalars, scalars, st.floats(0, 1), st.sampled_from([TOKEN_FFT, GRID_DCT])),
)
histories = st.lists(st.integers(1, 5), min_size=1, max_size=7)  # gaps between computed steps


def values(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 1, TOKENS, CHANNELS)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


@settings(deadline=None, max_examples=150)
@given(predictor=predictors, gaps=histories, distance=st.integers(1, 6), ratio=st.floats(0, 4))
def test_a_weighted_sum_of_the_newest_tensors_is_the_published_recurrence(
    predictor: Predictor, gaps: list[int], distance: int, ratio: float
) -> None:
    steps = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    tensors, at = values(len(steps)), steps[-1] + distance
    history = [Kept(step, tensor) for step, tensor in zip(steps, tensors, strict=True)]
    two = isinstance(predictor, TwoAnchor)
    expected = predicted(predictor, history, at, ratio if two else None)
    keep = predictor.history
    known = torch.tensor(ratio, dtype=torch.float64) if two and len(steps) > 1 else None
    found = predict(predictor, steps[-keep:], tensors[-keep:], at, ratio=known)

    size = max(1.0, float(expected.abs().max()), *(float(t.abs().max()) for t in tensors))
    assert float((expected - found).abs().max()) <= ROUNDING * size * 10 ** max(0, keep - 2)


@pytest.mark.parametrize("predictor", [Foca(), Fixed((-0.5, 1.5)), Fixed((0.25, -0.5, 1.25))])
@settings(deadline=None, max_examples=40)
@given(letters=st.lists(st.booleans(), min_size=1, max_size=14))
def test_what_also_uses_its_own_forecasts_agrees_step_after_step(
    predictor: Predictor, letters: list[bool]
) -> None:
    fresh = values(len(letters) + 1)
    history: list[Kept] = []
    held: list[Kept] = []
    for step, skipped in enumerate([False, *letters]):
        if not skipped:
            history.append(Kept(step, fresh[step]))
            held = _kept(predictor, [*held, history[-1]])
            continue
        expected = predicted(predictor, history, step)
        forecasts = frozenset(k.step for k in held if k.forecast)
        found = predict(
            predictor, [k.step for k in held], [k.tensor for k in held], step, forecasts=forecasts
        )
        history.append(Kept(step, expected, forecast=True))
        held = _kept(predictor, [*held, Kept(step, found, forecast=True)])

        assert float((expected - found).abs().max()) <= ROUNDING * float(expected.abs().max())


def _kept(predictor: Predictor, held: list[Kept]) -> list[Kept]:
    """What must be held: the newest computed ones, and the newest of any kind."""
    computed = [k for k in held if not k.forecast][-predictor.anchors :] * bool(predictor.anchors)
    recent = held[-predictor.recent :]
    return [k for k in held if any(k is c for c in (*computed, *recent))]
