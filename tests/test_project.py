"""What holds for every file: its length, no model names in the compiler, nothing swallowed."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "synccache"
MAX_LINES = 400

FILES = sorted(
    path
    for folder in ("synccache", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
LIBRARY = [path for path in FILES if path.is_relative_to(PACKAGE)]
GENERIC = [
    path
    for path in LIBRARY
    if path.relative_to(PACKAGE).parts[0] not in {"portrait", "demo", "integrations"}
    and path != PACKAGE / "policies" / "tables.py"  # published tables, by the model they belong to
]

# Families of released transformers: the compiler must know none of them by name.
MODEL_NAME = re.compile(
    r"(Wan(?![a-z])|Hunyuan|LTX|InfiniteTalk|MultiTalk|FantasyTalking|OmniAvatar|StableAvatar|Hallo\d"
    r"|CogVideo|Mochi|QwenImage|PixArt|Flux(?![a-z])|SD3|StableDiffusion|PortraitDiT)\w*"
)


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


def names_in_code(tree: ast.AST) -> set[str]:
    """Identifiers and string constants of a module, without its docstrings and comments."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                found.add(node.value)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.alias)):
            found.add(node.name)
    return found


@named(FILES)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@named(GENERIC)
def test_the_compiler_names_no_model(path: Path) -> None:
    names = names_in_code(ast.parse(path.read_text()))

    assert [name for name in names if MODEL_NAME.search(name)] == []


@named(LIBRARY)
def test_no_error_is_swallowed_and_no_warning_given(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(kind) if kind else "everything" for kind in kinds}
            raised_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if names & {"everything", "Exception", "BaseException"} and not raised_again:
                found.append(f"line {node.lineno}: except {', '.join(names)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"warnings.warn", "warn"}:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")

    assert found == []


def test_every_core_dependency_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [\n")[1].split("]")[0].strip().splitlines()

    assert [line for line in block if "#" not in line] == []
    assert len(block) == len(tomllib.loads(text)["project"]["dependencies"])


def test_constraints_pin_plain_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert "torch==2.13.0" in pins
