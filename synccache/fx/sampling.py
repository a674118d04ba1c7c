"""A recording as numbers, for the symbolic planner: operations, memory, and the problem they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torch.fx import Node

from synccache.fx.cost import lifetimes, lives_between
from synccache.fx.estimate import dtype_of, traffic
from synccache.fx.hoist import MIN_SHARE, hoistable, margins
from synccache.fx.planning import border_shape
from synccache.fx.program import ResidualProgram
from synccache.fx.runs import Layout
from synccache.planner import ChainProblem
from synccache.planner.symbolic import Margin, Operation, Sample, Work


def sample(
    model: nn.Module, sizes: Mapping[str, int], program: ResidualProgram, layout: Layout,
    problem: ChainProblem, bytes_per_branch: int,
) -> Sample:  # fmt: skip
    """What ``planner.symbolic.derive`` needs of one recording."""
    captured = program.captured
    number = {node: i for i, node in enumerate(captured.graph.nodes)}

    def work(indices: Iterable[int]) -> Work:
        return tuple(
            tuple((number[node], share) for node, share in program.branches[i].work)
            for i in indices
        )

    gaps = [[branch.index for branch in region.branches] for region in layout.regions]
    lives = [lives_between(program, layout, gap) for gap in range(len(layout.regions) - 1)]
    lived = lifetimes(captured, layout, hoistable(captured, program.tags))
    return Sample(
        sizes=dict(sizes),
        problem=problem,
        operations=tuple(_operation(model, node) for node in captured.graph.nodes),
        gap_work=tuple(work(indices) for indices in gaps),
        live_work=tuple(work(indices) for indices in lives),
        births=tuple(_element(life.size, life.shape) for life in lived),
        deaths=tuple(life.death for life in lived),
        bytes_per_branch=bytes_per_branch,
        resolution=border_shape(layout) if layout.regions else (),
        margins=tuple(_margin(number, *found) for found in margins(captured, program.tags)),
    )


def _margin(
    number: Mapping[Node, int], path: str, saved: tuple[Node, ...], nodes: tuple[Node, ...]
) -> Margin:
    part, whole = (sum(n.meta["flops"] for n in group) for group in (saved, nodes))
    return Margin(
        path,
        tuple(number[n] for n in saved),
        tuple(number[n] for n in nodes),
        MIN_SHARE,
        part >= MIN_SHARE * whole,
    )


def _operation(model: nn.Module, node: Node) -> Operation:
    results = [node, *node.users]
    shapes = [n.meta["shape"] for n in results if "shape" in n.meta]
    frame = node.meta.get("frame")
    path = frame.path if frame is not None else ""
    return Operation(
        label=f"{node.name} in {path or 'forward'}",
        dtype=dtype_of(node),
        flops=node.meta.get("flops", 0),
        result=shapes[0] if shapes else (),
        traffic=tuple(traffic(model, node)),
    )


def _element(size: int, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Bytes of an element and the shape; a memory of another size counts as so many bytes."""
    elements = 1
    for dim in shape:
        elements *= dim
    return (size // elements, shape) if elements and size % elements == 0 else (1, (size,))
