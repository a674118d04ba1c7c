"""Arguments and results as flat lists of tensors, and the signature that a capture is valid for."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
        return map_leaves(self.tree, lambda leaf: tensors[leaf.index])


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_named_result(value: Any) -> bool:
    """``torch.return_types``: what ``x.max(dim=1)`` gives."""
    return isinstance(value, tuple) and hasattr(value, "n_sequence_fields")


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, Leaf, Structure))


_ATOMS = frozenset((int, float, bool, str, complex, type(None), slice, torch.dtype, torch.device))
_NOT_HOLDERS = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)


def _holds_tensors(value: Any) -> bool:
    """Whether an object of any class (a namespace, a list of its own kind) carries tensors."""
    if isinstance(value, _NOT_HOLDERS) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    parts = [*vars(value).values(), *(value if isinstance(value, (list, tuple)) else ())]
    inner = [i for p in parts if type(p) in (list, tuple) for i in p]
    inner += [i for p in parts if type(p) is dict for i in p.values()]
    return any(isinstance(p, torch.Tensor) for p in (*parts, *inner))


def map_leaves(tree: Any, leaf: Callable[[Leaf], Any]) -> Any:
    """A structure's tree with something else for each leaf; records are built again."""
    if isinstance(tree, Leaf):
        return leaf(tree)
    if isinstance(tree, _Record):
        return tree.build({k: map_leaves(v, leaf) for k, v in tree.values.items()})
    if _is_namedtuple(tree):
        return type(tree)(*(map_leaves(v, leaf) for v in tree))
    if type(tree) in (list, tuple) or _is_named_result(tree):
        return type(tree)([map_leaves(v, leaf) for v in tree])
    if type(tree) is dict:
        return {k: map_leaves(v, leaf) for k, v in tree.items()}
    return tree


@dataclass(frozen=True, slots=True)
class _Record:
    """An object taken apart: a dataclass (diffusers' output classes are one, and a dict as well),
    a dict of its own kind, or any object that carries tensors as attributes."""

    kind: type
    values: dict[Any, Any]

    def build(self, values: dict[Any, Any]) -> Any:
        if dataclasses.is_dataclass(self.kind):
            return _rebuilt_dataclass(self.kind, values)
        if issubclass(self.kind, defaultdict):
            return self.kind(None, values)
        if issubclass(self.kind, dict):
            return self.kind(values)
        out = self.kind.__new__(self.kind)
        for name, value in values.items():
            object.__setattr__(out, name, value)
        return out


def _rebuilt_dataclass(kind: Any, values: dict[Any, Any]) -> Any:
    given = {f.name for f in dataclasses.fields(kind) if f.init}
    out = kind(**{k: v for k, v in values.items() if k in given})
    for name in values.keys() - given:
        object.__setattr__(out, name, values[name])
    return out


def flatten(value: Any) -> tuple[list[torch.Tensor], Structure, list[Path]]:
    """The tensors of nested lists, tuples, dicts, dataclasses and objects, with their paths."""
    tensors: list[torch.Tensor] = []
    paths: list[Path] = []
    return tensors, Structure(_walk(value, (), tensors, paths)), paths


def tensors_of(value: Any) -> list[torch.Tensor]:
    """``flatten(value)[0]``, quickly for what torch calls take and give."""
    if isinstance(value, torch.Tensor):
        return [value]
    if type(value) in _ATOMS:
        return []
    if type(value) in (tuple, list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return flatten(value)[0]


def _walk(item: Any, path: Path, tensors: list[torch.Tensor], paths: list[Path]) -> Any:
    # not a closure of `flatten`: a function that calls itself is a circle of references, which
    # would keep every tensor it saw until the garbage collector comes by
    if isinstance(item, torch.Tensor):
        tensors.append(item)
        paths.append(path)
        return Leaf(len(tensors) - 1)
    kind = type(item)
    if kind in _ATOMS:
        return item
    if kind is list or kind is tuple or _is_named_result(item):
        return kind([_walk(v, path + (str(i),), tensors, paths) for i, v in enumerate(item)])
    if kind is dict:
        return {k: _walk(v, path + (str(k),), tensors, paths) for k, v in item.items()}
    if _is_record(item):
        fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
        return _Record(kind, _walk_values(fields, path, tensors, paths))
    if _is_namedtuple(item):
        return kind(*(_walk(v, path + (str(i),), tensors, paths) for i, v in enumerate(item)))
    if isinstance(item, dict):
        return _Record(kind, _walk_values(item, path, tensors, paths))
    if _holds_tensors(item):
        return _Record(kind, _walk_values(vars(item), path, tensors, paths))
    return item


def _walk_values(
    values: dict[Any, Any], path: Path, tensors: list[torch.Tensor], paths: list[Path]
) -> dict[Any, Any]:
    return {k: _walk(v, path + (str(k),), tensors, paths) for k, v in values.items()}


def index_paths(tree: Any) -> list[tuple[Any, ...]]:
    """For each ``Leaf`` of a structure's tree, the indices and names that lead to it."""
    if isinstance(tree, Leaf):
        return [()]
    if isinstance(tree, (list, tuple)):
        return [(i, *rest) for i, v in enumerate(tree) for rest in index_paths(v)]
    if isinstance(tree, (dict, _Record)):
        values = tree.values if isinstance(tree, _Record) else tree
        return [(k, *rest) for k, v in values.items() for rest in index_paths(v)]
    return []


def bind(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments by parameter name, whether they were passed by position or by keyword."""
    return dict(_signature(forward).bind(*args, **kwargs).arguments)


_SIGNATURES: weakref.WeakKeyDictionary[Any, inspect.Signature] = weakref.WeakKeyDictionary()


def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """``inspect.signature``, remembered for what is a method of a class: it takes longer than a call."""
    function = getattr(forward, "__func__", None)
    if not isinstance(function, types.FunctionType) or not isinstance(forward, types.MethodType):
        return inspect.signature(forward)
    found = _SIGNATURES.get(function)
    if found is None:
        found = _SIGNATURES[function] = inspect.signature(forward)
    return found


def unbind(
    forward: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call that ``bind`` came from, in the signature's own order."""
    signature = _signature(forward)
    bound = inspect.BoundArguments(signature, arguments)
    return bound.args, bound.kwargs


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """An object compared by identity, and kept alive, so that its address is not another's later."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


_PLAIN = (numbers.Number, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)
_DEPTH = 6  # of objects inside objects whose plain attributes are compared by value


def _freeze(tree: Any, depth: int = 0) -> Any:
    if isinstance(tree, Leaf):
        return ("tensor", tree.index)
    if isinstance(tree, _Record):
        return (tree.kind, tuple((_freeze(k), _freeze(v, depth)) for k, v in tree.values.items()))
    if isinstance(tree, (list, tuple)):
        return (type(tree), tuple(_freeze(v, depth) for v in tree))
    if isinstance(tree, dict):
        return (type(tree), tuple((_freeze(k), _freeze(v, depth)) for k, v in tree.items()))
    if isinstance(tree, (set, frozenset)):
        return (type(tree), frozenset(_freeze(v, depth) for v in tree))
    if tree is None or isinstance(tree, _PLAIN):
        return (type(tree), tree)
    inside = getattr(tree, "__dict__", None)
    if (
        depth < _DEPTH
        and inside
        and isinstance(inside, dict)
        and not isinstance(tree, _NOT_HOLDERS)
    ):
        return (type(tree), _freeze(inside, depth + 1))
    return _Same(tree)


def signature_key(tensors: list[torch.Tensor], structure: Structure, model: int) -> Any:
    """What must be equal for a recorded graph to be valid: shapes, dtypes, devices, which inputs
    are one tensor, plain values, autocast, and the number that stands for the model's structure."""
    first: dict[int, int] = {}
    facts = tuple(
        (tuple(t.shape), t.dtype, str(t.device), first.setdefault(id(t), i))
        for i, t in enumerate(tensors)
    )
    kinds = sorted({t.device.type for t in tensors if not t.is_meta} | {"cpu"})
    autocast = tuple(
        (kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)
    )
    return facts, _freeze(structure.tree), autocast, model


def _plain_changes(old: Any, new: Any) -> list[str]:
    """What differs between frozen arguments that are no tensors, by parameter name."""
    before: dict[str, Any] = {key[1]: value for key, value in old[1]}
    now: dict[str, Any] = {key[1]: value for key, value in new[1]}
    found = []
    for name in {**before, **now}:
        pair = [side[name] for side in (before, now) if name in side]
        if len(pair) < 2 or pair[0] != pair[1]:
            plain = len(pair) == 2 and all(
                isinstance(v, tuple) and isinstance(v[1], (*_PLAIN, type(None))) for v in pair
            )
            values = f": {pair[0][1]!r} -> {pair[1][1]!r}" if plain else ""
            found.append(f"the plain (non-tensor) argument `{name}` has another value{values}")
    return found


def describe_key_change(old: Any, new: Any, names: list[str], model: str) -> str:
    """One phrase naming what differs between two signatures, in the user's argument names."""
    changes = [
        f"{names[i] if i < len(names) else f'input {i}'}: {list(a[0])} {a[1]} -> {list(b[0])} {b[1]}"
        for i, (a, b) in enumerate(zip(old[0], new[0]))
        if a != b
    ]
    if len(old[0]) != len(new[0]):
        changes.append(f"{len(old[0])} tensors -> {len(new[0])}")
    if not changes and old[1] != new[1]:
        changes += _plain_changes(old[1], new[1])
    if old[2] != new[2]:
        changes.append("autocast differs")
    if old[3] != new[3]:
        changes.append(f"the model itself was changed: {model}")
    return "; ".join(changes) or "nothing visible"
