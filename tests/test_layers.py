"""Imports go one way: errors <- {policies, planner} <- fx <- compiler <- the outer modules."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "synccache"

OUTER = {
    "calibrate",
    "measure",
    "schedules",
    "thresholds",
    "watched",
    "preview",
    "integrations",
    "report",
    "demo",
    "cli",
    "__main__",
}
COMPILER = {"errors", "policies", "planner", "fx", "compiler"}

# part -> the other parts of synccache that it may import; "" is the package itself (__init__.py)
MAY_IMPORT = {
    "errors": set(),
    "policies": {"errors"},
    "planner": {"errors"},
    "portrait": {"errors"},
    "fx": {"errors", "policies", "planner"},
    "compiler": {"errors", "policies", "planner", "fx"},
    "": COMPILER | {"measure", "calibrate", "preview", "schedules", "thresholds"},
    "preview": COMPILER,
    "watched": COMPILER,
    "measure": COMPILER | {"watched"},
    "calibrate": COMPILER | {"measure", "watched"},
    "schedules": COMPILER,
    "thresholds": COMPILER,
    "integrations": COMPILER | {"", "calibrate", "preview"},
    "report": COMPILER | {"", "calibrate"},
    "demo": COMPILER | {"", "calibrate", "portrait", "report"},
    "cli": COMPILER | OUTER | {"", "portrait"},
    "__main__": {"cli"},
}

# part -> the packages outside the standard library that it may import (absent: any)
MAY_USE = {
    "errors": set(),
    "policies": set(),
    "planner": {"numpy", "ortools", "sympy", "networkx"},
    "portrait": {"torch", "numpy", "safetensors"},
    "fx": {"torch", "networkx", "numpy"},
    "compiler": {"torch"},
    "": {"torch"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The first component below synccache: a folder or a module; "" for the package's own door."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as an absolute dotted name."""
    package = ("synccache", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            if base == "synccache":  # `from synccache import x` may name a part
                yield from (f"synccache.{alias.name}" for alias in node.names)
            else:
                yield base


def parts_imported(path: Path) -> set[str]:
    """The parts of synccache that a file imports; a name that is no part is the package itself."""
    found = set()
    for name in imported_modules(path):
        if name.split(".")[0] == "synccache":
            rest = name.split(".")[1:]
            found.add(rest[0] if rest and rest[0] in MAY_IMPORT else "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_the_parts_below_its_own(path: Path) -> None:
    part = part_of(path)

    assert part in MAY_IMPORT, (
        f"synccache/{part} has no place in the layers: see docs/contributing.md"
    )
    assert parts_imported(path) - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_uses_only_the_libraries_of_its_part(path: Path) -> None:
    part = part_of(path)
    used = {name.split(".")[0] for name in imported_modules(path)}
    outside = used - set(sys.stdlib_module_names) - {"synccache"}

    assert part not in MAY_USE or outside <= MAY_USE[part]
