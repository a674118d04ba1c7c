"""What a branch adds before its gate, found by where the factors come from.

    h + gate(t) * attn(norm(h) * scale(t) + shift(t))      ->     attn(...)

The gate is what multiplies a branch's output and is made without the noisy latents: from the timestep,
and whatever else the model conditions it on. Constant factors (a learned layer scale) are left out of
what is held as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection

import torch
from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.dataflow import carried, numel
from synccache.fx.program import Branch, ResidualProgram, noisy_inputs

_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply}
_PRODUCT_METHODS = {"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"}


def module_outputs(
    program: ResidualProgram, branches: Collection[int], *, before_gate: bool, settled: Collection[Node]
) -> dict[int, Node]:  # fmt: skip
    """Branch index -> the value to hold of it; without branches that a skip would not make cheaper.

    These are additions of another stream, of an input, and of values that no denoising step changes
    (``settled``, and what the noisy latents do not reach).

    Raises:
        MatchError: a branch's gate is inside the addition itself (``addcmul``), and it is to be held
            with its gate.
    """
    moves = moving(program)
    found = {}
    for index in sorted(branches):
        branch = program.branches[index]
        if before_gate:
            end = ungated(branch, program)
        elif len(branch.addends) == 1:
            end = branch.addends[0]
        else:
            raise MatchError(
                f"{branch.label} multiplies by its gate while it adds, so it has no output with its gate.",
                hint="Use modules(...) as it is, which holds it before the gate.",
            )
        plain = end.op in ("placeholder", "get_attr") or end in settled or end in program.owner
        if moves(end) and not plain:
            found[index] = end
    return found


def moving(program: ResidualProgram) -> Callable[[Node], bool]:
    """Whether the noisy latents reach a value."""
    bits = noisy_inputs(program.captured, program.tags)
    return lambda node: bool(program.captured.depends[node] & bits)


def ungated(branch: Branch, program: ResidualProgram) -> Node:
    """What a branch adds, without the factors that the noisy latents do not reach."""
    moves = moving(program)
    addends = [a for a in branch.addends if moves(a)]
    if len(addends) != 1:
        return branch.addends[0]
    node = best = addends[0]
    while True:
        inner = _multiplied(node, moves)
        if inner is not None:
            node = best = inner
            continue
        passed = carried(node)
        if len(passed) != 1 or "shape" not in passed[0].meta or numel(passed[0]) != numel(node):
            return best
        node = passed[0]  # a cast or another layout, with the gate perhaps behind it


def _multiplied(node: Node, moves: Callable[[Node], bool]) -> Node | None:
    """The only moving factor of a product of two; None for anything else."""
    if node.op == "call_function":
        product = node.target in _PRODUCTS
    else:
        product = node.op == "call_method" and node.target in _PRODUCT_METHODS
    if not product:
        return None
    factors = [a for a in node.args[:2] if isinstance(a, Node)]
    moving = [f for f in factors if moves(f)]
    return moving[0] if len(moving) == 1 and len(node.args) >= 2 else None
