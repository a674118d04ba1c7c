"""Errors: one shape, all parts kept, and they survive a trip to another process."""

import pickle

import pytest

from synccache import errors
from synccache.errors import (
    CaptureError,
    MatchError,
    PlanError,
    PolicyError,
    StateError,
    SynccacheError,
    VerifyError,
)

KINDS = [CaptureError, MatchError, PlanError, PolicyError, StateError, VerifyError]


def test_a_message_says_where_then_what_then_what_to_try() -> None:
    error = PlanError("the budget is 1 GB.", where="asymmetric on Net", hint="Raise it to 2 GB.")

    assert str(error) == "asymmetric on Net: the budget is 1 GB. Raise it to 2 GB."


def test_a_message_without_a_full_stop_gets_one_before_the_hint() -> None:
    error = PlanError("the budget is 1 GB", hint="Raise it to 2 GB.")

    assert str(error) == "the budget is 1 GB. Raise it to 2 GB."


def test_a_bare_message_stays_as_it_is() -> None:
    assert str(StateError("no step has begun")) == "no step has begun"


def test_the_parts_stay_readable() -> None:
    error = MatchError("0 of 40 blocks read AUDIO", where="rule 2", hint="Name the input.")

    assert (error.message, error.where, error.hint) == (
        "0 of 40 blocks read AUDIO",
        "rule 2",
        "Name the input.",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_caught_as_a_synccache_error(kind: type[SynccacheError]) -> None:
    with pytest.raises(SynccacheError, match=r"^here: wrong$"):
        raise kind("wrong", where="here")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_its_parts(kind: type[SynccacheError]) -> None:
    error = kind("wrong", where="here", hint="Try this.")
    error.add_note("seen on rank 1")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.message, copy.where, copy.hint) == ("wrong", "here", "Try this.")
    assert copy.__notes__ == ["seen on rank 1"]


def test_the_list_of_public_names_is_complete() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SynccacheError)
    }

    assert kinds == set(errors.__all__)
