"""Plans as JSON: what is written reads back equal, and what is no plan is refused by name."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from test_planner_chains import UNHURRIED, chain
from test_planner_plan import planned, problems_with_limits

from synccache.errors import PlanError
from synccache.planner import ChainProblem, Plan


@UNHURRIED
@given(problems_with_limits())
def test_a_plan_survives_json_unchanged(asked: tuple[ChainProblem, dict[str, object]]) -> None:
    plan = planned(asked[0], **asked[1])

    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_survives_a_file(tmp_path: Path) -> None:
    plan = planned(chain(3))
    plan.save(tmp_path / "plan.json")

    assert Plan.load(tmp_path / "plan.json") == plan


def without(name: str) -> str:
    entries = json.loads(planned(chain(2)).to_json())
    del entries[name]
    return json.dumps(entries)


def with_entry(name: str, value: object) -> str:
    return json.dumps({**json.loads(planned(chain(2)).to_json()), name: value})


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "not the JSON text of a plan"),
        ("[]", "a Plan must be a JSON object, not []"),
        (without("memory"), "missing: ['memory']"),
        (with_entry("colour", "red"), "unknown: ['colour']"),
        (with_entry("schema_version", 3), "schema version 3, this synccache reads 2"),
        (with_entry("regions", {}), "a JSON array was expected, not {}"),
        (with_entry("regions", [{}]), "a PlannedRegion has 16 fields"),
        (with_entry("drift_source", "guess"), "a DriftSource must be one of"),
        (with_entry("memory", None), "a Memory must be a JSON object, not None"),
        (with_entry("live_total", -1), "live_total must be a whole number"),
    ],
)
def test_a_file_that_holds_no_plan_is_refused_by_name(text: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)

    with pytest.raises(PlanError) as refusal:
        Plan.load(path)

    assert str(refusal.value).startswith(f"{path}: ")
    assert fact in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the plan cannot be read"):
        Plan.load(tmp_path / "none.json")
