"""Functions that recorded and emitted graphs call, beside torch's own.

They make explicit what Python leaves implicit: a write is a value, a view taken before a write is
read after it, and a number read from a tensor is checked before it is believed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


class ValueChanged(Exception):
    """A number or shape that the recorded forward read from a tensor is different in this call."""

    def __init__(self, reader: str, expected: Any, found: Any) -> None:
        super().__init__(f"{reader} read {found!r}, the recorded forward read {expected!r}")
        self.reader, self.expected, self.found = reader, expected, found


def setitem(target: Tensor, index: Any, value: Any) -> Tensor:
    """``target[index] = value``; returns target, so that the write has a name."""
    target[index] = value
    return target


def after(view: Tensor, write: Tensor) -> Tensor:
    """``view`` as it is once ``write`` has happened to the memory they share."""
    return view


READERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__index__": lambda t: t.__index__(),
    "__complex__": complex,
    "is_nonzero": bool,
}


def check_value(tensor: Tensor, reader: str, expected: Any) -> Tensor:
    """``tensor``, if its value still reads as it did when the forward was recorded."""
    found = READERS[reader](tensor)
    if found != expected:
        raise ValueChanged(reader, expected, found)
    return tensor


COMPARISONS = ("equal", "allclose")
LAYOUTS = ("stride", "is_contiguous", "storage_offset", "dim_order")


def check_layout(tensor: Tensor, question: str, expected: Any, *args: Any) -> Tensor:
    """``tensor``, if it lies in memory as it did when the forward asked and was recorded."""
    found = getattr(tensor, question)(*args)
    if found != expected:
        raise ValueChanged(question, expected, found)
    return tensor


def check_same(left: Tensor, right: Any, reader: str, expected: bool) -> bool:
    """``torch.equal`` or ``torch.allclose``, if it answers as it did when recorded."""
    found = bool(getattr(torch, reader)(left, right))
    if found != expected:
        raise ValueChanged(reader, expected, found)
    return found


def check_shape(tensor: Tensor, expected: tuple[int, ...]) -> Tensor:
    """``tensor``, if an operation whose output shape depends on values still gives this shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueChanged("shape", tuple(expected), tuple(tensor.shape))
    return tensor


def item(values: Any, index: int) -> Any:
    """One of several results of a call."""
    return values[index]


def field(record: Any, name: str) -> Any:
    """One named result of a call that returns a dict or a dataclass."""
    return record[name] if isinstance(record, dict) else getattr(record, name)


def enter_autocast(kind: str, dtype: torch.dtype, enabled: bool) -> Any:
    """Begins an autocast region that the recorded forward had."""
    context = torch.autocast(kind, dtype=dtype, enabled=enabled)
    context.__enter__()
    return context


def exit_autocast(context: Any) -> None:
    """Ends what ``enter_autocast`` began."""
    context.__exit__(None, None, None)
