"""A recording, and a recorded forward, free intermediates when the model itself frees them."""

import gc

import pytest
import torch
from ledger import Ledger
from table_models import TableCase, build

import synccache
from synccache.fx.capture import capture
from synccache.fx.inputs import flatten

NAMES = ("wan_s2v", "ltx2", "hunyuan_video", "flux")


def ledger(case: TableCase, arguments: object) -> Ledger:
    return Ledger([*case.model.parameters(), *case.model.buffers(), *flatten(arguments)[0]])


def peak_of(case: TableCase, call: object, timestep: float = 900.0) -> int:
    args, kwargs = case.inputs(0, timestep)
    gc.collect()
    gc.disable()  # what waits for the collector counts as kept
    try:
        with ledger(case, (args, kwargs)) as book:
            call(*args, **kwargs)  # type: ignore[operator]
    finally:
        gc.enable()
    return book.peak


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_recorded_forward_holds_as_much_memory_as_the_model(name: str) -> None:
    """Beside one copy of the inputs, which are restored where a second forward is needed."""
    case = build(name)
    copies = sum(t.numel() * t.element_size() for t in flatten(case.inputs(0, 900.0))[0])
    original = peak_of(case, case.model)
    recorded = peak_of(case, lambda *a, **k: capture(case.model, a, k))

    assert recorded - copies <= 1.05 * original


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_captured_forward_holds_as_much_memory_as_the_model(name: str) -> None:
    case = build(name)
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions)
    for timestep in (900.0, 800.0):
        args, kwargs = case.inputs(0, timestep)
        compiled(*args, **kwargs)

    assert peak_of(case, compiled, 700.0) <= 1.01 * peak_of(case, case.model, 700.0)


@torch.no_grad()
def test_a_second_guidance_branch_is_planned_for_where_nothing_is_verified() -> None:
    case = build("wan_s2v")
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions, verify=False)
    for branch in range(2):
        args, kwargs = case.inputs(0, 900.0, branch)
        compiled(*args, **kwargs)

    assert compiled.variant.guidance_branches == 2
