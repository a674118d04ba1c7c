"""Random models of every shape: recorded exactly, read right, and whole again branch by branch."""

import pytest
import torch
from generated_recipes import Found, Recipe, RecipeCase, build, recipes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from replay import Replay
from table_models import NAMES
from table_models import build as build_released

import synccache
from synccache.fx.capture import capture
from synccache.fx.conditions import tag_inputs
from synccache.fx.inputs import bind, flatten
from synccache.fx.program import ResidualProgram, residual_program
from synccache.fx.regions import lay_out
from synccache.fx.runs import Layout, Skipped

few = settings(
    max_examples=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a recipe explains itself
    suppress_health_check=[HealthCheck.too_slow],
)


def program_of(case: RecipeCase) -> ResidualProgram:
    _, captured = capture(case.model, case.inputs(0), {})
    return residual_program(case.model, captured, tag_inputs(captured, None))


@few
@given(recipe=recipes())
@torch.no_grad()
def test_a_recorded_forward_gives_the_same_bits_on_new_inputs(recipe: Recipe) -> None:
    case = build(recipe)
    compiled = synccache.compile(case.model, "exact")
    calls = [case.inputs(seed, timestep) for seed, timestep in ((0, 900.0), (2, 800.0), (5, 700.0))]

    assert all(torch.equal(case.model(*a), compiled(*a)) for a in calls)
    assert compiled.captures == 1 + recipe.lengths  # another length was read from a tensor


@few
@given(recipe=recipes())
@torch.no_grad()
def test_streams_branches_and_reads_are_what_was_built(recipe: Recipe) -> None:
    case = build(recipe)
    program = program_of(case)
    found = [
        [Found(b.kind, b.reads, len(b.other_streams)) for b in program.of_stream(s.index)]
        for s in program.streams
    ]

    assert sorted(case.expected, key=repr) == sorted(found, key=repr)


@few
@given(recipe=recipes())
@torch.no_grad()
def test_branch_by_branch_a_program_gives_the_output(recipe: Recipe) -> None:
    case = build(recipe)
    program = program_of(case)
    args = case.inputs(2)

    found = Replay(case.model, program, list(args)).run()
    assert torch.equal(case.model(*args), found[0])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_branch_by_branch_a_released_model_gives_the_output(name: str) -> None:
    case = build_released(name)
    args, kwargs = case.inputs(0, 900.0)
    _, captured = capture(case.model, args, kwargs)
    program = residual_program(case.model, captured, tag_inputs(captured, case.conditions))
    args, kwargs = case.inputs(1, 800.0)
    expected = flatten(case.model(*args, **kwargs))[0]
    given = flatten(bind(case.model.forward, args, kwargs))[0]

    found = Replay(case.model, program, given).run()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@few
@given(recipe=recipes(), data=st.data())
@torch.no_grad()
def test_what_happens_inside_a_region_is_read_by_nobody_else(
    recipe: Recipe, data: st.DataObject
) -> None:
    program = program_of(build(recipe))
    chosen = data.draw(st.sets(st.sampled_from(range(len(program.branches))), min_size=1))
    layout = lay_out(program, [Skipped(frozenset(chosen))], ())

    assert foreign_reads(program, layout) == []
    assert {b.index for r in layout.regions for b in r.branches} <= chosen


def foreign_reads(program: ResidualProgram, layout: Layout) -> list[tuple[str, str]]:
    """(value inside a region, who reads it outside) for all but the streams' ends."""
    alive = set(layout.needed).union(*(r.body for r in layout.regions))
    alive.add(program.captured.graph.output_node())
    return [
        (node.name, user.name)
        for region in layout.regions
        for node in region.body - {run.end for run in region.runs}
        for user in node.users
        if user in alive and user not in region.body
    ]
