"""From recordings at a few sizes to a problem at every size; exact, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from sympy import Poly, Rational

from synccache.errors import PlanError
from synccache.planner.devices import Device
from synccache.planner.polynomials import Basis, NotPolynomial, Sizes
from synccache.planner.problem import Table
from synccache.planner.sizes import Axis
from synccache.planner.symbolic import Branches, Cost, Sample, Shape, SymbolicProblem, Work

HELD_OUT = 2
"""Recordings beyond those that determine a fit."""
_SHOWN = 5
"""Values that a refusal shows."""
_SPREAD = 8
"""How many steps beyond the stated size recordings are taken at, at most."""


def derive(
    record: Callable[[Sizes], Sample], axes: Sequence[Axis], sizes: Sizes, device: Device
) -> SymbolicProblem:
    """The problem at every size, from ``record``-ings at a few.

    Raises:  PlanError where the forward takes another course at another size, or a quantity is no
             such polynomial.
    """
    samples: list[Sample] = []
    refused: NotPolynomial | None = None
    for rounded in ((), axes[-2:], axes):
        basis = Basis(axes, rounded)
        points = _points(basis, axes, sizes)
        known = {tuple(sorted(s.sizes.items())): s for s in samples}
        samples = [known.get(tuple(sorted(p.items()))) or record(p) for p in points]
        _check_alike(samples)
        basis.settle(points)
        try:
            return _fitted(basis, tuple(axes), samples, device)
        except NotPolynomial as problem:
            refused = problem
    assert refused is not None
    raise PlanError(
        f"{refused.what} is no polynomial of {', '.join(axis.name for axis in axes)}: it is "
        + ", ".join(f"{v} at {dict(s.sizes)}" for v, s in [*zip(refused.values, samples)][:_SHOWN])
        + " ...",
        hint="Plan each size by itself: leave sizes out.",
    ) from refused


def _points(basis: Basis, axes: Sequence[Axis], sizes: Sizes) -> list[dict[str, int]]:
    """Sizes that determine every fit, the stated one first, and HELD_OUT more."""
    offsets = sorted(product(range(_SPREAD), repeat=len(axes)), key=lambda o: (sum(o), o))
    spread = [tuple(k * (i + 1) % _SPREAD for i in range(len(axes))) for k in (5, 3, 7, 6)]
    chosen: list[dict[str, int]] = []

    def size(offset: Sequence[int]) -> dict[str, int]:
        return {a.name: sizes[a.name] + a.step * o for a, o in zip(axes, offset)}

    for offset in offsets:
        if basis.rank([*chosen, size(offset)]) > len(chosen):
            chosen.append(size(offset))
        if len(chosen) == len(basis.powers):
            break
    more = (size(o) for o in spread)
    return [*chosen, *[p for p in more if p not in chosen][:HELD_OUT]]


def _check_alike(samples: Sequence[Sample]) -> None:
    """Refuses recordings that are not the same program at different sizes."""
    first = samples[0]
    for other in samples[1:]:
        same = (
            [(o.label, o.dtype) for o in other.operations]
            == [(o.label, o.dtype) for o in first.operations]
            and (other.gap_work, other.live_work) == (first.gap_work, first.live_work)
            and other.deaths == first.deaths
            and [(m.label, m.all) for m in other.margins]
            == [(m.label, m.all) for m in first.margins]
            and other.problem.weights_bytes == first.problem.weights_bytes
            and [g.name for g in other.problem.gaps] == [g.name for g in first.problem.gaps]
        )
        if not same:
            raise PlanError(
                f"the forward takes another course at {dict(other.sizes)} than at "
                f"{dict(first.sizes)}: {len(other.operations)} operations and {len(other.births)} "
                f"pieces of memory, not {len(first.operations)} and {len(first.births)}.",
                hint="Plan each size by itself: leave sizes out.",
            )
        moved = [a.label for a, b in zip(first.margins, other.margins) if a.kept is not b.kept]
        if moved:
            raise PlanError(
                f"the step-invariant part of {moved[0]} is worth keeping at one of "
                f"{dict(first.sizes)} and {dict(other.sizes)}, and not at the other.",
                hint="Plan with larger sizes=, or each size by itself.",
            )


def _fitted(
    basis: Basis, axes: tuple[Axis, ...], samples: Sequence[Sample], device: Device
) -> SymbolicProblem:
    costs = _costs(basis, samples)

    def branches(work: Work) -> Branches:
        return tuple(
            tuple(Cost(Rational(1, share), *costs[index]) for index, share in branch)
            for branch in work
        )

    first = samples[0]
    return SymbolicProblem(
        axes, first, device, basis,
        tuple(branches(work) for work in first.gap_work),
        tuple(branches(work) for work in first.live_work),
        _byte_fits(basis, samples),
        _peaks(basis, samples),
        tuple(basis.fit("the resolution", dims) for dims in zip(*(s.resolution for s in samples))),
        tuple(
            (m, *(sum((costs[i][0] for i in part), basis.constant(0)) for part in (m.invariant, m.all)))
            for m in first.margins
        ),
    )  # fmt: skip


def _costs(basis: Basis, samples: Sequence[Sample]) -> list[tuple[Poly, Poly, str]]:
    """FLOPs, traffic and dtype of each operation that some branch is charged for."""
    first = samples[0]
    used = {i for work in (*first.gap_work, *first.live_work) for b in work for i, _ in b}
    used |= {i for margin in first.margins for i in margin.all}
    found = []
    for index, versions in enumerate(zip(*(s.operations for s in samples))):
        if index not in used:
            found.append((basis.constant(0), basis.constant(0), "float32"))
            continue
        label = versions[0].label
        elements = _product(basis, label, [v.result for v in versions])
        factor = [Rational(v.flops, math.prod(v.result) or 1) for v in versions]
        traffic = basis.constant(0)
        for parts in zip(*(v.traffic for v in versions)):
            traffic += parts[0][0] * _product(basis, label, [shape for _, shape in parts])
        flops = elements * basis.fit(f"FLOPs of {label}", factor)
        found.append((flops, traffic, versions[0].dtype))
    return found


def _product(basis: Basis, label: str, shapes: Sequence[Shape]) -> Poly:
    """Elements of a tensor whose shape is known at every sampled size."""
    found = basis.constant(1)
    for dims in zip(*shapes):
        found *= basis.fit(f"a dimension of {label}", dims)
    return found


def _byte_fits(basis: Basis, samples: Sequence[Sample]) -> dict[tuple[object, ...], Poly]:
    """Held bytes of each segment in each form, and what is kept whatever the plan."""
    problems = [s.problem for s in samples]
    tables: dict[object, list[Table[int]]] = {"merged": [p.merged_bytes for p in problems]}
    for forms in zip(*(p.bytes_as for p in problems)):
        tables[forms[0][0]] = [table for _, table in forms]
    found: dict[tuple[object, ...], Poly] = {
        (name, i, j): basis.fit(f"bytes of segment {i}-{j}", [t[i][j] for t in versions])
        for name, versions in tables.items()
        for i in range(len(versions[0]))
        for j in range(i + 1, len(versions[0]))
    }
    fixed = [p.fixed_bytes_per_branch for p in problems]
    found[("fixed",)] = basis.fit("bytes of step-invariant values", fixed)
    found[("shared",)] = basis.fit("bytes of probes and masks", [p.shared_bytes for p in problems])
    found[("branch",)] = basis.fit("bytes of a mask", [s.bytes_per_branch for s in samples])
    return found


def _peaks(basis: Basis, samples: Sequence[Sample]) -> tuple[Poly, ...]:
    """Polynomials of the bytes alive, one for each moment that may be the peak at some size."""
    first = samples[0]
    sizes: dict[tuple[tuple[int, Shape], ...], Poly] = {}
    alive: dict[int, list[tuple[Poly, int]]] = {}
    for index, versions in enumerate(zip(*(s.births for s in samples))):
        if versions not in sizes:
            if len({itemsize for itemsize, _ in versions}) > 1:
                raise NotPolynomial("bytes of an intermediate", [v[0] for v in versions])
            shapes = [shape for _, shape in versions]
            sizes[versions] = versions[0][0] * _product(basis, "an intermediate", shapes)
        alive.setdefault(index, []).append((sizes[versions], 1))
        alive.setdefault(first.deaths[index], []).append((sizes[versions], -1))
    terms = sorted({power for poly in sizes.values() for power in poly.as_dict()})
    place = {power: k for k, power in enumerate(terms)}
    now = np.zeros(len(terms), dtype=object)
    rows = set()
    for index in range(len(first.births)):
        for poly, sign in alive.get(index, ()):
            for power, coefficient in poly.terms():
                if coefficient:
                    now[place[power]] += sign * coefficient
        rows.add(tuple(now))
    return tuple(
        Poly.from_dict({t: c for t, c in zip(terms, row) if c}, *basis.symbols, domain="QQ")
        for row in _undominated(rows)
    )


def _undominated(rows: set[tuple[Rational, ...]]) -> list[tuple[Rational, ...]]:
    """Without those that are below another in every coefficient: features are never negative."""
    ordered = sorted(rows, key=sum, reverse=True)
    kept: list[tuple[Rational, ...]] = []
    for row in ordered:
        if not any(all(a >= b for a, b in zip(other, row)) for other in kept):
            kept.append(row)
    return kept
