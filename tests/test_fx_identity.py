"""Which tensor is meant, which number was read, and what a module called whole stands in."""

import copy
from typing import Any

import pytest
import torch
from test_fx_hazards import WIDTH, Model, check, model, same, x_of
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack

import synccache
from synccache.errors import CaptureError
from synccache.fx.tensors import Memories


class Part(nn.Module):
    """A module of one's own, whose forward each test sets."""


class WithPart(Model):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()


def with_part(forward: Any, part: Any) -> Any:
    small: Any = model(forward, WithPart)
    small.part = type("Part", (nn.Module,), {"forward": part})()
    return small


# ------------------------------------------------------------------- identity


def test_an_unseen_tensor_that_takes_the_id_of_a_dead_one_is_not_taken_for_it() -> None:
    def part(self: Any, x: Tensor) -> Tensor:
        held = []
        gone = x + 1
        address = id(gone)
        del gone
        for _ in range(50):
            held.append(from_dlpack(to_dlpack(x)))
            if id(held[-1]) == address:
                break
        return held[-1] * 2

    compiled = check(with_part(lambda self, x: self.b(self.part(self.a(x))), part))

    assert compiled.variant.captured.closed == ("part",)


def test_memory_never_gets_the_number_of_memory_that_is_gone() -> None:
    memories = Memories()

    assert len({memories.of(torch.empty(3)) for _ in range(50)}) == 50


def test_a_deep_copied_tensor_is_a_tensor_of_its_own() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        twin = copy.deepcopy(h)
        h.mul_(2)
        return twin + h

    check(model(forward))


def test_properties_that_make_tensors() -> None:
    def forward(self: Model, x: Tensor) -> Any:
        h = self.a(x)
        z = torch.complex(h, x)
        return h[0].T, h.mT @ h, z.real, z.imag + 1, z.mH, h.data * 2

    check(model(forward))


def test_a_tensor_whose_data_is_assigned_is_refused_with_its_line() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        h = self.a(x)
        h.data = self.b(x)  # the line
        return h

    with pytest.raises(CaptureError, match=r"assigns `.data` of a tensor .*# the line"):
        synccache.compile(model(forward), "exact")(x_of(0))


# ------------------------------------------------------------------- numbers read from tensors


def test_a_guard_on_what_no_step_changes_is_kept_though_nothing_reads_it() -> None:
    def forward(self: Model, x: Tensor, text: Tensor) -> Tensor:
        return self.a(x) if self.c(text).mean() > 0 else self.b(x)

    one, two = x_of(5), -x_of(5)
    check(
        model(forward), (x_of(0), one), (x_of(1), one), (x_of(2), two), (x_of(3), one), captures=2
    )


def test_comparisons_of_tensors_are_guarded() -> None:
    def forward(self: Model, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) if torch.equal(x, y) or torch.allclose(x, -y) else self.b(y)

    x, y = x_of(0), x_of(1)
    check(model(forward), (x, x.clone()), (x, y), (y, y.clone()), (x, -x), captures=3)


@pytest.mark.parametrize(
    "rows",
    [lambda x: torch.where(x[0, :, 0] > 0)[0], lambda x: (x[0, :, 0] > 0).nonzero()[:, 0]],
)
def test_places_found_by_values_are_guarded_by_their_number(rows: Any) -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        found = rows(x)
        return self.a(x[:, found]).reshape(1, found.shape[0] * WIDTH)

    many, few = torch.ones(1, 3, WIDTH), torch.ones(1, 3, WIDTH)
    few[0, 1] = -1
    check(model(forward), (many,), (few,), (many * 2,), captures=2)


# ------------------------------------------------------------------- modules called whole


def test_a_module_called_whole_inside_an_autocast_region() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.part(x)
        return self.b(h.float())

    def part(self: Any, x: Tensor) -> Tensor:
        return torch.matmul(x, x.mT) @ x

    check(with_part(forward, part))


def test_an_autocast_region_at_the_end_is_closed_again() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.a(x)

    check(model(forward))

    assert not torch.is_autocast_enabled("cpu")


def test_hooks_on_a_module_of_ones_own_run_on_every_call() -> None:

    def part(self: Any, x: Tensor, text: Tensor) -> Tensor:
        return torch.relu(x) @ x.mT @ x + text @ text.mT @ text

    small = with_part(lambda self, x, text: self.b(self.part(x, text)), part)
    seen: list[int] = []
    small.part.register_forward_hook(lambda module, args, out: seen.append(1))
    compiled, text = synccache.compile(small, "exact"), x_of(9)
    for seed in range(4):
        assert same(small(x_of(seed), text), compiled(x_of(seed), text))
    seen.clear()
    compiled(x_of(4), text)

    assert len(seen) == 1


def test_a_forward_replaced_on_one_of_torchs_own_modules_runs_on_every_call() -> None:
    calls: list[int] = []

    def replaced(text: Tensor) -> Tensor:
        calls.append(1)
        return text * len(calls)

    small = model(lambda self, x, text: self.b(x) + self.a(text))
    small.a.forward = replaced  # type: ignore[method-assign]
    compiled, text = synccache.compile(small, "exact", verify=False), x_of(9)
    for seed in range(3):
        compiled(x_of(seed), text)
    before = len(calls)
    compiled(x_of(3), text)

    assert len(calls) == before + 1


# ------------------------------------------------------------------- what goes out


def test_a_result_of_a_module_that_is_a_record() -> None:
    def part(self: Any, x: Tensor) -> Any:
        return {"mean": x.mean(-1, keepdim=True), "rest": [x * 2, x + 1]}

    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.part(self.a(x))
        return self.b(found["rest"][1]) + found["mean"] + found["rest"][0]

    check(with_part(forward, part))


def test_a_result_that_is_not_a_number_is_verified() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x) / (x - x)

    small = model(forward)
    with torch.no_grad():
        expected, found = small(x_of(0)), synccache.compile(small, "exact")(x_of(0))
    assert torch.equal(expected.nan_to_num(), found.nan_to_num())


def test_the_same_arguments_by_value_are_not_the_same_objects() -> None:
    class Option:
        __slots__ = ("scale",)

        def __init__(self, scale: float) -> None:
            self.scale = scale

    small = model(lambda self, x, option: self.a(x) * option.scale)
    compiled = synccache.compile(small, "exact")
    for scale in (2.0, 3.0):
        option = Option(scale)
        assert same(small(x_of(0), option), compiled(x_of(0), option))
