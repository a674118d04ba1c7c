"""Containers among the arguments that a forward writes to: lists, dicts, objects.

    cache["k"] = k            recorded as a further result of the graph, and put into the caller's
                              own ``cache`` after every call

Plain values that are written are those of the recorded call: they can only depend on what the
signature holds, or on numbers that are guarded.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from synccache.errors import CaptureError
from synccache.fx.inputs import Structure, flatten, index_paths

if TYPE_CHECKING:
    from synccache.fx.capture import Captured

_DEPTH = 6
_MANY = 1000  # items of a list that are looked at
_NEVER = (
    nn.Module, Tensor, type, types.FunctionType, types.MethodType, types.ModuleType, str, bytes,
    torch.Generator, torch.device, torch.dtype,
)  # fmt: skip

Keys = tuple[Any, ...]


@dataclass(slots=True)
class _Seen:
    """A container and what it held."""

    path: Keys
    container: Any
    content: dict[Any, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What a container holds after the forward; tensors are further results of the graph."""

    path: Keys  # from the arguments by parameter name
    content: Structure
    first: int  # of those results


def _content(container: Any) -> dict[Any, Any] | None:
    """What a container holds, by key; None for what is no container that could be written to."""
    if isinstance(container, _NEVER):
        return None
    if isinstance(container, dict):
        return dict(container)
    if isinstance(container, (list, tuple)):
        return dict(enumerate(container)) if len(container) <= _MANY else None
    inside = getattr(container, "__dict__", None)
    return dict(inside) if isinstance(inside, dict) else None


def look_at(arguments: dict[str, Any]) -> list[_Seen]:
    """All containers in the arguments, outermost first, and what they hold now."""
    seen: set[int] = set()

    def walk(value: Any, path: Keys) -> Iterator[_Seen]:
        content = _content(value)
        if content is None or id(value) in seen or len(path) > _DEPTH:
            return
        seen.add(id(value))
        yield _Seen(path, value, content)
        for key, item in content.items():
            yield from walk(item, (*path, key))

    return [s for name, value in arguments.items() for s in walk(value, (name,))]


def _changed(seen: _Seen) -> bool:
    now = _content(seen.container)
    assert now is not None
    return list(now) != list(seen.content) or any(
        item is not now[key] and not (_plain(item) and item == now[key])
        for key, item in seen.content.items()
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, complex, str))


def restore(before: list[_Seen]) -> None:
    """Puts back what the containers held."""
    for seen in before:
        if _changed(seen):
            _fill(seen.container, seen.content)


def written(before: list[_Seen], where: str) -> tuple[list[Tensor], list[Written]]:
    """Tensors that containers hold newly or at another place, and how to put them there."""
    tensors: list[Tensor] = []
    found: list[Written] = []
    for seen in before:
        if not _changed(seen):
            continue
        if isinstance(seen.container, tuple):
            raise CaptureError(f"the forward changes a tuple in `{seen.path[0]}`.", where=where)
        new, content, _ = flatten(_content(seen.container))
        found.append(Written(seen.path, content, len(tensors)))
        tensors += new
    return tensors, found


def write(arguments: dict[str, Any], captured: Captured, outputs: Sequence[Tensor]) -> None:
    """Does to the containers of a call what the recorded forward did."""
    further = list(outputs)[len(index_paths(captured.result.tree)) :]
    for one in captured.written:
        container: Any = arguments
        for key in one.path:
            container = (_content(container) or {})[key]
        _fill(container, one.content.fill(further[one.first :]))


def _fill(container: Any, content: dict[Any, Any]) -> None:
    if isinstance(container, dict):
        container.clear()
        container.update(content)
    elif isinstance(container, list):
        container[:] = list(content.values())
    else:
        vars(container).clear()
        vars(container).update(content)
