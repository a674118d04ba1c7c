"""Tensors and the memory they live in: identities, writes, and what a model owns."""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def storage_key(tensor: torch.Tensor) -> int | None:
    """Identity of the memory a tensor lives in, while it lives; None where it has none (sparse)."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the whole memory that a tensor is a view of."""
    try:
        return tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return tensor.numel() * tensor.element_size()


def version_of(tensor: torch.Tensor) -> int | None:
    """Torch's count of writes to a tensor; inference tensors have none."""
    return None if tensor.is_inference() else tensor._version


class Memories:
    """Numbers for pieces of memory; a number is never given again to memory made later.

    A weak reference is held to each, which frees the bytes but keeps the address from reuse.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[StorageWeakRef, int]] = {}
        self._next = itertools.count()

    def of(self, tensor: torch.Tensor) -> int:
        key = storage_key(tensor)
        if key is None:
            return -1
        found = self._numbers.get(key)
        if found is None:
            found = StorageWeakRef(tensor.untyped_storage()), next(self._next)
            self._numbers[key] = found
        return found[1]

    def number(self, key: int) -> int | None:
        """The number of memory already seen, by its storage key."""
        found = self._numbers.get(key)
        return None if found is None else found[1]


def facts(tensor: torch.Tensor, memories: Memories) -> dict[str, Any]:
    """What a node remembers of its tensor."""
    return {
        "shape": tuple(tensor.shape), "dtype": tensor.dtype, "device": tensor.device,
        "storage": memories.of(tensor), "storage_bytes": storage_bytes(tensor),
    }  # fmt: skip


class Lifetime(NamedTuple):
    """A piece of memory: its bytes, how many were born when it died, the shape it was made for."""

    size: int
    death: int
    shape: tuple[int, ...] = ()


class Lifetimes:
    """When each piece of memory that a forward made was born and died, counted in births.

    What Python keeps alive longer than its last use counts as long as it is kept. Memory that a
    kernel takes and gives back inside one operation is not seen.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []  # bytes, in order of birth
        self.shapes: list[tuple[int, ...]] = []
        self.deaths: list[int] = []  # how many were born by then; UNENDED while it lives
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def born(self, fresh: tuple[bool, ...], out: Any) -> None:
        """Notes the memory of an operation's results, those that are no views and no operands."""
        results = out if isinstance(out, (tuple, list)) else (out,)
        for result, new in zip(results, fresh, strict=False):
            if new and isinstance(result, torch.Tensor) and storage_key(result) is not None:
                self._enter(result.untyped_storage(), result.shape)

    def _enter(self, storage: torch.UntypedStorage, shape: torch.Size) -> None:
        key, index = id(storage), len(self.sizes)
        if key in self._alive:
            return

        def dies(_: object) -> None:
            self.deaths[index] = len(self.sizes)
            self._alive.pop(key, None)

        self.sizes.append(storage.nbytes())
        self.shapes.append(tuple(shape))
        self.deaths.append(UNENDED)
        self._alive[key] = weakref.ref(storage, dies), index

    def birth(self, tensor: torch.Tensor) -> int | None:
        """The place in order of birth of the memory that a tensor lies in; None: not made here."""
        if storage_key(tensor) is None:
            return None
        found = self._alive.get(id(tensor.untyped_storage()))
        return None if found is None else found[1]

    def stop(self) -> tuple[Lifetime, ...]:
        """Everything born, in order; what lives now has no end."""
        self._alive.clear()  # without their references the callbacks are gone
        return tuple(map(Lifetime, self.sizes, self.deaths, self.shapes))


UNENDED = 2**62


def peak_bytes(lifetimes: Iterable[Lifetime]) -> int:
    """The most bytes alive at once, of memory in order of birth."""
    freed: dict[int, int] = defaultdict(int)
    alive = peak = 0
    for index, (size, death, _) in enumerate(lifetimes):
        alive += size - freed.pop(index, 0)
        freed[death] += size
        peak = max(peak, alive)
    return peak


def kept_until(
    lifetimes: Sequence[Lifetime], longer: Iterable[tuple[int, int]]
) -> tuple[Lifetime, ...]:
    """Where memory lives longer: pairs of a birth, and a later birth that it still sees."""
    found = list(lifetimes)
    for birth, seen in longer:
        found[birth] = found[birth]._replace(death=max(found[birth].death, seen + 1))
    return tuple(found)


class Watch(TorchDispatchMode):
    """Sees the ATen operations below every recorded call: their FLOPs, what they write to,
    and how long what they make lives.

    Attention on CPU is counted too (torch's own table has it as 0). Writes are known by storage:
    inference tensors and ``.data`` count no versions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.written: set[int] = set()
        self.lifetimes = Lifetimes()
        self._about: dict[Any, tuple[Any, tuple[tuple[int, str], ...], tuple[bool, ...]]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler for seconds, to hide this mode from it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # composite operations arrive whole there
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        about = self._about.get(func)
        if about is None:
            about = _flops_of(func), _written_arguments(func), _fresh_results(func)
            self._about[func] = about
        count, writing, fresh = about
        self.lifetimes.born(fresh, out)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in _at(writing, args, kwargs):
            key = storage_key(tensor)
            if key is not None:
                self.written.add(key)
        return out


def _fresh_results(func: Any) -> tuple[bool, ...]:
    """Of each result of an ATen operation, whether it is new: no view of an operand, none written."""
    return tuple(r.alias_info is None for r in func._schema.returns)


def tensors_written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The operands that an ATen operation writes to, by its schema."""
    return _at(_written_arguments(func), args, kwargs)


def _at(places: tuple[tuple[int, str], ...], args: Any, kwargs: Any) -> list[torch.Tensor]:
    found: list[Any] = []
    for position, name in places:
        target = args[position] if position < len(args) else kwargs.get(name)
        found += target if isinstance(target, (list, tuple)) else [target]
    return [t for t in found if isinstance(t, torch.Tensor)]


def watch() -> Watch:
    """A new ``Watch``, hidden from torch's compiler where that is in use."""
    return _HiddenWatch() if "torch._dynamo" in sys.modules else Watch()


class _HiddenWatch(Watch):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _flops_of(func: Any) -> Any:
    packet = func._overloadpacket
    if packet in flop_registry:
        count = flop_registry[packet]
        return _of_shapes(unwrap(count)) if hasattr(count, "__wrapped__") else count
    name = packet.__name__
    attention = "scaled_dot_product" in name and "backward" not in name
    return _attention_flops if attention else None


def _of_shapes(count: Any) -> Any:
    """Torch's own function of shapes, without its search for tensors in nested arguments."""

    def of_tensors(*args: Any, out_val: Any, **kwargs: Any) -> int:
        shapes = [a.shape if isinstance(a, torch.Tensor) else a for a in args]
        out = (
            out_val.shape if isinstance(out_val, torch.Tensor) else tuple(t.shape for t in out_val)
        )
        named = {k: v.shape if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        return int(count(*shapes, out_shape=out, **named))

    return of_tensors


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(*(_four_dims(t.shape) for t in (q, k, v)))


@cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    schema = func._schema
    return tuple(
        (i, a.name) for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ) if schema.is_mutable else ()  # fmt: skip


def live_tensors(model: nn.Module) -> dict[int, str]:
    """Parameters, buffers and plain tensor attributes, by identity, with the path that reads them."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        prefix = f"model.{path}." if path else "model."
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(id(value), prefix + name)
    return found


def _four_dims(shape: torch.Size) -> tuple[int, ...]:
    """A shape [..., tokens, channels] as [batch, heads, tokens, channels]."""
    *leading, tokens, channels = shape
    return (1, math.prod(leading), tokens, channels) if len(leading) != 2 else tuple(shape)
