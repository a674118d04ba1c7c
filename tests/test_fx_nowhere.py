"""Tensors that no recorded operation made, and modules that are called whole because of them."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from test_fx_hazards import WIDTH, Model, check, model, same, x_of
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack

import synccache
from synccache.errors import CaptureError


class WithPart(Model):
    """A model with one more module, whose forward each test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Module()


def with_part(forward: Any) -> Any:
    """b(part(a(x)))"""
    small: Any = model(lambda self, x: self.b(self.part(self.a(x))), WithPart)
    small.part = type("Part", (nn.Module,), {"forward": forward})()
    return small


def closed(compiled: Any) -> tuple[str, ...]:
    return compiled.variant.captured.closed


class Kernel:
    """Launched as a Triton kernel is: reads and writes memory by address, behind torch's back."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(source: Tensor, target: Tensor) -> None:
            count = source.numel()
            address = ctypes.POINTER(ctypes.c_float * count)
            read = ctypes.cast(source.data_ptr(), address).contents
            write = ctypes.cast(target.data_ptr(), address).contents
            for i in range(count):
                write[i] = read[i] * 3

        return launch


def test_a_kernel_launched_by_address_keeps_its_module_closed() -> None:
    kernel = Kernel()

    def forward(self: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        kernel[(1,)](x.contiguous(), out)
        return out

    assert closed(check(with_part(forward))) == ("part",)


def test_a_kernel_in_the_models_own_forward_is_refused_with_its_line() -> None:
    kernel = Kernel()

    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        out = torch.empty_like(h)
        kernel[(1,)](h, out)
        return self.b(out)

    with pytest.raises(CaptureError, match=r"test_fx_nowhere.py:\d+ .*data_ptr"):
        synccache.compile(model(forward), "exact")(x_of(0))


def test_an_extension_that_torch_does_not_see_keeps_its_module_closed() -> None:
    """DLPack's two functions are written in C and call nothing that could be seen."""
    compiled = check(with_part(lambda self, x: from_dlpack(to_dlpack(x)) * 2))

    assert closed(compiled) == ("part",)


def test_a_table_from_numpy_keeps_its_module_closed() -> None:
    table = np.linspace(0, 1, WIDTH, dtype=np.float32)

    compiled = check(with_part(lambda self, x: x + torch.from_numpy(table)))

    assert closed(compiled) == ("part",)


@pytest.mark.parametrize("array", [Tensor.numpy, np.asarray, np.from_dlpack])
def test_a_number_read_through_numpy_keeps_its_module_closed(array: Any) -> None:
    compiled = check(with_part(lambda self, x: x * float(array(x).sum())))

    assert closed(compiled) == ("part",)


def test_numpy_may_read_what_no_input_reaches() -> None:
    def part(self: Any, x: Tensor) -> Tensor:
        return x * float(torch.arange(4).numpy().sum())

    assert closed(check(with_part(part))) == ()


class Given:
    """Not a container that a graph could hold."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_an_object_that_carries_a_tensor_into_a_closed_module_closes_what_makes_it() -> None:
    inner: Any = type("Inner", (nn.Module,), {"forward": lambda self, g: g.tensor * 2})()

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.inner(Given(x + 1))

    small: Any = with_part(forward)
    small.part.inner = inner
    compiled = synccache.compile(small, "exact", leaves=["part.inner"])
    for seed in range(3):
        assert same(small(x_of(seed)), compiled(x_of(seed)))

    assert closed(compiled) == ("part", "part.inner")


def test_an_object_that_the_model_itself_passes_to_a_closed_module_is_refused() -> None:
    small: Any = model(lambda self, x: self.part(Given(self.a(x))), WithPart)
    small.part = type("Part", (nn.Module,), {"forward": lambda self, g: g.tensor * 2})()
    with pytest.raises(CaptureError, match="that an object carries into part"):
        synccache.compile(small, "exact", leaves=["part"])(x_of(0))


def test_a_custom_operator_is_recorded() -> None:
    @torch.library.custom_op("synccache_tests::triple", mutates_args=())
    def triple(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 3)

    compiled = check(with_part(lambda self, x: triple(x)))

    assert closed(compiled) == ()
    targets = [str(n.target) for n in compiled.variant.captured.graph.nodes]
    assert any("triple" in target for target in targets)


def test_a_custom_operator_that_writes_to_its_argument() -> None:
    @torch.library.custom_op("synccache_tests::scale_", mutates_args=("x",))
    def scale_(x: Tensor, by: float) -> None:
        x.mul_(by)

    def forward(self: Any, x: Tensor) -> Tensor:
        before = x + 0
        scale_(x, 2.0)
        return before + x

    check(with_part(forward))


def test_an_autograd_function_is_recorded() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.sin(x) * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    check(with_part(lambda self, x: Twice.apply(x)))


def test_a_tensor_kept_from_another_call_is_no_constant() -> None:
    """Made while the model runs, outside the model: it is refused, not taken as it was."""
    bank: dict[str, Tensor] = {}

    def forward(self: Model, x: Tensor) -> Tensor:
        bank["before"] = bank.get("now", torch.zeros(()))
        bank["now"] = self.a(x).mean()
        return self.b(x) + bank["before"]

    with pytest.raises(CaptureError, match="next forward reads it"):
        synccache.compile(model(forward), "exact")(x_of(0))


def test_the_smallest_module_stays_closed() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return from_dlpack(to_dlpack(x)) * 2

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = Inner(), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.inner(x)) + x

    small: Any = model(lambda self, x: self.b(self.part(self.a(x))), WithPart)
    small.part = Middle().requires_grad_(False)
    compiled = check(small)
    targets = [n.target for n in compiled.variant.captured.graph.nodes if n.op == "call_module"]

    assert closed(compiled) == ("part.inner",)
    assert targets == ["model.a", "model.part.inner", "model.part.other", "model.b"]


class Nested(nn.Module):
    """Two levels, and one block called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(2))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, self.blocks[0]):
            x = x + block(torch.relu(x))
        return x


def test_every_operation_knows_the_module_call_it_came_from() -> None:
    compiled = check(Nested())
    captured = compiled.variant.captured
    calls = [
        (n.target, n.meta["frame"].path) for n in captured.graph.nodes if n.op == "call_module"
    ]

    assert calls == [
        ("model.blocks.0.0", "blocks.0"), ("model.blocks.1.0", "blocks.1"),
        ("model.blocks.0.0", "blocks.0"),
    ]  # fmt: skip
    assert [f.path for f in captured.frames] == ["", "blocks.0", "blocks.1", "blocks.0"]
    assert compiled.code.count("self.model.blocks[0](") == 2


@pytest.mark.parametrize("inference", [False, True])
def test_a_closed_module_that_writes_to_its_argument(inference: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        return torch.from_numpy(x.numpy() + 1)

    def outer(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        keep = h + 0
        return self.part(h) + h + keep

    small: Any = model(outer, WithPart)
    small.part = type("Part", (nn.Module,), {"forward": forward})()
    with torch.inference_mode(inference), torch.no_grad():
        check(small)


def test_a_module_kept_in_a_plain_list_is_opened_and_live() -> None:
    small: Any = model(lambda self, x: self.hidden[0](self.a(x)))
    small.hidden = [nn.Linear(WIDTH, WIDTH).requires_grad_(False)]
    compiled = synccache.compile(small, "exact")
    assert same(small(x_of(0)), compiled(x_of(0)))
    with torch.no_grad():
        small.hidden[0].weight.mul_(2)
    assert same(small(x_of(1)), compiled(x_of(1)))
    small.hidden[0] = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    assert same(small(x_of(2)), compiled(x_of(2)))
    small.hidden[0].weight = nn.Parameter(torch.ones(WIDTH, WIDTH), requires_grad=False)
    assert same(small(x_of(3)), compiled(x_of(3)))
