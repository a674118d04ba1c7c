"""Byte amounts as people write them, and the guards that every number of the planner passes.

Units:  GB is 10**9 bytes, GiB is 2**30 bytes, and likewise for K, M and T.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from synccache.errors import PlanError

_UNIT_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_AMOUNT = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)
_ACCEPTED = (
    "A positive number of bytes is wanted, "
    'such as "24GB", "24GiB", "1.5 GB", "512MB" or 24000000000.'
)


def parse_bytes(amount: str | int) -> int:
    """The number of bytes meant by `amount`.

    >>> parse_bytes("24GB"), parse_bytes("24 GiB"), parse_bytes(512)
    (24000000000, 25769803776, 512)

    Raises:  PlanError for anything that is not a positive amount in B, KB ... TB or KiB ... TiB.
    """
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise PlanError(f"{amount!r} is not an amount of memory", hint=_ACCEPTED)
    size = amount if isinstance(amount, int) else _bytes_in_text(amount)
    if size < 1:
        raise PlanError(f"{amount!r} is less than one byte", hint=_ACCEPTED)
    return size


def format_bytes(size: int) -> str:
    """`size` in the largest decimal unit that it fills.

    >>> format_bytes(774_144_000)
    '774.14 MB'
    """
    if size < 0:
        return f"-{format_bytes(-size)}"
    for unit in ("TB", "GB", "MB", "KB"):
        if size >= _UNIT_BYTES[unit]:
            return f"{size / _UNIT_BYTES[unit]:.2f} {unit}"
    return f"{size} B"


def counted(count: int, thing: str, things: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "gap"), counted(2, "gap"), counted(2, "branch", "branches")
    ('1 gap', '2 gaps', '2 branches')
    """
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def checked_count(value: object, name: str, *, least: int = 0) -> int:
    """`value` if it is an int of at least `least`.

    Raises:  PlanError naming the quantity otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def checked_amount(value: object, name: str) -> float:
    """`value` if it is a finite number of at least 0.

    Raises:  PlanError naming the quantity otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{name} must be a number of at least 0, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise PlanError(f"{name} must be a finite number of at least 0, not {value!r}")
    return value


def checked_text(value: object, name: str) -> str:
    """`value` if it is a str that is not blank.

    Raises:  PlanError naming the text otherwise.
    """
    if not isinstance(value, str) or not value.strip():
        raise PlanError(f"{name} must be a text that is not empty, not {value!r}")
    return value


def checked_ratio(value: object) -> float:
    """`value` if it is a cache ratio, that is a number in (0, 1].

    Raises:  PlanError otherwise.
    """
    legal = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    if not legal:
        raise PlanError(
            f"cache_ratio must lie in (0, 1], not {value!r}",
            hint="0.4 keeps two fifths of the audio branches as borders; 1.0 keeps them all.",
        )
    assert isinstance(value, int | float)
    return value


def decimal(ratio: float) -> Fraction:
    """The decimal that `ratio` prints as, exactly: what its author meant by it.

    >>> int(100 * 0.29), int(100 * decimal(0.29))
    (28, 29)
    """
    return Fraction(repr(float(ratio)))


def _bytes_in_text(text: str) -> int:
    found = _AMOUNT.fullmatch(text)
    unit = (found[2] or "B").upper() if found else ""
    if not found or unit not in _UNIT_BYTES:
        raise PlanError(f"{text!r} is not an amount of memory", hint=_ACCEPTED)
    return int(Fraction(found[1]) * _UNIT_BYTES[unit])
