"""Held tensors: what comes back, and how many bytes they take in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synccache.errors import StateError
from synccache.fx.held import Held, tensor_bytes
from synccache.planner.storage import BFLOAT16, FLOAT8, Form, Place, Storage

FLOAT8_STEP = 2**-4  # half of the distance of two neighbours of e4m3, relative to the smaller
SHAPES = st.sampled_from([(2, 3, 4), (1, 7, 8), (5, 16), (3, 1), (2, 2, 2, 6), (9,)])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (values * 10.0 ** (seed % 7 - 3)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES, dtype=DTYPES, form=st.sampled_from(Form), place=st.sampled_from(Place),
    count=st.integers(1, 4), keep=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_held_tensors_take_the_bytes_that_a_plan_counts(
    shape: tuple[int, ...], dtype: torch.dtype, form: Form, place: Place, count: int, keep: int,
    seed: int,
) -> None:  # fmt: skip
    held = Held(Storage(name="x", form=form, place=place))
    wide = drawn((2, *shape), dtype, seed)
    for step in range(count):
        held.push(step, wide[1], keep)  # a view of something larger

    lies_at = Place.HOST if place is Place.HOST else Place.DEVICE
    assert held.bytes_at(lies_at) == min(count, keep) * tensor_bytes(shape, dtype, form)
    assert held.steps == list(range(count))[-keep:]
    for found in held.tensors():
        assert (found.shape, found.dtype, found.device) == (wide[1].shape, dtype, wide.device)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, dtype=DTYPES, place=st.sampled_from(Place), seed=st.integers(0, 99))
def test_what_is_kept_as_computed_comes_back_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, place: Place, seed: int
) -> None:
    held = Held(Storage(name="x", place=place))
    held.push(0, drawn(shape, dtype, seed), 1)

    assert torch.equal(drawn(shape, dtype, seed), held.tensors()[0])


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 99))
def test_float8_is_off_by_a_sixteenth_of_each_number_or_of_the_smallest_step_of_its_token(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    held = Held(Storage(name="x", form=Form.FLOAT8))
    expected = drawn(shape, dtype, seed)
    held.push(0, expected, 1)
    found = held.tensors()[0].float()

    largest = expected.float().abs().amax(dim=-1, keepdim=True)
    smallest_step = largest / 448 * 2**-9  # of subnormal numbers
    rounding = expected.float().abs() * torch.finfo(dtype).eps  # of the way back
    allowed = torch.maximum(expected.float().abs() * FLOAT8_STEP, smallest_step) + rounding
    tiny = torch.finfo(dtype).tiny
    assert bool(((found - expected.float()).abs() <= allowed * (1 + 1e-5) + tiny).all())


def test_a_scale_for_each_token_keeps_quiet_tokens_that_one_scale_loses() -> None:
    tokens = torch.ones(1, 2, 8)
    tokens[0, 1] = 1e-6
    found = {}
    for form in (Form.FLOAT8, Form.FLOAT8_TENSOR):
        held = Held(Storage(name="x", form=form))
        held.push(0, tokens, 1)
        found[form] = float(held.tensors()[0][0, 1, 0])

    assert found == {Form.FLOAT8: pytest.approx(1e-6, rel=0.07), Form.FLOAT8_TENSOR: 0.0}


def test_a_token_of_zeros_comes_back_as_zeros() -> None:
    held = Held(Storage(name="x", form=Form.FLOAT8))
    held.push(0, torch.zeros(1, 3, 4), 1)

    assert torch.equal(torch.zeros(1, 3, 4), held.tensors()[0])


def test_a_tensor_converted_in_several_chunks_comes_back_whole() -> None:
    tensor = drawn((1, 5000, 1024), torch.bfloat16, 5)  # more numbers than one chunk has
    held = Held(Storage(name="x", form=Form.FLOAT8))
    held.push(0, tensor, 1)
    rows = tensor[0].float()
    scale = rows.abs().amax(dim=1, keepdim=True) / 448
    expected = ((rows / scale).to(torch.float8_e4m3fn).float() * scale).to(torch.bfloat16)

    assert torch.equal(expected, held.tensors()[0][0])


def test_what_lies_on_the_device_in_turns_leaves_it_and_comes_back() -> None:
    held = Held(Storage(name="x", place=Place.TURNS))
    expected = drawn((1, 3, 4), torch.float32, 0)
    held.push(0, expected, 1)
    seen = []
    for move in (held.park, held.prefetch, held.park, held.prefetch):
        move()
        seen.append((held.bytes_at(Place.DEVICE), held.bytes_at(Place.HOST)))

    assert seen == [(0, 48), (48, 48), (0, 48), (48, 48)]
    assert torch.equal(expected, held.tensors()[0])
    held.push(1, 2 * expected, 1)
    assert (held.bytes_at(Place.DEVICE), held.bytes_at(Place.HOST)) == (48, 0)


def test_the_errors_that_the_planner_assumes_of_forms_are_those_of_normal_numbers() -> None:
    tensor = drawn((1, 2000, 512), torch.float32, 3)
    for storage in (BFLOAT16, FLOAT8):
        held = Held(storage)
        held.push(0, tensor, 1)
        error = (held.tensors()[0] - tensor).abs().sum() / tensor.abs().sum()
        assert float(error) == pytest.approx(storage.drift, rel=0.03)


def test_room_is_made_before_the_next_tensor_exists() -> None:
    held = Held()
    for step in range(3):
        held.push(step, torch.full((2, 2), float(step)), 3)
    held.make_room(2)

    assert (held.steps, len(held)) == ([2], 1)


def test_whole_numbers_cannot_be_kept_in_fewer_bits() -> None:
    held = Held(Storage(name="x", form=Form.FLOAT8))

    with pytest.raises(StateError, match="a tensor of int64 cannot be kept as float8"):
        held.push(0, torch.ones(2, 2, dtype=torch.int64), 1)
