"""What is changed on a model between two calls is seen by the next call, also within one run."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import TOKENS, Talking, denoise, normal, talking, voices
from test_fx_hazards import WIDTH, Model, model, same, x_of
from torch import Tensor, nn

import synccache
from synccache.fx.model_state import ModelState
from synccache.policies.dsl import Hold, Policy, Rule, Steps, blocks


def in_place(small: Talking) -> None:
    small.injectors[1].pair.weight.mul_(1.5)


def other_memory(small: Talking) -> None:
    small.injectors[1].pair.weight.data = small.injectors[1].pair.weight.data * 1.5


def another_parameter(small: Talking) -> None:
    small.injectors[1].pair.weight = nn.Parameter(small.injectors[1].pair.weight * 1.5, False)


def state_copied(small: Talking) -> None:
    small.load_state_dict({k: v * 1.1 for k, v in small.state_dict().items()})


def state_assigned(small: Talking) -> None:
    small.load_state_dict({k: v * 1.1 for k, v in small.state_dict().items()}, assign=True)


def another_layer(small: Talking) -> None:
    small.injectors[1].pair = nn.Sequential(small.injectors[1].pair, nn.Tanh())


CHANGES = [in_place, other_memory, another_parameter, state_copied, state_assigned, another_layer]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_weights_changed_in_the_middle_of_a_run(change: Callable[[Talking], None]) -> None:
    small = talking()
    compiled = synccache.compile(small, "exact")
    audio = voices()[0]
    for k, timestep in enumerate((1000.0, 900.0, 800.0, 700.0)):
        if k == 2:
            change(small)
        arguments = normal(k, 1, TOKENS, 4), torch.tensor([timestep]), audio
        assert torch.equal(small(*arguments), compiled(*arguments))
    assert "invariant_audio" in compiled.code


@torch.no_grad()
def test_what_was_held_with_other_weights_is_not_added() -> None:
    small = talking()
    compiled = synccache.compile(small, Policy("mask", (Rule(blocks[1:], Steps("CSSSS"), Hold()),)))
    for k, timestep in enumerate((1000.0, 900.0, 800.0, 700.0)):
        if k == 2:
            in_place(small)
        arguments = normal(k, 1, TOKENS, 4), torch.tensor([timestep]), voices()[0]
        out = compiled(*arguments)
        assert torch.equal(out, small(*arguments)) == (k in (0, 2))

    assert compiled.stats().decisions == {0: "CSCS"}


def test_the_same_weights_are_the_same_state() -> None:
    small = talking()
    state = ModelState(small)
    before = state.structure, state.weights
    denoise(small)
    state.look()

    assert (state.structure, state.weights) == before


# ------------------------------------------------------------------- attributes


class Scaled(nn.Module):
    """A module of one's own kind with everything that Python may decide by."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.scale, self.options = 2.0, {"shift": 1.0}
        self.processor = SimpleNamespace(power=1)
        self.tables = [torch.ones(WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x) * self.scale + self.options["shift"] + self.tables[0]
        return (-y if self.training else y) ** self.processor.power


class WithScaled(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.scaled(self.a(x)))


def set_scale(small: WithScaled) -> None:
    small.scaled.scale = 3.0


def set_option(small: WithScaled) -> None:
    small.scaled.options["shift"] = 5.0


def set_inside_an_object(small: WithScaled) -> None:
    small.scaled.processor.power = 3


def set_object(small: WithScaled) -> None:
    small.scaled.processor = SimpleNamespace(power=2)


def set_tensor_in_a_list(small: WithScaled) -> None:
    small.scaled.tables[0] = torch.full((WIDTH,), 7.0)


def train_a_part(small: WithScaled) -> None:
    small.scaled.train()


def replace_a_forward(small: WithScaled) -> None:
    small.scaled.forward = lambda x: x + 1  # type: ignore[method-assign]


def add_a_hook(small: WithScaled) -> None:
    small.scaled.register_forward_hook(lambda module, args, out: out * 2)


def replace_a_module(small: WithScaled) -> None:
    small.scaled = nn.Sequential(nn.Linear(WIDTH, WIDTH))  # type: ignore[assignment]


def change_the_class(small: WithScaled) -> None:
    small.scaled.__class__ = type("Other", (Scaled,), {"forward": lambda self, x: x * 9})


ATTRIBUTES = [
    set_scale, set_option, set_inside_an_object, set_object, set_tensor_in_a_list, train_a_part,
    replace_a_forward, add_a_hook, replace_a_module, change_the_class,
]  # fmt: skip


@pytest.mark.parametrize("change", ATTRIBUTES)
@torch.no_grad()
def test_what_python_decides_by_is_looked_at_before_every_call(
    change: Callable[[WithScaled], None],
) -> None:
    small = WithScaled()
    compiled = synccache.compile(small, "exact")
    first = compiled(x_of(0))
    assert same(small(x_of(0)), first)
    change(small)

    assert same(small(x_of(0)), compiled(x_of(0)))
    assert not torch.equal(first, compiled(x_of(0)))
    assert compiled.captures == 2


@torch.no_grad()
def test_a_return_to_an_earlier_structure_finds_its_recording() -> None:
    small = WithScaled()
    compiled = synccache.compile(small, "exact")
    for k in range(8):
        small.scaled.scale = 2.0 + k % 2
        assert same(small(x_of(k)), compiled(x_of(k)))
    assert compiled.captures == 2


@torch.no_grad()
def test_what_the_forward_writes_itself_is_no_change() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        self.last_shape = list(x.shape)
        self.kept = [self.a(x)]
        self.seen.copy_(x.mean())
        return self.b(self.kept[0]) + self.seen

    small: Any = model(forward)
    small.register_buffer("seen", torch.zeros(()))
    compiled = synccache.compile(small, "exact")
    compiled(x_of(9))
    before = compiled._state.weights
    for seed, tokens in ((0, 3), (1, 5), (2, 3), (3, 5), (4, 3)):
        assert same(small(x_of(seed, tokens)), compiled(x_of(seed, tokens)))
    assert compiled.captures == 2
    assert compiled._state.weights == before
