"""Predictors: the worked numbers of the published methods, and what all of them must satisfy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_policies import by_steps, predictors

from synccache.errors import PolicyError, StateError
from synccache.fx.predict import low_band, predict, weighted_sum
from synccache.policies.dsl import (
    GRID_DCT,
    TOKEN_FFT,
    Feedback,
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

ANCHORS = st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True).map(
    lambda found: tuple(sorted(found))
)


def value(predictor: Predictor, anchors: tuple[int, ...], features: list[float], at: int) -> float:
    return sum(w * f for w, f in zip(predictor.weights(anchors, at), features, strict=True))


def squares(anchors: tuple[int, ...]) -> list[float]:
    return [t * t / 3 + 1 for t in anchors]


@pytest.mark.parametrize(
    ("predictor", "anchors", "at", "expected"),
    [
        # features t^2 / 3 + 1 (TaylorSeer)
        (Taylor(order=2), (0,), 1, 1.0),
        (Taylor(order=2), (0, 3), 4, 5.0),
        (Taylor(order=2), (0, 3), 5, 6.0),
        (Taylor(order=2), (0, 3, 6), 7, 49 / 3),
        (Taylor(order=2), (0, 3, 6), 8, 61 / 3),
        (Taylor(order=2), (0, 1, 4), 5, 74 / 9),
        # true values 52 / 3 and 28 / 3
        (Newton(order=2), (0, 3, 6), 7, 52 / 3),
        (Newton(order=2), (0, 1, 4), 5, 28 / 3),
        # (HiCache)
        (Hermite(order=2, scale=0.5), (0, 3, 6), 6, 12.833333),
        (Hermite(order=2, scale=0.5), (0, 3, 6), 7, 14.416667),
        (Hermite(order=2, scale=0.5), (0, 3, 6), 8, 16.166667),
        (Hermite(order=2, scale=0.71), (0, 3, 6), 6, 12.663933),
        (Hermite(order=2, scale=0.71), (0, 3, 6), 7, 16.027356),
        (Hermite(order=2, scale=0.71), (0, 3, 6), 8, 20.068423),
    ],
)
def test_worked_numbers_of_polynomial_forecasts(
    predictor: Predictor, anchors: tuple[int, ...], at: int, expected: float
) -> None:
    assert value(predictor, anchors, squares(anchors), at) == pytest.approx(expected, abs=1e-6)


def test_worked_number_of_linear_prediction_over_a_gap() -> None:
    assert value(Linear(), (2, 4), [1.0, 1.6], 5) == pytest.approx(1.9)


def test_differences_begin_on_the_step_that_start_names() -> None:
    late = Taylor(order=2, start=2)

    assert late.weights((0, 1), 3) == (0.0, 1.0)
    assert late.weights((0, 1, 2), 3) == Taylor(order=1).weights((0, 1, 2), 3)
    assert late.weights((1, 2, 7), 8) == Taylor(order=2).weights((1, 2, 7), 8)


def test_worked_numbers_of_two_anchor_extrapolation() -> None:
    residuals, changed = [10.0, 10.5], 0.3 / 0.2  # |q_2 - q_b| / |q_a - q_b|

    def at(anchor: TwoAnchor, ratio: float) -> float:
        weights = anchor.weights((0, 1), 2, ratio)
        return sum(w * r for w, r in zip(weights, residuals))

    assert 9.6 + at(TwoAnchor(), changed) == pytest.approx(20.35)
    assert 9.4 + at(TwoAnchor(), 2.0) == pytest.approx(20.15)
    assert 9.4 + at(TwoAnchor(high=2.0), 2.0) == pytest.approx(20.40)
    assert at(TwoAnchor(), 0.2) == pytest.approx(10.5)


def test_worked_number_of_fixed_weights_over_forecasts() -> None:
    weights = Fixed((-0.5, 1.5))

    assert value(weights, (0, 1), [3.0, 3.4], 2) == pytest.approx(3.6)
    assert value(weights, (1, 2), [3.4, 3.6], 3) == pytest.approx(3.7)


def test_feedback_takes_back_a_falling_share_of_the_last_error() -> None:
    found = [value(Feedback(0.5), (0, 3), [1.0, 3.0], at) for at in (4, 5, 6)]

    assert found == [3 + 0.5 * 2, 3 + 0.25 * 2, 3 + 0.125 * 2]
    assert Feedback(0.0).weights((0, 3), 4) == (0.0, 1.0)


def test_foca_takes_half_the_slope_of_the_anchors_and_half_of_the_last_two_values() -> None:
    first = value(Foca(), (0, 1), [1.0, 2.0], 2)
    values = [1.0, 2.0, 2.9]  # the forecast of step 2 was 2.9
    second = sum(w * f for w, f in zip(Foca().weights((0, 1, 2), 3, frozenset({2})), values))
    far = value(Foca(), (0, 1), [1.0, 2.0], 7)

    assert first == pytest.approx(3.0)
    assert second == pytest.approx(2.0 + 2 / 2 * (1.0 + 0.9))
    assert far == pytest.approx(0.5 * (2.0 + 1.5 * 2.0) + 0.5 * 2.0)


def test_worked_number_of_a_frequency_split() -> None:
    split = Split(low=Hold(), high=Hermite(order=1, scale=0.71), transform=TOKEN_FFT)
    held = [torch.tensor([[[4.0], [2.0]]]), torch.tensor([[[6.0], [2.0]]])]

    (found,) = predict(split, [0, 2], held, 3)

    assert found.flatten().tolist() == pytest.approx([6.5041, 1.4959])


@settings(max_examples=200, deadline=None)
@given(predictor=predictors, anchors=ANCHORS, ahead=st.integers(1, 6))
def test_the_weights_of_every_predictor_sum_to_one(
    predictor: Predictor, anchors: tuple[int, ...], ahead: int
) -> None:
    anchors = anchors[-predictor.history :]
    weights = predictor.weights(anchors, anchors[-1] + ahead)

    assert len(anchors) == len(weights)
    assert sum(weights) == pytest.approx(1.0, abs=1e-6 * sum(map(abs, weights)))


@settings(max_examples=100, deadline=None)
@given(predictor=by_steps, anchors=ANCHORS, ahead=st.integers(1, 6))
def test_features_that_do_not_change_are_predicted_exactly(
    predictor: Predictor, anchors: tuple[int, ...], ahead: int
) -> None:
    constant = torch.randn(1, 3, 2)
    anchors = anchors[-predictor.history :]

    found = predict(predictor, anchors, [constant] * len(anchors), anchors[-1] + ahead)

    assert torch.equal(constant, found)


@settings(max_examples=100, deadline=None)
@given(
    predictor=st.sampled_from(
        [Linear(), Taylor(1), Taylor(3), Newton(1), Newton(3), Hermite(1, math.sqrt(0.5))]
    ),
    anchors=ANCHORS.filter(lambda found: len(found) > 1),
    ahead=st.integers(1, 6),
)
def test_features_linear_in_the_step_are_predicted_exactly(
    predictor: Predictor, anchors: tuple[int, ...], ahead: int
) -> None:
    anchors = anchors[-predictor.history :]
    at = anchors[-1] + ahead

    found = value(predictor, anchors, [3.0 * t - 1 for t in anchors], at)

    assert found == pytest.approx(3.0 * at - 1, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(predictor=by_steps, anchors=ANCHORS, ahead=st.integers(1, 6))
def test_the_kernel_is_the_weighted_sum_that_the_weights_say(
    predictor: Predictor, anchors: tuple[int, ...], ahead: int
) -> None:
    anchors = anchors[-predictor.history :]
    at = anchors[-1] + ahead
    held = [torch.randn(1, 4, 3, dtype=torch.float64) for _ in anchors]

    found = predict(predictor, anchors, held, at)

    expected = sum(w * t for w, t in zip(predictor.weights(anchors, at), held))
    scale = sum(map(abs, predictor.weights(anchors, at)))
    assert torch.allclose(expected, found, rtol=0, atol=1e-13 * scale)


def test_reuse_is_the_held_tensor_itself() -> None:
    held = [torch.randn(1, 2, 3), torch.randn(1, 2, 3)]

    assert predict(Hold(), [0, 1], held, 2) is held[-1]


def test_sixteen_bit_tensors_are_summed_in_float32_and_rounded_once() -> None:
    held = [torch.randn(1, 64, 8).bfloat16() for _ in range(3)]
    weights = Taylor(order=2).weights((0, 3, 6), 8)

    found = weighted_sum(held, weights)

    exact = sum(w * t.double() for w, t in zip(weights, held))
    assert torch.bfloat16 == found.dtype
    assert ((found.double() - exact).abs() <= exact.abs() / 256 + 1e-5).all()


def test_weights_that_do_not_sum_to_one_scale_the_newest() -> None:
    held = [torch.tensor([2.0]), torch.tensor([10.0])]

    assert weighted_sum(held, (0.5, 0.25)).item() == 0.5 * 2 + 0.25 * 10


@pytest.mark.parametrize(("transform", "tokens"), [(TOKEN_FFT, 15), (GRID_DCT, 16)])
def test_a_band_is_a_projection_and_the_full_band_is_everything(transform, tokens) -> None:  # type: ignore[no-untyped-def]
    tensor = torch.randn(2, tokens, 3, dtype=torch.float64)

    low = low_band(tensor, 0.4, transform)

    assert torch.allclose(low, low_band(low, 0.4, transform))
    assert not torch.allclose(tensor, low)
    assert torch.allclose(tensor, low_band(tensor, 1.0, transform))
    mean = tensor.mean(1, keepdim=True).expand_as(tensor)
    assert torch.allclose(mean, low_band(tensor, 0.0, transform))


def test_tokens_that_are_no_square_grid_are_refused_by_a_grid_split() -> None:
    with pytest.raises(StateError, match="15 tokens are no square grid"):
        low_band(torch.zeros(1, 15, 2), 0.1, GRID_DCT)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: Taylor(order=-1), r"Taylor\(order=...\) must lie in \[0, 8\], got -1"),
        (lambda: Taylor(order=1.5), r"Taylor\(order=...\) must be an integer, got 1.5"),
        (lambda: Taylor(order=1, start=-2), "must be a step"),
        (lambda: Hermite(order=2, scale=-1), r"Hermite\(scale=...\) must lie in \[0, 2\]"),
        (lambda: TwoAnchor(low=2.0, high=1.0), "low 2 must not exceed its high 1"),
        (lambda: Fixed((0.5, 1.5)), "must sum to 1, got 2"),
        (lambda: Fixed([1.0]), "takes a tuple of weights"),  # type: ignore[arg-type]
        (lambda: Split(low=Split()), "weights depend on the steps alone"),
        (lambda: Split(high=Foca()), "weights depend on the steps alone"),
        (lambda: Split(transform="dct"), "must be a transform"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_predictor_is_refused_when_it_is_built(write, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PolicyError, match=message):
        write()
