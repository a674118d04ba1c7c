"""Small modules, each with one thing that a recorded forward could get wrong.

Every one goes through compile(policy="exact"): same bits on the first call, on new values and on a
second shape; or an error that names the line.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError
from synccache.fx.inputs import flatten

WIDTH = 4


class Model(nn.Module):
    """Three linear layers for the modules below to use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.eval().requires_grad_(False)


def x_of(seed: int, tokens: int = 3) -> Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def model(forward: Callable[..., Any], base: type[Model] = Model) -> Model:
    """A module with this forward; ``self`` is its first argument."""
    kind = type("Small", (base,), {"forward": forward, "__module__": __name__})
    return kind()


def same(expected: Any, found: Any) -> bool:
    (a, left, _), (b, right, _) = flatten(expected), flatten(found)
    return type(expected) is type(found) and left == right and all(map(torch.equal, a, b))


def check(small: nn.Module, *calls: Any, captures: int | None = None) -> Any:
    """Compiled and original agree on these calls (each a tuple of arguments); the compiled model."""
    compiled = synccache.compile(small, "exact")
    calls = calls or ((x_of(0),), (x_of(1),), (x_of(2, tokens=5),), (x_of(3),))
    for arguments in calls:
        mine, its = copy.deepcopy(arguments), copy.deepcopy(arguments)
        assert same(small(*mine), compiled(*its))
        assert same(mine, its)  # also what the forward wrote into its arguments
    if captures is not None:
        assert compiled.captures == captures
    return compiled


# ------------------------------------------------------------------- writes in place


def test_a_slice_written_after_an_injection() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = x + self.a(x)
        h[:, :2] = h[:, :2] + self.b(x[:, :2])
        return h + self.c(h)

    check(model(forward))


def test_a_slice_written_from_the_same_memory() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, :1] = h[:, 1:2]
        return self.b(h)

    check(model(forward))


def test_an_addition_in_place_to_a_view() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        part = h[:, 1:]
        part += self.b(part)
        return h * 2

    check(model(forward))


def test_a_view_taken_before_a_write_and_read_after_it() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        view = h.view(-1, WIDTH)
        before = view.sum()
        h.mul_(3)
        return self.b(view) + before

    check(model(forward))


def test_a_write_through_data_and_detach() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        h.detach().add_(1)
        h.data.mul_(self.b(x))
        return h

    check(model(forward))


def test_an_out_argument() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = torch.empty_like(x)
        first = torch.mul(x, 2, out=h)
        torch.add(h, self.a(x), out=h)
        return first + h

    check(model(forward))


class Scaling(nn.Identity):
    """A leaf that writes to what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x[:, :1] + 1


Scaling.__module__ = "torch.nn.custom"


class WithScaling(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scaling = Scaling()


@pytest.mark.parametrize("inference", [False, True])
def test_a_leaf_that_writes_to_its_input(inference: bool) -> None:
    def forward(self: WithScaling, x: Tensor) -> Tensor:
        h = self.a(x)
        keep = h + 0
        first = self.scaling(h)
        return keep + h + first

    with torch.inference_mode(inference):
        check(model(forward, WithScaling))


class Noting(nn.Identity):
    """A leaf that writes to memory which is no argument of it."""

    def __init__(self) -> None:
        super().__init__()
        self.note = torch.zeros(1, 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.note.copy_(x[:, :1])
        return x + 1


Noting.__module__ = "torch.nn.custom"


class WithNoting(Model):
    def __init__(self) -> None:
        super().__init__()
        self.noting = Noting()


def test_a_leaf_that_writes_to_memory_read_elsewhere() -> None:
    def forward(self: WithNoting, x: Tensor, text: Tensor) -> Tensor:
        h = self.noting(self.a(x))
        return h + self.b(self.noting.note + text)

    small, text = model(forward, WithNoting), x_of(1)
    compiled = synccache.compile(small, "exact")
    for seed in (0, 2, 3):
        assert same(small(x_of(seed), text), compiled(x_of(seed), text))


@pytest.mark.parametrize("inference", [False, True])
def test_writes_are_seen_under_inference_mode_too(inference: bool) -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        view = h[:, 1:]
        h[:, :1] = 0
        h += self.b(view.clone())[:, :1]
        return view

    with torch.inference_mode(inference):
        check(model(forward))


def test_a_write_into_an_input_reaches_the_caller() -> None:
    def forward(self: Model, x: Tensor, y: Tensor) -> Tensor:
        y[:, 0] = self.a(x)[:, 0]
        return y + x

    check(model(forward), (x_of(0), x_of(1)), (x_of(2), x_of(3)))


def test_an_output_that_is_an_input_or_a_view_of_one() -> None:
    def forward(self: Model, x: Tensor) -> Any:
        return x, x[:, :1], self.a(x)

    compiled = check(model(forward))
    x = x_of(5)
    out = compiled(x)

    assert out[0] is x
    assert out[1]._base is x


def test_one_tensor_passed_as_two_arguments() -> None:
    def forward(self: Model, x: Tensor, y: Tensor) -> Tensor:
        y.add_(1)
        return self.a(x) + y

    small, x = model(forward), x_of(0)
    compiled = synccache.compile(small, "exact")

    assert same(small(x.clone(), y := x.clone()), compiled(x.clone(), x.clone())) and y is not x
    both, again = x.clone(), x.clone()
    assert same(small(both, both), compiled(again, again))
    assert compiled.captures == 2


# ------------------------------------------------------------------- what goes in and out


@dataclass(slots=True)
class Pair:
    left: Tensor
    right: Any


class Trio(NamedTuple):
    first: Tensor
    rest: Any


class Bag(OrderedDict):  # type: ignore[type-arg]
    pass


def test_nested_containers_in_and_out() -> None:
    def forward(self: Model, x: Any, extra: Any) -> Any:
        pair = Pair(self.a(x[0]), [extra["k"].left, {"n": 3}])
        trio = Trio(x[1].first * 2, [pair.left])
        bag = Bag(z=self.b(x[1].rest[0]))
        return {"pair": pair, "bag": bag, "trio": trio, "t": (pair.left, None, 1.5)}

    def call(seed: int) -> Any:
        return [x_of(seed), Trio(x_of(seed + 1), (x_of(seed + 3),))], {
            "k": Pair(x_of(seed + 2), "r")
        }

    check(model(forward), call(0), call(10), captures=1)


def test_tensors_inside_an_object_of_any_class() -> None:
    def forward(self: Model, x: Tensor, options: SimpleNamespace) -> Tensor:
        return self.a(x) * options.scale + options.shift

    def call(seed: int, scale: float) -> Any:
        return x_of(seed), SimpleNamespace(scale=scale, shift=x_of(seed + 1))

    check(model(forward), call(0, 2.0), call(2, 2.0), call(4, 3.0), captures=2)


def test_a_plain_attribute_changed_inside_an_object_is_another_signature() -> None:
    def forward(self: Model, x: Tensor, options: SimpleNamespace) -> Tensor:
        return self.a(x) * options.scale

    small, options = model(forward), SimpleNamespace(scale=2.0)
    compiled = synccache.compile(small, "exact")
    for scale in (2.0, 3.0):
        options.scale = scale
        assert same(small(x_of(0), options), compiled(x_of(0), options))


def test_complex_and_integer_tensors() -> None:
    def forward(self: Model, x: Tensor, places: Tensor) -> Any:
        z = torch.view_as_complex(self.a(x).reshape(1, -1, 2, 2)) * torch.polar(
            x[..., :2], x[..., 2:]
        )
        return torch.view_as_real(z).flatten(2), z.real + z.imag, places * 2 // 3, x[:, places]

    check(
        model(forward),
        (x_of(0), torch.tensor([0, 2])), (x_of(1), torch.tensor([1, 1])), captures=1,
    )  # fmt: skip


def test_results_with_names() -> None:
    def forward(self: Model, x: Tensor) -> Any:
        top = self.a(x).max(dim=-1)
        return top.values + 1, top.indices, *torch.topk(x, 2)

    check(model(forward))


def test_keywords_and_positions_are_one_signature() -> None:
    def forward(self: Model, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.a(x) * scale + (0 if y is None else y)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    x, y = x_of(0), x_of(1)
    for args, kwargs in (((x, y), {}), ((x,), {"y": y}), ((), {"y": y, "x": x}), ((x,), {})):
        assert same(small(*args, **kwargs), compiled(*args, **kwargs))
    assert compiled.captures == 2


def test_a_python_number_that_changes_every_call_is_refused() -> None:
    def forward(self: Model, x: Tensor, scale: float) -> Tensor:
        return self.a(x) * scale

    compiled = synccache.compile(model(forward), "exact")
    with pytest.raises(CaptureError, match=r"`scale` has another value"):
        for k in range(40):
            compiled(x_of(k), 0.5 + k)


def test_training_and_evaluation_are_two_recordings() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x) * (2 if self.training else 3)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for training in (False, True, False):
        compiled.train(training)
        assert small.training is training
        assert same(small(x_of(0)), compiled(x_of(0)))
    assert compiled.captures == 2


def test_another_dtype_is_another_recording() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x.float()) * (2 if x.dtype is torch.float64 else 3)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for dtype in (torch.float32, torch.float64, torch.float32):
        x = x_of(0).to(dtype)
        assert same(small(x), compiled(x))
    assert compiled.captures == 2
