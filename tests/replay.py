"""A recorded forward run branch by branch in plain Python: what the residual program says of it.

Each branch may be computed from the streams as the branches before it left them, from conditions, and
from nothing else; a branch that needs a later value of any stream is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from synccache.fx.program import ResidualProgram


class Replay:
    """Values of a recorded graph, computed when asked for."""

    def __init__(self, model: nn.Module, program: ResidualProgram, tensors: list[Tensor]) -> None:
        self.program, self.captured = program, program.captured
        self.roots = {"model": model, "constants": self.captured.constants}
        self.values: dict[Node, Any] = dict(zip(self.captured.placeholders, tensors, strict=True))
        self.live = _closure(self.captured.graph.output_node().all_input_nodes)

    def run(self) -> list[Tensor]:
        """The output tensors, after every branch in its turn."""
        sums = [b.sum for b in self.program.branches]
        for i, branch in enumerate(self.program.branches):
            later = set(sums[i:])
            self.need(branch.addends, later)
            self.need([branch.before], later)
            self.need([branch.sum, branch.after], set(sums[i + 1 :]))
        results = self.captured.graph.output_node().args[0]
        self.need(results, set())
        return [self.values[n] for n in results]

    def need(self, nodes: Iterable[Node], later: set[Node]) -> None:
        """Computes what is missing; what reads memory before it is overwritten comes first."""
        todo = list(nodes)
        while todo:
            node = todo[-1]
            if node in self.values:
                todo.pop()
                continue
            assert node not in later, f"{node.name} is added to a stream only later"
            readers = [n for n in node.meta.get("after_reads", ()) if n in self.live]
            missing = [n for n in (*node.all_input_nodes, *readers) if n not in self.values]
            if missing:
                todo += missing
                continue
            self.values[node] = self.compute(node)
            todo.pop()

    def compute(self, node: Node) -> Any:
        if node.op == "get_attr":
            return self.fetch(node.target)
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called = self.fetch(node.target) if node.op == "call_module" else node.target
        return called(*args, **kwargs)

    def fetch(self, target: Any) -> Any:
        root, _, path = str(target).partition(".")
        if root == "constants":
            return self.roots[root][path]
        value: Any = self.roots[root]
        for name in path.split("."):
            value = getattr(value, name)
        return value


def _closure(starts: Iterable[Node]) -> set[Node]:
    seen: set[Node] = set()
    todo = list(starts)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += node.all_input_nodes
    return seen
