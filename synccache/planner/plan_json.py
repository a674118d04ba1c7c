"""JSON values back into frozen records; what the JSON lacks or adds is named, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import StrEnum
from json import JSONDecodeError, loads
from typing import Any, TypeVar, cast

from synccache.errors import PlanError

_Record = TypeVar("_Record")
_Choice = TypeVar("_Choice", bound=StrEnum)

_Reader = Callable[[object], object]


def json_value(text: str) -> object:
    """The value that a JSON text stands for.

    Raises:  PlanError with line and column where it is no JSON.
    """
    try:
        value: object = loads(text)
    except JSONDecodeError as error:
        raise PlanError(f"this is not the JSON text of a plan: {error}") from error
    return value


def record(kind: type[_Record], data: object, **readers: _Reader) -> _Record:
    """The record `kind` with the fields of a JSON object, some of them read by `readers`.

    The record's own `__post_init__` then checks every value.
    """
    wanted = {field.name for field in fields(cast(Any, kind)) if field.compare}
    if not isinstance(data, Mapping):
        raise PlanError(f"a {kind.__name__} must be a JSON object, not {data!r}")
    if set(data) != wanted:
        missing, unknown = sorted(wanted - set(data)), sorted(set(data) - wanted)
        raise PlanError(
            f"a {kind.__name__} has {len(wanted)} fields; missing: {missing}, unknown: {unknown}"
        )
    entries: dict[str, Any] = dict(data)
    for name, reader in readers.items():
        entries[name] = reader(entries[name])
    return kind(**entries)


def array(data: object) -> tuple[object, ...]:
    """A JSON array as a tuple."""
    if not isinstance(data, list):
        raise PlanError(f"a JSON array was expected, not {data!r}")
    return tuple(data)


def choice(kind: type[_Choice], data: object) -> _Choice:
    """The member of `kind` that was written as a text."""
    known = {member.value: member for member in kind}
    if not isinstance(data, str) or data not in known:
        raise PlanError(f"a {kind.__name__} must be one of {sorted(known)}, not {data!r}")
    return known[data]
