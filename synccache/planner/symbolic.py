"""Bytes and FLOPs as expressions of the sizes that a user states: frames, height, width, batch ...

Derived from recordings at a few sizes: every dimension of every tensor is fitted by a polynomial that
is linear in each size, exactly; a tensor's bytes are the product of its dimensions, an operation's FLOPs
its result's elements times a factor that is fitted as well. Where a dimension rounds a size down,
``floor(height/32)`` and the like join the fit. Two recordings more than the fit needs must agree with
it to the last byte, or it is refused: nothing is approximated.

    problem = derive(record, axes, sizes, device).at(frames=129, height=720, width=1280)

knows neither torch nor the model any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy import Poly, Rational

from synccache.errors import PlanError
from synccache.planner.chain import plan_chain
from synccache.planner.devices import Device
from synccache.planner.plan import Plan
from synccache.planner.polynomials import Basis, Sizes
from synccache.planner.problem import ChainProblem, Table
from synccache.planner.quantities import checked_count
from synccache.planner.sizes import Axis, checked_sizes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a recording: what it computes, and what it moves.

    ``traffic``: (bytes of an element, shape) of each operand and result. ``label`` is for errors.
    """

    label: str
    dtype: str
    flops: int
    result: Shape
    traffic: tuple[tuple[int, Shape], ...]


Work = tuple[tuple[tuple[int, int], ...], ...]
"""For each branch of a group: its operations by number, and how many branches share each."""


@dataclass(frozen=True, slots=True)
class Margin:
    """A module whose step-invariant part is kept only if it is at least ``share`` of its FLOPs.

    ``invariant``, ``all``: numbers of operations. ``kept``: whether it is, at the sampled size.
    """

    label: str
    invariant: tuple[int, ...]
    all: tuple[int, ...]
    share: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A recording at one size, as numbers.

    ``births``: (bytes of an element, shape) of each piece of memory in the order it is made;
    ``deaths``: how many were made by the time it is freed. ``bytes_per_branch``: the part of the
    problem's shared bytes that each guidance branch adds. ``resolution`` as in the fingerprint.
    """

    sizes: Sizes
    problem: ChainProblem
    operations: tuple[Operation, ...]
    gap_work: tuple[Work, ...]
    live_work: tuple[Work, ...]
    births: tuple[tuple[int, Shape], ...]
    deaths: tuple[int, ...]
    bytes_per_branch: int
    resolution: Shape
    margins: tuple[Margin, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of operation of a branch: how often (a fraction where shared), FLOPs, bytes moved."""

    times: Rational
    flops: Poly
    traffic: Poly
    dtype: str


Branches = tuple[tuple[Cost, ...], ...]


@dataclass(frozen=True, slots=True)
class SymbolicProblem:
    """A chain problem at every size. Built by ``derive``."""

    axes: tuple[Axis, ...]
    sample: Sample
    device: Device
    basis: Basis
    gap_costs: tuple[Branches, ...]
    live_costs: tuple[Branches, ...]
    byte_fits: Mapping[tuple[object, ...], Poly]
    peaks: tuple[Poly, ...]
    resolution: tuple[Poly, ...]
    margins: tuple[tuple[Margin, Poly, Poly], ...]

    def at(self, guidance_branches: int | None = None, **sizes: int) -> ChainProblem:
        """The problem at these sizes; what is not stated is as it was when the plan was made.

        Raises:  PlanError for a size that the model does not take.
        """
        wanted = self.checked(sizes)
        value = self._evaluator(wanted)
        self._check_margins(wanted, value)
        base = self.sample.problem

        def table(name: object, old: Table[int]) -> Table[int]:
            return tuple(
                tuple(value(self.byte_fits[(name, i, j)]) if (name, i, j) in self.byte_fits else 0
                      for j in range(len(row)))
                for i, row in enumerate(old)
            )  # fmt: skip

        merged = table("merged", base.merged_bytes)
        branches = base.guidance_branches if guidance_branches is None else guidance_branches
        added = value(self.byte_fits[("branch",)]) * (branches - base.guidance_branches)
        return replace(
            base,
            guidance_branches=branches,
            gaps=tuple(
                replace(gap, held_bytes=merged[i][i + 1], **self._work(self.gap_costs[i], value))
                for i, gap in enumerate(base.gaps)
            ),
            lives=tuple(
                replace(live, **self._work(work, value))
                for live, work in zip(base.lives, self.live_costs)
            ),
            merged_bytes=merged,
            bytes_as=tuple((form, table(form, old)) for form, old in base.bytes_as),
            activation_bytes=max((value(p) for p in self.peaks), default=0),
            fixed_bytes_per_branch=value(self.byte_fits[("fixed",)]),
            shared_bytes=value(self.byte_fits[("shared",)]) + added,
        )

    def _check_margins(self, sizes: Sizes, value: Callable[[Poly], int]) -> None:
        """What is kept once a trajectory must be the same as where the problem was derived."""
        for margin, invariant, everything in self.margins:
            part, whole = value(invariant), value(everything)
            if (part >= margin.share * whole) is not margin.kept:
                raise PlanError(
                    f"at {dict(sizes)} the step-invariant part of {margin.label} is "
                    f"{part / whole:.2%} of its FLOPs, so it would {'not ' * margin.kept}be kept, "
                    "unlike where this plan was made; its bytes are not known here.",
                    hint="Plan with sizes= nearer to these.",
                )

    def resolution_at(self, **sizes: int) -> Shape:
        """Shape of the first region's stream."""
        value = self._evaluator(self.checked(sizes))
        return tuple(value(poly) for poly in self.resolution)

    def checked(self, sizes: Sizes) -> dict[str, int]:
        """All sizes, those not stated as they were."""
        unknown = set(sizes) - {axis.name for axis in self.axes}
        if not unknown:
            sizes = {**self.sample.sizes, **sizes}
        return checked_sizes(self.axes, sizes)

    @property
    def flops(self) -> sympy.Expr:
        """FLOPs of one forward in regions and between them, in the names of the sizes."""
        return self.basis.expression(
            sum(
                (cost.flops * cost.times for work in (*self.gap_costs, *self.live_costs)
                 for branch in work for cost in branch),
                Poly(0, *self.basis.symbols, domain="QQ"),
            )
        )  # fmt: skip

    @property
    def activation_bytes(self) -> sympy.Expr:
        """The activation peak: the largest of the polynomials that may be it."""
        return sympy.Max(*(self.basis.expression(p) for p in self.peaks))

    def held_bytes(self, gap: int) -> sympy.Expr:
        """Bytes of a gap's residual, one guidance branch and one held tensor."""
        return self.basis.expression(self.byte_fits[("merged", gap, gap + 1)])

    def _evaluator(self, sizes: Sizes) -> Callable[[Poly], int]:
        known: dict[Poly, int] = {}

        def value(poly: Poly) -> int:
            if poly not in known:
                known[poly] = self.basis.value(poly, sizes)
            return known[poly]

        return value

    def _work(self, branches: Branches, value: Callable[[Poly], int]) -> dict[str, Any]:
        flops, seconds = 0, 0.0
        for branch in branches:
            exact = sum((c.times * value(c.flops) for c in branch), Rational(0))
            flops += round(float(exact)) if not exact.is_integer else int(exact)
            seconds += sum(
                float(cost.times)
                * self.device.seconds(value(cost.flops), value(cost.traffic), cost.dtype)
                for cost in branch
            )
        return {"flops": flops, "seconds": seconds}


def plan_at(plan: Plan, sizes: Sizes) -> Plan:
    """The plan at other sizes, within the same limits. See ``Plan.at``."""
    symbolic = plan.symbolic
    if symbolic is None:
        raise PlanError(
            "the plan was made for one size only", where=plan.where,
            hint="Use synccache.plan(model, inputs=..., axes=..., sizes=...), and plan.at before "
            "the plan is saved.",
        )  # fmt: skip
    given = {name: size for name, size in sizes.items() if name != "guidance_branches"}
    branches = sizes.get("guidance_branches", plan.memory.guidance_branches)
    made_for = plan.fingerprint
    if made_for is not None:
        made_for = replace(made_for, resolution=symbolic.resolution_at(**given))
    found = plan_chain(
        symbolic.at(checked_count(branches, "guidance_branches", least=1), **given),
        policy=plan.policy, model=plan.model, mem_budget=plan.budget_bytes,
        cache_ratio=plan.cache_ratio, storages=plan.storages, fingerprint=made_for,
    )  # fmt: skip
    return replace(found, symbolic=symbolic)
