"""Policies as JSON and back: every part is an object that names its type and all its fields.

    {"schema_version": 1, "type": "Policy", "name": "mine", "rules": [{"type": "Rule", ...}], ...}

Reading is strict: an unknown type, an unknown or missing field, or a value that the language would
refuse in Python is a PolicyError that says where in the file it stands.
"""

from __future__ import annotations

import enum
import json
import math
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from synccache.errors import PolicyError
from synccache.policies import dsl

SCHEMA_VERSION = 1

# class name -> class, for all that a policy is made of
TYPES = MappingProxyType(
    {
        name: word
        for name, word in vars(dsl).items()
        if isinstance(word, type) and is_dataclass(word)
    }
)
# The fields that hold a member of an enumeration are written as its value.
ENUMS = MappingProxyType(
    {
        name: word
        for name, word in vars(dsl).items()
        if isinstance(word, type) and issubclass(word, enum.Enum)
    }
)


def to_json(policy: dsl.Policy) -> str:
    """The policy as a JSON text, indented."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **_encoded(policy)}, indent=2)


def from_json(text: str) -> dsl.Policy:
    """The policy that ``to_json`` wrote.

    Raises:  PolicyError for a text that is not JSON, of another schema version, or not a policy.
    """
    try:
        data = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise PolicyError(f"this is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise PolicyError(f"a policy file holds one object, got {type(data).__name__}.")
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise PolicyError(
            f"this file has schema_version {version!r}; this synccache reads {SCHEMA_VERSION}."
        )
    policy = _decoded(data, "policy")
    if not isinstance(policy, dsl.Policy):
        raise PolicyError(f"the outermost type must be 'Policy', got {data.get('type')!r}.")
    return policy


def _encoded(value: object) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"  # JSON has no word for it
    if value is None or isinstance(value, (str, int, float)):
        return value
    assert is_dataclass(value), value
    parts = {f.name: _encoded(getattr(value, f.name)) for f in fields(value)}
    return {"type": type(value).__name__, **parts}


def _decoded(data: Any, where: str) -> Any:
    """The part of a policy that this object describes."""
    word = data.get("type") if isinstance(data, dict) else None
    if not isinstance(word, str) or word not in TYPES:
        raise PolicyError(
            f"expected an object with a known type, got {data!r:.80}.",
            where=where,
            hint=f"Types are {', '.join(TYPES)}.",
        )
    known = {f.name: f for f in fields(TYPES[word])}
    for name in data:
        if name != "type" and name not in known:
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise PolicyError(f"{word} has no field {name!r}.", where=where, hint=has)
    for name, field in known.items():
        if name not in data and field.default is field.default_factory is MISSING:
            raise PolicyError(f"{word} lacks its field {name!r}.", where=where)
    values = {
        name: _value(data[name], field, f"{where}.{name}")
        for name, field in known.items()
        if name in data
    }
    try:
        return TYPES[word](**values)
    except PolicyError as error:
        raise PolicyError(error.message, where=where, hint=error.hint) from error


def _value(data: Any, field: Field[Any], where: str) -> Any:
    """A field's value: the annotation tells a member of an enumeration from a text."""
    members = next((ENUMS[w] for w in re.findall(r"\w+", str(field.type)) if w in ENUMS), None)
    if members is not None and not isinstance(data, dict):
        known = [member.value for member in members]
        if data not in known:
            raise PolicyError(f"{data!r} is none of {', '.join(known)}.", where=where)
        return members(data)
    if isinstance(data, list):
        return tuple(_value(item, field, f"{where}[{i}]") for i, item in enumerate(data))
    if isinstance(data, dict):
        return _decoded(data, where)
    if data in ("inf", "-inf") and field.type != "str":
        return float(data)
    return data


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PolicyError(f"the field {twice!r} stands twice in one object of this file.")
    return data


def _no_constant(word: str) -> float:
    raise PolicyError(f"{word} is not JSON.", hint='Write an infinite limit as "inf".')
