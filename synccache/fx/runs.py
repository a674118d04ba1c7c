"""Runs of branches, and regions made of them; see regions.py for what each form holds."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from synccache.fx.program import Branch


class RunForm(enum.Enum):
    """What is held of a run; see above."""

    RESIDUAL = "residual"
    VALUE = "value"
    MODULE = "module"
    NETWORK = "network"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Skipped:
    """What one rule skips: branches, in which form; the values to hold of modules or the network."""

    branches: frozenset[int]
    form: RunForm = RunForm.RESIDUAL
    ends: Mapping[int, Node] = field(default_factory=dict)  # MODULE: branch -> value
    whole: tuple[tuple[Node | None, Node], ...] = ()  # NETWORK: (sample or None, output) pairs


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Consecutive branches of one stream (of all streams, for the network)."""

    branches: tuple[Branch, ...]
    rule: int
    form: RunForm
    start: Node | None
    end: Node
    also: tuple[int, ...] = ()  # other rules that skip these branches, on other steps

    @property
    def label(self) -> str:
        return "the whole network" if self.form is RunForm.NETWORK else label_run(self.branches)


def make_run(
    branches: tuple[Branch, ...], rule: int, form: RunForm, also: tuple[int, ...] = ()
) -> Run:
    start = None if form is RunForm.VALUE else branches[0].before
    return Run(branches, rule, form, start, branches[-1].after, also)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Runs that are computed together or skipped together, and the nodes only they need.

    ``inner`` are branches of streams that nobody outside reads any more: nothing is held of them.
    """

    index: int
    rule: int
    runs: tuple[Run, ...]
    body: frozenset[Node]
    inner: tuple[Branch, ...] = ()
    also: tuple[int, ...] = ()  # other rules that skip it, on other steps

    @property
    def rules(self) -> tuple[int, ...]:
        """Every rule that skips it."""
        return (self.rule, *self.also)

    @property
    def label(self) -> str:
        return ", ".join(r.label for r in self.runs)

    @property
    def held_bytes(self) -> int:
        """Bytes of one held tensor of each run, in the dtype it is computed in."""
        return sum(_bytes(r.end) for r in self.runs)

    @property
    def branches(self) -> tuple[Branch, ...]:
        found = [*self.inner, *(b for r in self.runs for b in r.branches)]
        return tuple(sorted(found, key=lambda b: b.index))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All regions, and the nodes that a step with every region skipped still needs.

    ``outer`` is the network, where a rule skips all of it and other rules parts of it: the last region,
    with the others inside.
    """

    regions: tuple[Region, ...]
    needed: frozenset[Node]
    outer: Region | None = None


def _bytes(node: Node) -> int:
    count = 1
    for size in node.meta["shape"]:
        count *= size
    return count * int(node.meta["dtype"].itemsize)


def label_run(branches: tuple[Branch, ...]) -> str:
    """``blocks.3.attn`` to ``blocks.5.ffn`` as ``blocks.3.attn - blocks.5.ffn``."""
    first, last = branches[0].label, branches[-1].label
    return first if first == last else f"{first} - {last}"
