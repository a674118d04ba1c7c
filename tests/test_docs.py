"""Every Python block in the documentation runs; the blocks of one file share one namespace.

A block that needs a GPU or the reader's own model is opened with ```python notest: it must still be
valid Python. A block opened with ```text output is what the Python block before it prints; `...` in it
stands for anything. `python tests/test_docs.py` puts in what is printed now where that has changed.
"""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import synccache

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|text output)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its kind, what follows the kind, its first line, its text and place."""

    kind: str
    flags: str
    line: int
    text: str
    place: tuple[int, int]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            found[1],
            found[2].strip(),
            text[: found.start(3)].count("\n") + 1,
            found[3],
            found.span(3),
        )
        for found in BLOCK.finditer(text)
    ]


def run_page(page: Path) -> Iterator[tuple[Block, str]]:
    """Runs the Python blocks of a page; yields every output block with what was really printed."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.kind == "text output":
            yield block, printed
            continue
        assert block.flags in {"", "notest"}, f"{page.name}:{block.line}: flag {block.flags!r}"
        # the padding makes tracebacks point at the line of the page
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.flags != "notest":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = out.getvalue()


def agree(written: str, printed: str) -> bool:
    """Whether what a page says is what is printed, up to white space and `...`."""
    return doctest.OutputChecker().check_output(written, printed, LOOSE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a block writes, it writes there
    for block, printed in run_page(page):
        assert agree(block.text, printed), (
            f"{page.name}:{block.line} no longer prints this; it prints:\n{printed}"
        )


def test_the_readme_shows_the_use_on_a_model_in_twelve_lines_first() -> None:
    code = blocks(ROOT / "README.md")[0].text

    assert "synccache.compile(" in code
    assert len(code.strip().splitlines()) <= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_to_a_file_of_the_project_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
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


def renew(page: Path) -> None:
    """Rewrites the output blocks of a page that no longer agree with what is printed."""
    text, moved = page.read_text(), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        outputs = list(run_page(page))
    for block, printed in outputs:
        if not agree(block.text, printed):
            steady = re.sub(r"\d+\.\d+ s\b", "... s", printed.strip("\n"))  # times never repeat
            lines = "".join(f"{line.rstrip()}\n" for line in steady.splitlines())
            start, end = (edge + moved for edge in block.place)
            text = text[:start] + lines + text[end:]
            moved += len(lines) - len(block.text)
            print(f"{page.name}:{block.line} renewed")
    page.write_text(text)


if __name__ == "__main__":
    for outdated in PAGES:
        renew(outdated)
