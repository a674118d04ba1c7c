"""Arguments and results: containers that the forward writes to, aliases, generators, signatures."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_fx_hazards import WIDTH, Model, check, model, same, x_of
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError, SynccacheError
from synccache.fx.variants import MAX_SIGNATURES

# ------------------------------------------------------------------- containers written to


def test_an_item_set_in_a_list_that_was_passed() -> None:
    def forward(self: Model, x: list[Tensor]) -> Tensor:
        x[0] = self.a(x[0])
        return self.b(x[0]) + x[1]

    check(model(forward), ([x_of(0), x_of(1)],), ([x_of(2), x_of(3)],), captures=1)


def test_an_item_set_in_a_list_before_a_module_has_to_be_closed() -> None:
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() + 1)

    def forward(self: Any, x: list[Tensor]) -> Tensor:
        x[0] = self.a(x[0])
        return self.outside(x[0])

    small: Any = model(forward)
    small.outside = Outside()
    check(small, ([x_of(0)],), ([x_of(2)],))


def test_a_cache_filled_in_a_dict_that_was_passed() -> None:
    """As autoregressive video models pass their keys and values."""

    def forward(self: Model, x: Tensor, cache: dict[str, Any]) -> Tensor:
        h = self.a(x) + cache.get("h", 0)
        cache["h"], cache["steps"] = h, 1
        return self.b(h)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    mine: dict[str, Any] = {}
    its: dict[str, Any] = {}
    for seed in range(4):
        assert same(small(x_of(seed), mine), compiled(x_of(seed), its))
        assert same(mine, its)
    assert compiled.captures == 2


def test_a_cache_filled_in_an_object_that_was_passed() -> None:
    def forward(self: Model, x: Tensor, cache: SimpleNamespace) -> Tensor:
        h = self.a(x) + (0 if cache.h is None else cache.h)
        cache.h = h
        cache.log.append(h.mean())
        del cache.log[:-1]
        return self.b(h)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    mine, its = SimpleNamespace(h=None, log=[]), SimpleNamespace(h=None, log=[])
    for seed in range(4):
        assert same(small(x_of(seed), mine), compiled(x_of(seed), its))
        assert same(vars(mine), vars(its))


def test_a_container_that_grows_with_every_call_is_refused() -> None:
    def forward(self: Model, x: Tensor, log: list[Tensor]) -> Tensor:
        log.append(self.a(x))
        return log[-1]

    compiled, log = synccache.compile(model(forward), "exact"), []
    with pytest.raises(CaptureError, match=r"tensors -> \d+"):
        for seed in range(20):
            compiled(x_of(seed), log)


# ------------------------------------------------------------------- results


@torch.no_grad()
def test_what_the_caller_writes_to_a_result_is_not_kept() -> None:
    small = model(
        lambda self, x, text: (self.a(x), self.b(text), self.b(text)[:, :1], self.c.weight)
    )
    compiled, text = synccache.compile(small, "exact"), x_of(9)
    for seed in range(3):
        expected, found = small(x_of(seed), text), compiled(x_of(seed), text)
        assert same(expected, found)
        for result in found[:3]:
            result.mul_(2)
    assert found[3] is small.c.weight


def test_results_that_are_no_tensors() -> None:
    def forward(self: Model, x: Tensor, extra: Any = None) -> Any:
        return OrderedDict(h=self.a(x), none=None, names=("p", [1, 2.5]), empty={})

    found = check(model(forward))(x_of(0))

    assert type(found) is OrderedDict and found["names"] == ("p", [1, 2.5])


def test_a_result_of_ones_own_class() -> None:
    class Box:
        def __init__(self, value: Tensor) -> None:
            self.value, self.name = value, "box"

    compiled = synccache.compile(model(lambda self, x: Box(self.a(x))), "exact")
    for seed in range(2):
        found = compiled(x_of(seed))
        assert type(found) is Box and found.name == "box"
        assert torch.equal(found.value, model(lambda self, x: self.a(x))(x_of(seed)))


# ------------------------------------------------------------------- random numbers


def test_a_generator_that_was_passed_goes_on() -> None:
    def forward(self: Model, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.a(x) + torch.randn(x.shape, generator=generator)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    mine, its = (torch.Generator().manual_seed(3) for _ in range(2))
    for seed in range(3):
        assert same(small(x_of(seed), mine), compiled(x_of(seed), its))
    assert torch.equal(mine.get_state(), its.get_state())


def test_a_generator_kept_on_the_model_goes_on() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) + torch.rand(1, generator=self.source)

    mine, its = (model(forward) for _ in range(2))
    mine.source, its.source = (torch.Generator().manual_seed(3) for _ in range(2))
    compiled = synccache.compile(its, "exact")
    for seed in range(3):
        assert same(mine(x_of(seed)), compiled(x_of(seed)))


def test_random_numbers_from_numpy_or_python_are_refused() -> None:
    import random

    small = model(lambda self, x: self.a(x) * random.random())
    with pytest.raises(SynccacheError, match="from Python's or numpy's random"):
        synccache.compile(small, "exact")(x_of(0))


# ------------------------------------------------------------------- signatures


def test_the_signature_used_longest_ago_is_forgotten() -> None:
    small = model(lambda self, x: self.a(x))
    compiled = synccache.compile(small, "exact")
    for tokens in [n for k in range(1, MAX_SIGNATURES + 2) for n in (k, 1)]:
        assert same(small(x_of(0, tokens)), compiled(x_of(0, tokens)))
    assert len(compiled._variants.by_key) == MAX_SIGNATURES
    assert compiled.captures == MAX_SIGNATURES + 1
    compiled(x_of(0, 2))
    assert compiled.captures == MAX_SIGNATURES + 2


def test_variable_positional_and_keyword_only_arguments() -> None:
    def forward(self: Model, *parts: Tensor, scale: float = 1.0, **more: Tensor) -> Tensor:
        return self.a(sum(parts)) * scale + self.b(more["text"])

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for seed in range(3):
        args, kwargs = (x_of(seed), x_of(seed + 5)), {"scale": 2.0, "text": x_of(9)}
        assert same(small(*args, **kwargs), compiled(*args, **kwargs))
    assert compiled.captures == 1


def test_an_operation_that_fails_and_is_caught() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        try:
            return self.a(x.view(7, 11))
        except RuntimeError:
            return self.b(x)

    check(model(forward))


def test_grad_modes_inside_the_forward() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        with torch.inference_mode():
            table = torch.arange(WIDTH) / WIDTH
        with torch.enable_grad():
            h = h * 2
        return self.b(h + table)

    check(model(forward))


def test_one_module_under_two_names_and_weights_that_are_tied() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.again(x)) @ self.c.weight

    small: Any = model(forward)
    small.again, small.c.weight = small.a, small.b.weight

    check(small)
