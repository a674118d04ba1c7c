"""docs/planner.md prints what its examples print."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "planner.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def test_the_shown_output_is_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    shown = []
    for code, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(code, namespace)
        if text:
            shown.append(text)
            assert text.split() == printed.getvalue().split()  # long sentences are wrapped

    assert len(shown) == 4
