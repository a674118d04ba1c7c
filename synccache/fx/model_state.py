"""Whether the model is still the one that was recorded, and whether its weights are still the same.

A recording holds what Python decided: which modules were called, what their attributes said, which
dtype the weights had. ``ModelState`` compares all of that with the live model before every call.
Another *structure* (LoRA loaded, a processor set, a scale changed, ``.to(bfloat16)``) is another
recording; another state of the *weights* only means that nothing computed from them is kept. Class
attributes, globals and closures that a forward refers to count as well (``outside``).

Modules that are called whole are not looked into: they run as they are. Attributes that the forward
itself writes are its own affair (``carried`` has judged them).
"""

from __future__ import annotations

import operator
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from synccache.fx.frames import is_leaf, is_offloaded
from synccache.fx.outside import outside, shallow
from synccache.fx.tensors import storage_key, version_of

_OWN = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
_SINGLE = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, torch.Generator)
_HOOKS = ("_hf_hook", "_diffusers_hook")  # accelerate's and diffusers': busy inside, so not read
_DEPTH = 4  # of containers and objects inside an attribute
_MANY = 1000  # items of a container that are looked at
_REMEMBERED = 16  # structures that are recognised when the model returns to them


class _Thing:
    """An object compared by identity; not kept alive where a weak reference can be made."""

    __slots__ = ("_address", "_get")

    def __init__(self, value: Any) -> None:
        self._address = id(value)
        self._get: Callable[[], Any]
        if isinstance(value, Tensor):
            self._get = TensorWeakRef(value)
            return
        try:
            self._get = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._get()
        return isinstance(other, _Thing) and mine is not None and mine is other._get()

    def __hash__(self) -> int:
        return self._address


@dataclass(slots=True)
class _Watched:
    """Where to look, and what was seen there: flat lists, so that looking costs microseconds."""

    sized: list[Any] = field(default_factory=list)  # dicts and lists: their lengths
    attributes: list[tuple[Callable[[Any], Any], Any]] = field(default_factory=list)
    inner: list[tuple[str, Any]] = field(default_factory=list)  # containers and objects, by name
    children: list[Any] = field(default_factory=list)  # registries of sub-modules
    registries: list[tuple[Any, str]] = field(default_factory=list)  # parameters, buffers; prefix
    loose: list[tuple[Any, str, str]] = field(default_factory=list)  # one tensor: where, name, path
    modules: list[nn.Module] = field(default_factory=list)  # opened ones
    outside: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)
    known: set[Any] = field(default_factory=set)  # classes and functions that were looked at


class ModelState:
    """Numbers that change when the model does: ``structure`` and ``weights``."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._written: set[str] = set()  # attributes and tensors that the forward itself writes
        self._closed: set[str] = set()
        self._known: OrderedDict[Any, int] = OrderedDict()
        self._structures = 0
        self.structure = 0
        self.weights = 0
        self.change = ""  # what the last change of structure was, in attribute names
        self._marks: dict[str, Any] = {}
        self._tensors: list[weakref.ref[Tensor]] = []
        self._stamps: tuple[list[Any], list[Any]] = ([], [])
        self._look()

    def settle(self, closed: Iterable[str]) -> None:
        """After a recorded forward: what changed since ``look()`` the forward changed itself, and
        modules called whole are not looked into any more."""
        stamps = dict(zip(_names(self._watched), zip(*self._stamps)))
        watched, marks = self._survey()
        fresh = {n for n in marks if n[-1] not in "*)" and marks[n] != self._marks.get(n)}
        for name, stamp in zip(_names(watched), zip(*_stamps(_tensors(watched)))):
            if name in stamps and stamps[name] != stamp:
                fresh.add(name)
        if fresh <= self._written and set(closed) <= self._closed:
            return
        self._written |= fresh
        self._closed |= set(closed)
        structure, weights = self.structure, self.weights
        self._known.clear()
        self._look()
        self.structure, self.weights = structure, weights
        self._known = OrderedDict({_frozen(self._marks): structure})

    def look(self) -> None:
        """Brings ``structure`` and ``weights`` up to date."""
        if not self._same_structure() or not self._same_weights():
            self._look()

    # ---- the quick way

    def _same_structure(self) -> bool:
        watched = self._watched
        if list(map(len, watched.sized)) != self._lengths:
            return False
        if list(map(type, watched.modules)) != self._classes:
            return False
        try:
            now = _values(watched)
        except KeyError:
            return False
        return (
            len(now) == len(self._values)
            and all(map(operator.is_, now, self._values))
            and [_mark(value) for _, value in watched.inner] == self._inner
            and [shallow(get()) for _, get in watched.outside] == self._outside
        )

    def _same_weights(self) -> bool:
        tensors = _tensors(self._watched)
        return (
            len(tensors) == len(self._tensors)
            and all(map(operator.is_, tensors, [r() for r in self._tensors]))
            and _stamps(tensors) == self._stamps
        )

    # ---- the thorough way

    def _look(self) -> None:
        watched, marks = self._survey()
        if marks != self._marks:
            self.change = _difference(self._marks, marks)
            self._marks = marks
            key = _frozen(marks)
            if key not in self._known:
                self._structures += 1
                self._known[key] = self._structures
            self._known.move_to_end(key)
            self.structure = self._known[key]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._watched = watched
        self._lengths = list(map(len, watched.sized))
        self._classes = list(map(type, watched.modules))
        self._values = _values(watched)
        self._inner = [_mark(value) for _, value in watched.inner]
        self._outside = [shallow(get()) for _, get in watched.outside]
        tensors = _tensors(watched)
        stamps = _stamps(tensors)
        old = self._tensors
        same = len(old) == len(tensors) and all(r() is t for r, t in zip(old, tensors))
        if not same or stamps != self._stamps:
            self.weights += 1
        self._tensors, self._stamps = [weakref.ref(t) for t in tensors], stamps

    def _survey(self) -> tuple[_Watched, dict[str, Any]]:
        watched = _Watched()
        marks: dict[str, Any] = {}
        for path, module, opened in self._walk():
            if not is_offloaded(module):
                self._watch_weights(path, module, watched, marks)
            if opened:
                self._watch(path, module, watched, marks)
        return watched, marks

    def _walk(self) -> Iterator[tuple[str, nn.Module, bool]]:
        """Path, module, and whether it is opened; nothing below a module that hides its weights.

        Modules kept in a plain list or object are found too; their paths have a ``>`` in them.
        """
        seen: set[int] = set()

        def visit(path: str, module: nn.Module, opened: bool) -> Iterator[Any]:
            if id(module) in seen:
                return
            seen.add(id(module))
            opened = opened and (not path or path not in self._closed and not is_leaf(module))
            yield path, module, opened
            if is_offloaded(module) and not opened:
                return
            prefix = f"{path}." if path else ""
            for name, child in module._modules.items():
                if child is not None:
                    yield from visit(prefix + name, child, opened)
            for name, value in vars(module).items() if opened else ():
                if name not in _OWN and name not in _HOOKS:
                    for k, child in enumerate(_modules_in(value)):
                        hidden.append((f"{prefix}{name}>{k}", child))

        hidden: list[tuple[str, nn.Module]] = []
        yield from visit("", self._model, True)
        while hidden:
            yield from visit(*hidden.pop(), True)

    def _watch_weights(
        self, path: str, module: nn.Module, watched: _Watched, marks: dict[str, Any]
    ) -> None:
        prefix = f"{path}." if path else ""
        watched.sized += [module._parameters, module._buffers]
        found = [
            (r, name, t) for r in (module._parameters, module._buffers) for name, t in r.items()
        ]
        # a recording refers to the tensors of hidden modules themselves, to others by their path
        kind = _Thing if ">" in path else _facts
        marks[f"{path}()"] = tuple((name, kind(t)) for _, name, t in found)
        if any(prefix + name in self._written for _, name, _ in found):
            watched.loose += [
                (r, n, prefix + n) for r, n, _ in found if prefix + n not in self._written
            ]
            return
        both = (module._parameters, module._buffers)
        watched.registries += [(registry, prefix) for registry in both if registry]

    def _watch(
        self, path: str, module: nn.Module, watched: _Watched, marks: dict[str, Any]
    ) -> None:
        space = vars(module)
        prefix = f"{path}." if path else ""
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        watched.modules.append(module)
        watched.sized += [space, module._modules, *hooks]
        watched.children.append(module._modules)
        names = [n for n in space if n not in _OWN and prefix + n not in self._written]
        plain = []
        for name in names:
            value = space[name]
            if isinstance(value, Tensor):
                watched.loose.append((space, name, prefix + name))
                marks[prefix + name] = _facts(value)
                continue
            plain.append(name)
            if name in _HOOKS:
                marks[prefix + name] = _Thing(value)
                continue
            marks[prefix + name] = mark = _mark(value)
            if isinstance(mark, _Thing) and isinstance(getattr(value, "__dict__", None), dict):
                watched.sized.append(vars(value))  # nothing inside that could change
            elif not isinstance(value, (*_PLAIN, *_SINGLE)) and not _fixed(value):
                watched.inner.append((prefix + name, value))
        watched.attributes.append((operator.itemgetter("_modules", "_parameters", *plain), space))
        for name, get in outside(module, watched.known):
            if name not in self._written:
                watched.outside.append((name, get))
                marks[name] = shallow(get())
        marks[f"{prefix}*"] = (
            type(module),
            tuple((name, _Thing(child)) for name, child in module._modules.items()),
            tuple(map(len, hooks)),
        )


def _values(watched: _Watched) -> list[Any]:
    found = list(chain.from_iterable(get(space) for get, space in watched.attributes))
    return found + [child for registry in watched.children for child in registry.values()]


def _tensors(watched: _Watched) -> list[Tensor]:
    found = [t for registry, _ in watched.registries for t in registry.values() if t is not None]
    return found + [t for space, name, _ in watched.loose if (t := space.get(name)) is not None]


def _names(watched: _Watched) -> list[str]:
    """The paths of ``_tensors``, in its order."""
    found = [
        p + n for registry, p in watched.registries for n, t in registry.items() if t is not None
    ]
    return found + [path for space, name, path in watched.loose if space.get(name) is not None]


def _fixed(value: Any) -> bool:
    """Whether a value says the same as long as it is the same object."""
    return isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)


def _modules_in(value: Any, depth: int = 0) -> Iterator[nn.Module]:
    """Modules inside plain containers and objects, where torch does not look for them."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (dict, list, tuple)) and depth < _DEPTH:
        for item in list(value.values() if isinstance(value, dict) else value)[:_MANY]:
            if not isinstance(item, (*_PLAIN, Tensor)):
                yield from _modules_in(item, depth + 1)
    elif not isinstance(value, (*_PLAIN, *_SINGLE, Tensor)) and depth < _DEPTH:
        inside = getattr(value, "__dict__", None)
        if isinstance(inside, dict):
            yield from _modules_in(inside, depth + 1)


def _stamps(tensors: list[Tensor]) -> tuple[list[Any], list[Any]]:
    """For each tensor what changes when it is written to or given other memory (not by writes
    through ``.data``, which torch does not count): its version, and where it lies."""
    try:
        return [t._version for t in tensors], [t.data_ptr() for t in tensors]
    except RuntimeError:  # inference tensors count no versions, subclasses lie in several places
        return [version_of(t) for t in tensors], [_place(t) for t in tensors]


def _place(tensor: Tensor) -> Any:
    parts = getattr(tensor, "__tensor_flatten__", None)
    if parts is None:
        return storage_key(tensor)
    inner = [getattr(tensor, name) for name in parts()[0]]
    return [(version_of(t), _place(t)) for t in inner]


def _facts(tensor: Tensor | None) -> Any:
    """What a recording may have taken from a tensor without reading its values."""
    if tensor is None:
        return None
    return type(tensor), tuple(tensor.shape), tensor.dtype, str(tensor.device)


def _mark(value: Any, depth: int = 0) -> Any:
    """A value in a form that is equal while the value says the same."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if depth < _DEPTH and not isinstance(value, (nn.Module, Tensor, *_SINGLE)):
        if isinstance(value, dict):
            items = list(value.items())[:_MANY]
            return (len(value), tuple((str(k), _mark(v, depth + 1)) for k, v in items))
        if isinstance(value, (list, tuple)):
            return (len(value), tuple(_mark(v, depth + 1) for v in value[:_MANY]))
        inside = getattr(value, "__dict__", None)
        if isinstance(inside, dict) and inside:
            return (_Thing(value), _mark(inside, depth + 1))
    return _Thing(value)


def _frozen(marks: dict[str, Any]) -> Any:
    return tuple(marks.items())


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Names of what differs, three at most."""
    names = [n for n in {**old, **new} if old.get(n) != new.get(n)]
    shown = [
        f"parameters of `{n[:-2] or 'the model'}`" if n.endswith("()")
        else f"sub-modules or hooks of `{n[:-2].rstrip('.') or 'the model'}`" if n.endswith("*")
        else f"`{n}`"
        for n in names[:3]
    ]  # fmt: skip
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
