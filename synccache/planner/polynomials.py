"""Polynomials that are linear in each size, and their exact fit to integers at a few sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import sympy
from sympy import Poly, Symbol

from synccache.planner.sizes import Axis

Sizes = Mapping[str, int]

_FLOORS = (2, 4)
"""A size may be rounded down to this many of its steps: two halvings of a resolution."""


@dataclass(frozen=True, slots=True)
class Feature:
    """An axis counted in steps from its first size; or a size rounded down to ``floor`` steps."""

    axis: Axis
    floor: int = 1

    @property
    def symbol(self) -> Symbol:
        return Symbol(f"{self.axis.name}_{self.floor}", integer=True, nonnegative=True)

    def value(self, sizes: Sizes) -> int:
        size = sizes[self.axis.name]
        if self.floor > 1:
            return size // (self.axis.step * self.floor)
        return (size - self.axis.first) // self.axis.step

    @property
    def expression(self) -> sympy.Expr:
        size = Symbol(self.axis.name, integer=True, positive=True)
        if self.floor > 1:
            return sympy.floor(size / (self.axis.step * self.floor))
        return (size - self.axis.first) / self.axis.step


class NotPolynomial(Exception):
    """A quantity that the basis at hand does not express."""

    def __init__(self, what: str, values: Sequence[object]) -> None:
        super().__init__(what)
        self.what, self.values = what, values


class Basis:
    """Monomials linear in each feature, and the exact fit of values at sampled sizes by them."""

    def __init__(self, axes: Sequence[Axis], rounded: Sequence[Axis] = ()) -> None:
        self.features = [Feature(axis) for axis in axes]
        powers = list(product((0, 1), repeat=len(axes)))
        for floor in _FLOORS if rounded else ():
            mine = [Feature(axis, floor) for axis in rounded]
            self.features += mine
            powers = [(*p, *(0,) * len(mine)) for p in powers]
            for pick in product((0, 1), repeat=len(mine)):
                if 1 <= sum(pick) <= 2:
                    powers.append((*(0,) * (len(self.features) - len(mine)), *pick))
        self.powers = powers
        self.symbols = [feature.symbol for feature in self.features]
        self._fits: dict[tuple[object, ...], Poly] = {}

    def row(self, sizes: Sizes) -> list[int]:
        """The value of each monomial."""
        values = [feature.value(sizes) for feature in self.features]
        return [math.prod(v**p for v, p in zip(values, power)) for power in self.powers]

    def rank(self, points: Sequence[Sizes]) -> int:
        return int(sympy.Matrix([self.row(p) for p in points]).rank()) if points else 0

    def settle(self, points: Sequence[Sizes]) -> None:
        """Fixes the sizes that fits are made at; those beyond what a fit needs only check it."""
        self._rows = np.array([self.row(p) for p in points], dtype=object)
        matrix = sympy.Matrix(self._rows[: len(self.powers)].tolist())
        self._inverse = np.array(matrix.inv().tolist(), dtype=object)

    def fit(self, what: str, values: Sequence[object]) -> Poly:
        """The polynomial with these values at the settled sizes.

        Raises:  NotPolynomial where there is none.
        """
        key = tuple(values)
        if key not in self._fits:
            given = np.array([sympy.sympify(v) for v in values], dtype=object)
            found = self._inverse.dot(given[: len(self.powers)])
            if any(self._rows.dot(found) != given):
                raise NotPolynomial(what, values)
            terms = {power: c for power, c in zip(self.powers, found) if c}
            self._fits[key] = Poly.from_dict(terms, *self.symbols, domain="QQ")
        return self._fits[key]

    def constant(self, number: int) -> Poly:
        """A polynomial of no size."""
        return Poly(number, *self.symbols, domain="QQ")

    def value(self, poly: Poly, sizes: Sizes) -> int:
        """What a polynomial is at these sizes."""
        values = [feature.value(sizes) for feature in self.features]
        terms = (c * math.prod(v**p for v, p in zip(values, powers)) for powers, c in poly.terms())
        found = sum(terms, sympy.Integer(0))
        assert found.is_integer, (poly, sizes)
        return int(found)

    def expression(self, poly: Poly) -> sympy.Expr:
        """A polynomial in the names of the sizes."""
        names = {feature.symbol: feature.expression for feature in self.features}
        return sympy.expand(poly.as_expr().xreplace(names))
