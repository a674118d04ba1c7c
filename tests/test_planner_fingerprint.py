"""Fingerprints: what agrees, what does not, and how a difference is said."""

from dataclasses import replace

import pytest

from synccache.errors import PlanError
from synccache.planner.fingerprint import Fingerprint, parameters_digest

MADE_FOR = Fingerprint(
    model="Net", parameters="abc", resolution=(1, 12, 16), policy="Policy('x', ())", sampler="euler",
    steps=40,
)  # fmt: skip


def test_a_fingerprint_agrees_with_itself() -> None:
    assert MADE_FOR.differences(MADE_FOR) == ()


def test_everything_that_differs_is_named_with_both_values() -> None:
    other = replace(MADE_FOR, model="Other", resolution=(1, 24, 16), steps=20)

    with pytest.raises(PlanError) as refusal:
        MADE_FOR.check(other, "the plan")

    assert "the plan was made for something else" in refusal.value.message
    for fact in (
        "model: 'Net' there, 'Other' here",
        "resolution: (1, 12, 16) there, (1, 24, 16) here",
        "steps: 40 there, 20 here",
    ):
        assert fact in refusal.value.message


def test_a_sampler_that_is_not_known_agrees_with_any() -> None:
    unknown = replace(MADE_FOR, sampler="", steps=None)

    assert MADE_FOR.differences(unknown) == unknown.differences(MADE_FOR) == ()


def test_a_digest_sees_names_shapes_and_dtypes_but_not_their_order() -> None:
    entries = [("a", (2, 3), "float32"), ("b", (3,), "float32")]
    digest = parameters_digest(entries)

    assert digest == parameters_digest(entries[::-1])
    for changed in (("c", (3,), "float32"), ("b", (4,), "float32"), ("b", (3,), "bfloat16")):
        assert digest != parameters_digest([entries[0], changed])


@pytest.mark.parametrize(
    ("values", "fact"),
    [({"model": ""}, "model"), ({"resolution": (0, -1)}, "resolution"), ({"steps": 0}, "steps")],
)
def test_a_fingerprint_of_nothing_is_refused(values: dict[str, object], fact: str) -> None:
    with pytest.raises(PlanError, match=fact):
        replace(MADE_FOR, **values)
