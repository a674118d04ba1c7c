"""`synccache policies`: the list, a method's file, and what a policy would do on a tiny model."""

import inspect
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import synccache.policies
from synccache.cli import app
from synccache.errors import PolicyError
from synccache.policies import LIBRARY, first_block_cache, to_json
from synccache.policies.catalogue import catalogue, entry
from synccache.policies.files import load

OWN = '''
"""Two policies."""
from synccache.policies.dsl import LAST_COMPUTED, Policy, Rule, blocks, relative_l1, residual, step

moved = relative_l1(residual(blocks[:2]), since=LAST_COMPUTED)

def careful(threshold=0.4):
    return Policy("careful", (Rule(blocks[2:], (moved < threshold) & (step >= 3)),))
'''
BOLD = '\nbold = Policy("bold", (Rule(blocks[2:], moved < 9),))\n'
BUILDER = """
from synccache.integrations.diffusers.tiny_models import tiny_wan

def build():
    return tiny_wan()

def wrong():
    return "a model"
"""


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["policies", *arguments])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert [word for word in words if word not in line] == []


# ---- the list


def test_every_method_is_listed_with_its_arguments_and_source() -> None:
    listed = run()

    assert listed.exit_code == 0
    for found in catalogue():
        assert found.name in listed.stdout.replace("\n", "")


@pytest.mark.parametrize("name", LIBRARY)
def test_an_entry_says_what_the_method_does_takes_and_where_it_is_from(name: str) -> None:
    found = entry(name)
    parameters = inspect.signature(LIBRARY[name]).parameters

    assert found.line
    assert found.source
    assert [p for p in parameters if f"{p}=" not in found.arguments] == []
    assert found.holds == "nothing" or name != "exact"


def test_what_a_method_needs_and_holds_is_read_from_its_policy() -> None:
    asymmetric, mask = entry("asymmetric"), entry("step_mask")

    assert "an input marked audio" in asymmetric.needs
    assert any("mask 'person'" in need for need in asymmetric.needs)
    assert asymmetric.holds == "1 residual a segment; 1 reference of a stream's size"
    assert mask.needs == ("letters=...",)
    assert entry("exact").holds == "nothing"


@pytest.mark.parametrize("name", LIBRARY)
def test_show_prints_the_methods_file(name: str) -> None:
    path = Path(synccache.policies.__file__).parent / f"{name}.py"

    assert path.read_text().strip() == run("show", name).stdout.strip()


def test_an_unknown_method_is_refused_with_the_nearest_one() -> None:
    assert_refused(run("show", "dbcahce"), "Did you mean 'dbcache'?")


# ---- a trial


def test_check_says_what_matched_what_is_held_and_what_each_step_would_do(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    found = run("check", str(file), "--model", "tiny-wan", "--steps", "8")

    assert found.exit_code == 0, found.output
    assert "18 branches in 1 regions" in found.stdout  # 3 in each of the blocks 2..7
    assert "careful on WanTransformer3DModel, 8 steps" in found.stdout
    rows = [line.split("│")[1:-1] for line in found.stdout.splitlines() if line.startswith("│")]
    cells = [(row[k].strip(), row[k + 1].strip()) for k in (2, 4) for row in rows]
    skipped = [letter for letter, _ in cells].count("S")
    assert [letter for letter, _ in cells[:3]] == ["C", "C", "C"]
    assert [letter == "C" for letter, _ in cells] == [drift == "0.00%" for _, drift in cells]
    assert 0 < skipped < len(cells) == 16
    assert f"skipped     {skipped} of 16 forwards" in found.stdout


def test_check_says_so_when_nothing_is_skipped() -> None:
    assert "nothing was skipped in 3 steps" in run(
        "check", "first_block_cache", "--steps", "3"
    ).stdout.replace("\n", " ")


@pytest.mark.parametrize("model", ["tiny-hunyuan-video", "tiny-flux"])
def test_check_runs_on_every_tiny_model(model: str) -> None:
    found = run("check", "dbcache", "--model", model, "--steps", "2")

    assert found.exit_code in (0, 1), found.output
    assert found.exception is None or isinstance(found.exception, SystemExit)


def test_check_takes_a_builder_of_the_readers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models_for_check.py").write_text(BUILDER)
    (tmp_path / "policy.json").write_text(to_json(first_block_cache(0.3)))
    builder = "my_models_for_check"
    found = run("check", "policy.json", "--model", f"{builder}:build", "--steps", "3")

    assert found.exit_code == 0, found.output
    assert "first_block_cache on WanTransformer3DModel, 3 steps" in found.stdout
    for name, words in {"wrong": "(model, inputs)", "none": "no function 'none'"}.items():
        assert_refused(run("check", "policy.json", "--model", f"{builder}:{name}"), words)
    assert_refused(run("check", "policy.json", "--model", "no_such_module:build"), "no_such_module")
    assert_refused(run("check", "policy.json", "--model", "tiny-unknown"), "tiny-wan")
    assert_refused(run("check", "exact"), "no rules")


# ---- files


def test_a_policy_of_a_python_file_is_its_one_function_or_the_one_named(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    assert load(file).name == "careful"
    file.write_text(OWN + BOLD)

    assert load(f"{file}:bold").name == "bold"
    assert load(f"{file}:careful").name == "careful"
    with pytest.raises(PolicyError, match=r"found careful, bold\. Say which"):
        load(file)
    with pytest.raises(PolicyError, match="called 'timid', found none"):
        load(f"{file}:timid")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "found none"),
        ("def mine(threshold):\n    return threshold", "'threshold' has no default"),
        ("def mine():\n    return 3", "expected a Policy, got 3"),
    ],
)
def test_a_python_file_without_a_policy_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(text)

    with pytest.raises(PolicyError, match=words):
        load(file)


@pytest.mark.parametrize("name", ["missing.py", "missing.json", "policy.yaml"])
def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match=r"cannot be read|ends in \.json or \.py"):
        load(tmp_path / name)
