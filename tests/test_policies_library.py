"""The library: every method by name, by call and from JSON; each file short and with its source."""

import ast
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from random_policies import policies as random_policies

import synccache.policies
from synccache.errors import PolicyError
from synccache.policies import by_name, dsl, from_json, to_json
from synccache.policies.catalogue import EXAMPLES
from synccache.policies.dsl import (
    FIRST_BRANCH,
    Linear,
    Policy,
    Steps,
    blocks,
    measured_signals,
)

FOLDER = Path(synccache.policies.__file__).parent
METHODS = synccache.policies.__all__
MAX_DECLARATIVE_LINES = 25


def made(method: str) -> Policy:
    """A policy of this method; a few have no defaults."""
    library = synccache.policies.LIBRARY
    return library[method](*EXAMPLES[method]) if method in EXAMPLES else by_name(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_prints_as_the_text_that_makes_it(method: str) -> None:
    assert made(method) == eval(repr(made(method)), dict(vars(dsl)))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_survives_json(method: str) -> None:
    assert made(method) == from_json(to_json(made(method)))


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_carries_its_methods_name(method: str) -> None:
    assert method == made(method).name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_one_short_declarative_function_with_its_source(method: str) -> None:
    text = (FOLDER / f"{method}.py").read_text()
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    forbidden = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.Lambda, ast.ClassDef)

    assert [method] == [function.name for function in functions]
    assert functions[0].end_lineno - functions[0].lineno + 1 <= MAX_DECLARATIVE_LINES
    assert [node for node in ast.walk(tree) if isinstance(node, forbidden)] == []
    assert all(f"\n{word}:" in ast.get_docstring(tree) for word in ("Probe", "Error", "Source"))


def test_exact_has_no_rules() -> None:
    assert synccache.policies.exact().rules == ()


def test_first_block_cache_computes_on_a_change_greater_than_the_threshold() -> None:
    (rule,) = synccache.policies.first_block_cache().rules

    moved = dsl.relative_l1(dsl.residual(blocks[0]), since=dsl.LAST_COMPUTED)
    assert (moved <= 0.05) == rule.when
    assert rule.skip == blocks[1:]


def test_asymmetric_leaves_audio_live_and_lets_the_first_branch_lead() -> None:
    policy = synccache.policies.asymmetric(0.3, inside=4.0, max_skips=3, reuse=Linear())
    (rule,) = policy.rules

    assert FIRST_BRANCH is policy.leader
    assert dsl.segments(dsl.branches.after(blocks[0]) - dsl.branches.reading("audio")) == rule.skip
    assert Linear() == rule.reuse
    outer = measured_signals(rule.when)[0]
    assert outer.weight.inside == 4.0


def test_dbcache_keeps_front_and_back_blocks() -> None:
    assert blocks[8:] == synccache.policies.dbcache().rules[0].skip
    assert blocks[2:-3] == synccache.policies.dbcache(front=2, back=3).rules[0].skip


def test_a_step_mask_measures_nothing() -> None:
    (rule,) = synccache.policies.step_mask("CSSCS").rules

    assert Steps("CSSCS") == rule.when
    assert measured_signals(rule.when) == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("asymetric", "Did you mean 'asymmetric'"),
        ("First-Block-Cache", "Did you mean 'first_block_cache'"),
        ("qqqq", "Known are asymmetric, "),
        ("", "no policy is called ''"),
        (None, "asked for by its name"),
        ("step_mask", r"no default for 'letters'. Call it: synccache.policies.step_mask\(...\)"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        by_name(name)


def returns_a_policy(path: Path) -> bool:
    """Whether a file has a function of its own name that returns a policy: a method."""
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == path.stem
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "Policy"
        for node in ast.parse(path.read_text()).body
    )


def test_the_library_is_what_the_folder_holds() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py") if returns_a_policy(path)) == METHODS
    for method in METHODS:
        importlib.import_module(f"synccache.policies.{method}")


def test_every_method_is_in_the_reference_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]

    assert [name for name in METHODS if f"`{name}`" not in " ".join(rows)] == []


@settings(max_examples=150, deadline=None)
@given(policy=random_policies)
def test_any_policy_survives_json(policy: Policy) -> None:
    assert policy == from_json(to_json(policy))


def test_a_file_is_plain_json_with_a_schema_version() -> None:
    data = json.loads(to_json(synccache.policies.first_block_cache()), parse_constant=pytest.fail)

    assert (data["schema_version"], data["type"]) == (1, "Policy")
    assert data["rules"][0]["when"]["left"]["since"] == "last_computed"


def broken(change: Callable[[dict], object]) -> str:
    data = json.loads(to_json(synccache.policies.asymmetric()))
    change(data)
    return json.dumps(data)


WRONG = [
    ("{", "this is not JSON"),
    ("[]", "holds one object, got list"),
    ("{}", "schema_version None; this synccache reads 1"),
    ('{"schema_version": 2}', "schema_version 2"),
    ('{"schema_version": true}', "schema_version True"),
    ('{"schema_version": 1}', "expected an object with a known type"),
    ('{"schema_version": 1, "type": "Blocks"}', "outermost type must be 'Policy', got 'Blocks'"),
    ('{"schema_version": 1, "type": "Policy"}', "Policy lacks its field 'name'"),
    ('{"schema_version": 1, "type": "Policy", "type": "Rule"}', "'type' stands twice"),
    ('{"schema_version": 1, "type": "Policy", "name": NaN}', "NaN is not JSON"),
    (broken(lambda d: d.update(nmae="x")), "policy: Policy has no field 'nmae'. It has name"),
    (broken(lambda d: d.update(leader="me")), "policy.leader: 'me' is none of first_branch"),
    (broken(lambda d: d.update(leader=["first_branch"])), "policy.leader: .* is none of"),
    (broken(lambda d: d.update(name=["x"])), "policy: a policy's name must be a text"),
    (broken(lambda d: d.update(rules={})), "policy.rules: expected an object with a known type"),
    (broken(lambda d: d["rules"].append(1)), "policy: rule 2 must be a Rule, got 1"),
    (
        broken(lambda d: d["rules"][0]["when"].update(type="System")),
        r"policy.rules\[0\].when: expected an object with a known type",
    ),
    (
        broken(lambda d: d["rules"][0]["when"]["right"].update(limit=-1)),
        r"policy.rules\[0\].when.right: the limit in `Counter < ...` must lie in",
    ),
    (
        broken(lambda d: d["rules"][0]["when"]["right"].update(limit="0.05")),
        "must be a number, got '0.05'",
    ),
    (
        broken(lambda d: d["rules"][0].update(reuse="Hold")),
        r"policy.rules\[0\]: what Rule\(reuse=...\) takes must be",
    ),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[says[:40] for _, says in WRONG])
def test_a_wrong_file_says_where_and_what(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        from_json(text)
