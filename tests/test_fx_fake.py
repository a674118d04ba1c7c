"""Recording without weights: the same numbers as with them, and no value that is not there."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import table_models
import torch
from shapes_of import on_meta
from small_models import TOKENS, Talking, talking
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import synccache
from synccache import CaptureError
from synccache.compiler import Prepared, checked_request, prepare
from synccache.fx.capture import Captured, capture
from synccache.fx.fake import LARGE_ELEMENTS, SMALL_ELEMENTS, fake_capture
from synccache.planner import ChainProblem
from synccache.planner.devices import DEVICES

TABLE = ["wan_s2v", "hunyuan_video", "ltx2", "flux"]


def problem(case: table_models.TableCase, captured: Captured) -> ChainProblem:
    request = checked_request("first_block_cache", conditions=case.conditions)
    found: Prepared = prepare(case.model, request, captured, 2)
    assert found.problem is not None
    gaps = tuple(replace(gap, seconds=0.0) for gap in found.problem.gaps)
    lives = tuple(replace(live, seconds=0.0) for live in found.problem.lives)
    return replace(found.problem, gaps=gaps, lives=lives, seconds_source="left out")


@pytest.mark.parametrize("name", TABLE)
def test_bytes_and_flops_without_weights_are_those_of_a_real_forward(name: str) -> None:
    case = table_models.build(name)
    args, kwargs = case.inputs(seed=0, timestep=900.0)
    with torch.no_grad():
        _, real = capture(case.model, args, kwargs)
    expected = problem(case, real)
    assert expected.gaps[0].flops > 0

    model, args, kwargs = on_meta(case)
    assert problem(case, fake_capture(model, args, kwargs, DEVICES["a100"])) == expected


def shapes(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    empty = torch.empty(batch, TOKENS, 4, device="meta"), torch.tensor([900.0])
    return (*empty, torch.empty(batch, 5, 6, device="meta"))


def test_a_plan_without_weights_says_that_its_seconds_are_estimated() -> None:
    plan = synccache.plan(talking().to("meta"), shapes(), on="rtx4090")

    assert "estimated, not measured" in str(plan).replace("\n ", "")
    assert "RTX 4090" in plan.seconds_source
    assert plan.seconds_saved > 0
    assert plan.memory.guidance_branches == 2


def test_a_plan_leaves_the_model_as_it_was() -> None:
    model = talking()
    before = [(name, id(p), p._version) for name, p in model.named_parameters()]

    synccache.plan(model, shapes())
    assert [(name, id(p), p._version) for name, p in model.named_parameters()] == before


def test_a_model_built_in_the_users_own_fake_mode_is_planned() -> None:
    with FakeTensorMode():
        model = talking()
        inputs = torch.empty(1, TOKENS, 4), torch.empty(1), torch.empty(1, 5, 6)

    expected = synccache.plan(talking(), shapes())
    assert synccache.plan(model, inputs).memory == expected.memory


class Large(nn.Module):
    """A table of its own and a weight, one side of which is small and one is large."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(8)
        self.small = nn.Linear(4, 4)
        self.large = nn.Linear(SMALL_ELEMENTS, 4)


def test_only_large_tensors_are_built_without_values() -> None:
    with synccache.without_weights():
        model = Large()

    assert model.large.weight.is_meta
    assert not model.small.weight.is_meta
    assert model.table.tolist() == list(range(8))


class Reads(Talking):
    """Reads a value in its forward."""

    def __init__(self, read: Callable[["Reads", Tensor], object]) -> None:
        super().__init__()
        self.read, self.table = read, torch.arange(3)

    def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> Tensor:
        self.read(self, latents)
        return super().forward(latents, timestep, audio)


def written(latents: Tensor) -> Tensor:
    """A real tensor that a tensor without values was written into."""
    buffer = torch.zeros(4)
    buffer[:] = latents[0, 0]
    return buffer * 2


READS = {
    "item": lambda model, latents: latents.sum().item(),
    "if": lambda model, latents: bool(latents.mean() > 0),
    "tolist": lambda model, latents: latents.tolist(),
    "numpy": lambda model, latents: latents.numpy(),
    "slice bound": lambda model, latents: latents[: (latents > 0).sum()],
    "value-shaped": lambda model, latents: latents.nonzero(),
    "mask index": lambda model, latents: latents[latents > 0],
    "written into a real tensor": lambda model, latents: written(latents).tolist(),
    "size of a new tensor": lambda model, latents: torch.zeros(2, latents.argmax()),
    "numpy of a written tensor": lambda model, latents: written(latents).numpy(),
}


@pytest.mark.parametrize("kind", READS)
def test_a_value_that_is_not_there_is_refused_with_the_line_and_the_way_out(kind: str) -> None:
    with pytest.raises(CaptureError) as refused:
        synccache.plan(Reads(READS[kind]).to("meta"), shapes())

    assert "test_fx_fake.py:" in str(refused.value)
    assert "synccache.without_weights()" in refused.value.hint


def test_values_of_small_real_tensors_may_be_read() -> None:
    model = Reads(lambda model, latents: [model.table.tolist(), model.table.sum().item()])

    assert synccache.plan(model.to("meta"), shapes()).regions


def test_a_large_intermediate_made_from_real_tensors_takes_no_memory() -> None:
    side = 2 * LARGE_ELEMENTS
    made: list[Tensor] = []

    def outer(model: Reads, latents: Tensor) -> None:
        row = torch.zeros(side)
        made.append(row[:, None] * row[None])

    synccache.plan(Reads(outer).to("meta"), shapes())
    assert made[0].shape == (side, side)  # 281 terabytes


def test_a_large_buffer_sized_by_a_real_tensor_takes_no_memory() -> None:
    made: list[Tensor] = []

    def buffer(model: Reads, latents: Tensor) -> None:
        made.append(torch.zeros(LARGE_ELEMENTS, model.table.sum(), 2**20))

    synccache.plan(Reads(buffer).to("meta"), shapes())
    assert made[0].shape == (LARGE_ELEMENTS, 3, 2**20)


def test_a_model_on_meta_compiles_for_its_plan_and_is_refused_to_run() -> None:
    compiled = synccache.compile(talking().to("meta"), example=(shapes(), {}))

    assert compiled.plan.regions
    assert compiled.graph_module.graph.lint() is None
    with pytest.raises(CaptureError, match=r"first is `embed.weight`.*planned but not run"):
        compiled(*shapes())


def test_weights_loaded_after_planning_make_the_compiled_model_run() -> None:
    real = talking()
    model = talking().to("meta")
    compiled = synccache.compile(model, policy="exact", example=(shapes(), {}))
    model.load_state_dict(real.state_dict(), assign=True)
    inputs = torch.randn(1, TOKENS, 4), torch.tensor([900.0]), torch.randn(1, 5, 6)

    with torch.no_grad():
        assert torch.equal(compiled(*inputs), real(*inputs))
    assert not compiled.variant.captured.shapes_only


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
def test_flops_of_products_and_attention_are_counted_on_cpu(inference: bool) -> None:
    tokens, heard, width, mlp = TOKENS, 5, 16, 32
    block = 2 * tokens * width * (3 * width + 2 * mlp) + 4 * tokens**2 * width
    injector = 2 * tokens * width**2 + 2 * heard * width * 2 * width + 4 * tokens * heard * width
    outer = 2 * (2 * tokens * width * 4 + width + heard * width * 6)  # embed, head, time, listen
    expected = 4 * (block + injector) + outer
    inputs = torch.randn(1, tokens, 4), torch.tensor([900.0]), torch.randn(1, heard, 6)
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        _, captured = capture(talking(), inputs, {})

    assert sum(n.meta.get("flops", 0) for n in captured.graph.nodes) == expected
