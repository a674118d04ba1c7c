"""Arguments and results as flat lists of tensors, and the signature that a capture is valid for."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, Callable

import torch

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor's place in a flattened structure."""

    index: int


@dataclass(frozen=True, slots=True)
class Structure:
    """Containers and plain values with a ``Leaf`` where each tensor stood."""

    tree: Any

    def fill(self, tensors: list[Any]) -> Any:
        """The structure with the tensors put back; containers are new, plain values the same."""
        return _map(self.tree, lambda leaf: tensors[leaf.index])


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, Leaf))


def _map(tree: Any, leaf: Callable[[Leaf], Any]) -> Any:
    if isinstance(tree, Leaf):
        return leaf(tree)
    if isinstance(tree, _Record):
        return tree.build({k: _map(v, leaf) for k, v in tree.values.items()})
    if _is_namedtuple(tree):
        return type(tree)(*(_map(v, leaf) for v in tree))
    if type(tree) in (list, tuple):
        return type(tree)(_map(v, leaf) for v in tree)
    if isinstance(tree, dict):
        return {k: _map(v, leaf) for k, v in tree.items()}
    return tree


@dataclass(frozen=True, slots=True)
class _Record:
    """A dataclass instance taken apart; diffusers' output classes are both dataclass and dict."""

    kind: type
    values: dict[str, Any]

    def build(self, values: dict[str, Any]) -> Any:
        return self.kind(**values)


def flatten(value: Any) -> tuple[list[torch.Tensor], Structure, list[Path]]:
    """The tensors of nested lists, tuples, dicts and dataclasses, in order, with their paths."""
    tensors: list[torch.Tensor] = []
    paths: list[Path] = []

    def walk(item: Any, path: Path) -> Any:
        if isinstance(item, torch.Tensor):
            tensors.append(item)
            paths.append(path)
            return Leaf(len(tensors) - 1)
        if _is_record(item):
            values = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
            return _Record(type(item), {k: walk(v, path + (k,)) for k, v in values.items()})
        if _is_namedtuple(item):
            return type(item)(*(walk(v, path + (str(i),)) for i, v in enumerate(item)))
        if type(item) in (list, tuple):
            return type(item)(walk(v, path + (str(i),)) for i, v in enumerate(item))
        if isinstance(item, dict):
            return {k: walk(v, path + (str(k),)) for k, v in item.items()}
        return item

    return tensors, Structure(walk(value, ())), paths


def bind(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name, whether they were passed by position or by keyword."""
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)


def unbind(forward: Callable[..., Any], arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call that ``bind`` came from, in the signature's own order."""
    signature = inspect.signature(forward)
    bound = inspect.BoundArguments(signature, arguments)  # type: ignore[arg-type]
    return bound.args, bound.kwargs


def _freeze(tree: Any) -> Any:
    if isinstance(tree, Leaf):
        return ("tensor", tree.index)
    if isinstance(tree, _Record):
        return (tree.kind, tuple((k, _freeze(v)) for k, v in tree.values.items()))
    if isinstance(tree, (list, tuple)):
        return (type(tree), tuple(_freeze(v) for v in tree))
    if isinstance(tree, dict):
        return (dict, tuple((str(k), _freeze(v)) for k, v in tree.items()))
    if tree is None or isinstance(tree, (int, float, complex, str, bytes, torch.dtype, torch.device)):
        return (type(tree), tree)
    return ("object", id(tree))


def signature_key(tensors: list[torch.Tensor], structure: Structure, training: bool) -> Any:
    """What must be equal for a recorded graph to be valid: shapes, dtypes, devices, which inputs
    are one tensor, plain values, autocast and train/eval."""
    first: dict[int, int] = {}
    facts = tuple(
        (tuple(t.shape), t.dtype, str(t.device), first.setdefault(id(t), i))
        for i, t in enumerate(tensors)
    )
    kinds = sorted({t.device.type for t in tensors} | {"cpu"})
    autocast = tuple(
        (kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)
    )
    return facts, _freeze(structure.tree), autocast, training


def describe_key_change(old: Any, new: Any, names: list[str]) -> str:
    """One phrase naming what differs between two signatures, in the user's argument names."""
    changes = [
        f"{names[i] if i < len(names) else f'input {i}'}: {list(a[0])} {a[1]} -> {list(b[0])} {b[1]}"
        for i, (a, b) in enumerate(zip(old[0], new[0]))
        if a != b
    ]
    if len(old[0]) != len(new[0]):
        changes.append(f"{len(old[0])} tensors -> {len(new[0])}")
    if not changes and old[1] != new[1]:
        changes.append("a plain (non-tensor) argument has another value")
    if old[2] != new[2]:
        changes.append("autocast differs")
    if old[3] != new[3]:
        changes.append("train/eval differs")
    return "; ".join(changes) or "nothing visible"
