"""The activation peak of a plan, predicted from shapes alone, is what a real forward then holds."""

import gc

import pytest
import torch
from ledger import Ledger
from shapes_of import on_meta
from table_models import TableCase, build
from torch import Tensor

import synccache
from synccache.fx.cost import activation_peak_bytes
from synccache.fx.fake import fake_capture
from synccache.fx.inputs import flatten
from synccache.fx.tensors import UNENDED, Lifetime, peak_bytes
from synccache.planner.devices import DEVICES
from synccache.policies import step_mask
from synccache.policies.dsl import blocks

NAMES = ["wan_s2v", "ltx2", "hunyuan_video", "flux"]
TOLERANCE = 0.03


def known(case: TableCase, arguments: object) -> list[Tensor]:
    """Weights, tables of the model that are no buffers, and inputs."""
    tables = [v for m in case.model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    weights = [*case.model.parameters(), *case.model.buffers()]
    return [*weights, *tables, *flatten(arguments)[0]]


def measured(case: TableCase) -> int:
    args, kwargs = case.inputs(0, 900.0)
    gc.collect()
    with torch.no_grad(), Ledger(known(case, (args, kwargs))) as book:
        case.model(*args, **kwargs)
    return book.peak


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_predicted_without_running_is_within_3_percent_of_the_measured_one(
    name: str,
) -> None:
    case = build(name)
    expected = measured(case)
    predicted = activation_peak_bytes(fake_capture(*on_meta(case), DEVICES["a100"]))

    assert predicted == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", [*NAMES, "cogvideox", "qwen_image", "sd3"])
def test_a_run_holds_no_more_than_its_plan_says(name: str) -> None:
    case = build(name)
    mask = step_mask("CCSC", skip=blocks[1:])
    compiled = synccache.compile(
        case.model, mask, conditions=case.conditions, example=case.inputs(0, 950.0)
    )
    steps = [case.inputs(0, timestep) for timestep in (900.0, 800.0, 700.0, 600.0)]
    gc.collect()
    with torch.no_grad(), Ledger(known(case, steps)) as book:
        for args, kwargs in steps:
            compiled(*args, **kwargs)
    memory = compiled.plan.memory

    assert book.peak <= (1 + TOLERANCE) * (memory.total_bytes - memory.weights_bytes)


@pytest.mark.parametrize(
    ("lifetimes", "expected"),
    [
        ([], 0),
        ([(5, UNENDED), (3, UNENDED)], 8),
        ([(5, 1), (3, UNENDED)], 5),  # the first is gone before the second comes
        ([(5, 2), (3, 3), (4, UNENDED)], 8),
        ([(1, 2), (9, 2), (2, UNENDED)], 10),
    ],
)
def test_the_peak_is_the_most_alive_after_any_birth(
    lifetimes: list[tuple[int, int]], expected: int
) -> None:
    assert peak_bytes(Lifetime(*pair) for pair in lifetimes) == expected
