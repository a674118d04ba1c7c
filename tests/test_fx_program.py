"""Released model classes: recorded exactly, and read right: streams, branches, what they read.

The golden texts were read and judged by hand against each model's code.
"""

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch
from table_models import NAMES, TableCase, build
from torch import Tensor

import synccache
from synccache import policies
from synccache.fx.capture import capture
from synccache.fx.conditions import tag_inputs
from synccache.fx.inputs import flatten
from synccache.fx.program import Branch, ResidualProgram, residual_program

ROUNDING = 2e-5  # of float32, through a few blocks


def tensors(output: Any) -> list[Tensor]:
    return [t.clone() for t in flatten(output)[0]]


def bits_differ(case: TableCase, compiled: Any, *calls: tuple[int, float, int, int]) -> list[Any]:
    """The calls (seed, timestep, branch, size) whose outputs are not the model's bit for bit."""
    wrong = []
    for call in calls:
        args, kwargs = case.inputs(*call)
        expected, found = tensors(case.model(*args, **kwargs)), tensors(compiled(*args, **kwargs))
        if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            wrong.append(call)
    return wrong


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_recorded_model_gives_the_same_bits_on_new_values_and_shapes(name: str) -> None:
    case = build(name)
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions)
    first, second = [(0, 900.0, k, 0) for k in (0, 1)], [(1, 800.0, k, 0) for k in (0, 1)]
    larger = [(2, 700.0, 0, 1), (3, 600.0, 1, 1)]

    assert bits_differ(case, compiled, *first, *second, *larger) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_model_gives_the_same_bits_in_inference_mode_under_autocast(name: str) -> None:
    case = build(name)
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions)

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        steps = [(k, 900.0 - 100 * k, branch, 0) for k in (0, 1) for branch in (0, 1)]
        assert bits_differ(case, compiled, *steps) == []


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_skipped_step_with_the_same_inputs_equals_the_full_one(name: str) -> None:
    case = build(name)
    policy = policies.first_block_cache(threshold=1e9)
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    found = []
    for timestep in (900.0, 900.0 - 2**-14):  # another step, to the gate; the same to the model
        args, kwargs = case.inputs(0, timestep)
        found.append(tensors(compiled(*args, **kwargs)))

    assert compiled.stats().decisions == {0: "CS"}
    for full, skipped in zip(*found, strict=True):
        assert (full - skipped).abs().max() <= ROUNDING * full.abs().max()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_streams_and_branches_are_those_that_were_read_by_hand(
    name: str, golden: Callable[[str, str], None]
) -> None:
    case = build(name)
    args, kwargs = case.inputs(0, 900.0)
    _, captured = capture(case.model, args, kwargs)
    program = residual_program(case.model, captured, tag_inputs(captured, case.conditions))

    golden(f"program_{name}", printed(case, program))


@torch.no_grad()
def test_another_value_of_a_python_flag_is_another_program() -> None:
    case = build("ltx2")
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions)
    wrong = bits_differ(case, compiled, (0, 900.0, 0, 0), (0, 900.0, 2, 0), (1, 800.0, 2, 0))

    assert wrong == []
    assert compiled.captures == 2
    assert all(not b.other_streams for b in compiled.program.branches)


# ------------------------------------------------------------------------ as text


def printed(case: TableCase, program: ResidualProgram) -> str:
    """Inputs, streams, and one line a branch; blocks that repeat are folded."""
    inputs = ", ".join(f"{n.name} = {tag}" for n, tag in program.tags.items())
    lines = [type(case.model).__name__, f"inputs: {inputs}"]
    for stream in program.streams:
        shape = list(stream.root.meta["shape"])
        lines.append(f"S{stream.index} {shape} begins with {' '.join(sorted(stream.reads))}")
    groups = [list(g) for _, g in groupby(program.branches, key=lambda b: b.block)]
    start = 0
    while start < len(groups):
        end, texts = start + 1, [line(b) for b in groups[start]]
        while (
            end < len(groups)
            and groups[end][0].block == groups[end - 1][0].block + 1
            and [line(b) for b in groups[end]] == texts
        ):
            end += 1
        first, last = groups[start][0].block, groups[end - 1][0].block
        lines.append(f"block {first}" if first == last else f"blocks {first}-{last}")
        lines += texts
        start = end
    return "\n".join(lines) + "\n"


def line(branch: Branch) -> str:
    """``S0 <- attention(S0, text)   blocks.N.attn2``."""
    own = [f"S{branch.stream}"] if branch.reads_own else []
    reads = own + [f"S{s}" for s in sorted(branch.other_streams)] + sorted(branch.reads)
    what = f"S{branch.stream} += {branch.kind.value}({', '.join(reads)})"
    label = re.sub(r"\.\d+", ".N", branch.label)
    return f"  {what:<46} {label}"
