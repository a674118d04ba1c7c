"""Numbers, shapes and layouts that a forward reads from tensors: constant, guarded, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fx_hazards import WIDTH, Model, check, model, same, x_of
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError


def test_numbers_read_from_constants_stay_constant() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        sizes = torch.tensor([1, 2])
        if bool(self.a.weight.sum() > 1e9):
            return x
        return self.a(x)[:, : sizes[1]] * sizes.tolist()[1] + sizes.sum().item()

    check(model(forward), captures=2)


@pytest.mark.parametrize(
    "read", [lambda t: t.item(), lambda t: t.tolist(), int, float, bool, lambda t: range(9)[t]]
)
def test_numbers_read_from_inputs_are_guarded(read: Callable[[Tensor], Any]) -> None:
    def forward(self: Model, x: Tensor, n: Tensor) -> Tensor:
        return self.a(x) * read(n)

    one, two = torch.tensor(1), torch.tensor(2)
    calls = [(x_of(0), one), (x_of(1), one), (x_of(2), two), (x_of(3), one)]

    check(model(forward), *calls, captures=1 if read is bool else 2)


def test_a_branch_on_values_is_recorded_again_when_it_goes_the_other_way() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.a(x)
        return self.b(x)

    up, down = x_of(0).abs(), -x_of(1).abs()
    check(model(forward), (up,), (down,), (up * 2,), (down * 2,), captures=2)


def _writing(self: Model, x: Tensor, y: Tensor) -> Tensor:
    y.add_(1)
    return self.a(x) if y.mean() > 0 else self.b(x) + y


def _drawing(self: Model, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.rand(1)
    return self.a(x) * noise if (noise * x.abs() * y).mean() > 0 else self.b(x) + noise


@pytest.mark.parametrize("forward", [_writing, _drawing])
def test_what_was_done_before_a_guard_stops_the_run_is_undone(forward: Callable[..., Any]) -> None:
    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for shift in (5.0, -5.0, 4.0, -4.0):
        mine, its = torch.full((1,), shift), torch.full((1,), shift)
        torch.manual_seed(0)
        expected = small(x_of(0), mine)
        torch.manual_seed(0)
        assert same(expected, compiled(x_of(0), its))
        assert same(mine, its)
    assert compiled.captures == 2


def test_a_number_that_changes_every_call_is_refused_with_its_line() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x) * x.mean().item()  # the line

    compiled = synccache.compile(model(forward), "exact")
    with pytest.raises(CaptureError, match="changes"):
        for k in range(40):
            compiled(x_of(k))


def test_shapes_that_depend_on_values() -> None:
    def forward(self: Model, x: Tensor, keep: Tensor) -> Tensor:
        return self.a(x[keep])

    a, b = torch.tensor([[True, False, True]]), torch.tensor([[True, True, True]])
    c = torch.tensor([[False, True, True]])

    check(model(forward), (x_of(0), a), (x_of(1), c), (x_of(2), b), (x_of(3), a), captures=2)


class Counting(nn.Module):
    """A module that returns a plain number read from its input, besides a tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, int((x > 0).sum())


class WithCounting(Model):
    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting()


def test_a_number_that_a_sub_module_reads_is_guarded_outside_it() -> None:
    def forward(self: WithCounting, x: Tensor) -> Tensor:
        twice, count = self.counting(x)
        return self.a(twice) * count

    some, all_ = torch.tensor([[[1.0, -1, -1, -1]]]), torch.ones(1, 1, WIDTH)
    check(model(forward, WithCounting), (some,), (all_,), (some * 2,), captures=2)


def test_a_sub_module_whose_result_has_a_shape_from_values() -> None:
    def forward(self: WithCounting, x: Tensor, keep: Tensor) -> Tensor:
        y = self.counting(x, keep)
        return self.a(y).reshape(y.shape[0] * WIDTH)

    small = model(forward, WithCounting)
    small.counting.forward = lambda x, keep: x[keep]  # type: ignore[method-assign]
    a, b = torch.tensor([[True, False, True]]), torch.tensor([[True, True, True]])
    check(small, (x_of(0), a), (x_of(1), b), (x_of(2), a), captures=2)


def test_questions_about_memory_layout_are_guarded() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x) if x.is_contiguous() else self.b(x)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for x in (x_of(0), x_of(1).transpose(1, 2).contiguous().transpose(1, 2), x_of(2)):
        assert same(small(x), compiled(x))


class Halving(nn.Module):
    """A step outside torch: numpy."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() / 2)


class WithHalving(Model):
    def __init__(self) -> None:
        super().__init__()
        self.halving = Halving()


def test_numpy_in_a_sub_module_keeps_it_closed() -> None:
    def forward(self: WithHalving, x: Tensor) -> Tensor:
        return self.b(self.halving(self.a(x)))

    compiled = check(model(forward, WithHalving))

    assert compiled.variant.captured.closed == ("halving",)


def test_numpy_in_the_models_own_forward_is_refused_with_its_line() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(torch.from_numpy(x.numpy() / 2))  # the line

    with pytest.raises(
        CaptureError, match=r"test_fx_values.py:\d+ .*x.numpy\(\) / 2\)\)  # the line"
    ):
        synccache.compile(model(forward), "exact")(x_of(0))
