"""Every Python block in the documentation runs; the blocks of one file share one namespace.

A block that needs a GPU or the reader's own model is opened with ```python notest: it must still be
valid Python.
"""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import synccache

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """(line of the first statement, what follows ```python, code) for each block of a page."""
    text = page.read_text()
    return [
        (text[: found.start(2)].count("\n") + 1, found[1].strip(), found[2])
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a block writes, it writes there
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, flags, code in blocks(page):
        assert flags in {"", "notest"}, f"{page.name}:{line}: unknown flag {flags!r}"
        # the padding makes tracebacks point at the line of the page
        compiled = compile("\n" * (line - 1) + code, str(page), "exec")
        if flags != "notest":
            exec(compiled, namespace)


def test_the_readme_shows_the_use_on_a_model_in_twelve_lines_first() -> None:
    _, _, code = blocks(ROOT / "README.md")[0]

    assert "synccache.compile(" in code
    assert len(code.strip().splitlines()) <= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_to_a_file_of_the_project_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target and "mailto:" not in target]

    assert [target for target in local if not (page.parent / target).exists()] == []


MODULES = [
    module.name
    for module in pkgutil.walk_packages(synccache.__path__, "synccache.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    if name.startswith("synccache.integrations."):
        pytest.importorskip(name.split(".")[2])
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert failed == 0
