"""``Program``: two graphs are one program only where they compute the same."""

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from synccache.fx.same import Program


def program(scale: object, name: str = "x", *, constant: object = None) -> Program:
    graph = Graph()
    x = graph.placeholder(name)
    root = nn.Module()
    root.constants = nn.Module()
    object.__setattr__(root.constants, "object_0", constant)
    table = graph.get_attr("constants.object_0")
    graph.output((graph.call_method("mul", (x, scale)), table))
    module = GraphModule(root, graph)
    module.constants = root.constants
    return Program(module, ("cpu", False))


def test_a_program_does_not_depend_on_the_names_in_it() -> None:
    assert program(2.0, "x") == program(2.0, "y")
    assert hash(program(2.0, "x")) == hash(program(2.0, "y"))


@pytest.mark.parametrize("other", [2, 3.0, True, "2.0", torch.float32])
def test_another_number_or_type_is_another_program(other: object) -> None:
    assert program(2.0) != program(other)


def test_constants_are_the_same_only_as_objects() -> None:
    table = torch.ones(2)

    assert program(2.0, constant=table) == program(2.0, constant=table)
    assert program(2.0, constant=table) != program(2.0, constant=torch.ones(2))
