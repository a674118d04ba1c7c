"""Recording without weights: what is large carries only its shape, what is small stays real.

    with without_weights():
        model = Transformer(**config)          # 14B parameters in a few megabytes
    captured = fake_capture(model, args, kwargs)

Timesteps, grid sizes and tables keep their values, so that a forward may read them; reading a value
that has none is refused with the line that does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from synccache.errors import CaptureError
from synccache.fx import ops
from synccache.fx.capture import Captured, capture
from synccache.fx.estimate import estimate_seconds
from synccache.fx.frames import is_offloaded, user_line
from synccache.fx.inputs import flatten
from synccache.fx.tensors import Memories, tensors_written
from synccache.planner.devices import Device

SMALL_ELEMENTS = 2**16
"""Tensors with at least this many elements are not made, or not used, for real."""

LARGE_ELEMENTS = 2**22
"""Results of the forward's own real operations from here on are not computed."""

_READS = {*ops.READERS, "equal", "allclose", "numpy", "__array__", "data_ptr", "__dlpack__"}
_FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided"}


class _LargeOnMeta(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            getattr(func, "__name__", "") in _FACTORIES
            and _elements(args, kwargs) >= SMALL_ELEMENTS
        ):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _elements(args: Any, kwargs: Any) -> int:
    size = kwargs.get("size", args[0] if args else ())
    return int(math.prod(size if isinstance(size, (tuple, list)) else args))


@contextmanager
def without_weights() -> Iterator[None]:
    """Models built inside have their large tensors on the meta device: shapes, no memory.

    Small ones (fewer than SMALL_ELEMENTS elements) are real, so that a forward may read them.
    """
    with _LargeOnMeta():
        yield


def has_values(model: nn.Module, inputs: list[torch.Tensor]) -> bool:
    """Whether every parameter, buffer and input has values, so that the forward can run."""
    return not any(_is_empty(t) for t in (*_weights(model).values(), *inputs))


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, but none that an offloader brings when they are needed."""
    brought = tuple(f"{path}.".lstrip(".") for path, m in model.named_modules() if is_offloaded(m))
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in named if not name.startswith(brought)}


def _is_empty(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def refuse_to_run(model: nn.Module, inputs: list[torch.Tensor], names: list[str]) -> None:
    """Raises CaptureError for a call in which weights or inputs have no values."""
    owned = [*_weights(model).items(), *zip(names, inputs, strict=True)]
    empty = [name for name, tensor in owned if _is_empty(tensor)]
    if empty:
        raise CaptureError(
            f"{len(empty)} weights or inputs have a shape but no values (the first is `{empty[0]}`), "
            "so this call can be planned but not run.",
            where=type(model).__name__,
            hint="Load the weights, or use synccache.plan(...) to plan without them.",
        )


def fake_capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: Device,
    closed: frozenset[str] = frozenset(),
) -> Captured:  # fmt: skip
    """The recording of a forward in which large tensors are shapes only; nothing large is computed.

    Tensors without values, and all of at least SMALL_ELEMENTS elements, take no part but with their
    shape. ``seconds`` of nodes are estimated by the rates of ``device``.

    Raises:
        CaptureError: the forward reads the value of a tensor that has none.
    """
    with shapes_only(model, args, kwargs) as (fake_args, fake_kwargs), torch.no_grad():
        _, captured = capture(model, fake_args, fake_kwargs, closed)
    estimate_seconds(model, captured, device)
    source = f"estimated, not measured: a roofline of the published rates of {device}"
    seconds = sum(n.meta["seconds"] for n in captured.graph.nodes)
    return replace(captured, shapes_only=True, seconds=seconds, seconds_source=source)


@contextmanager
def shapes_only(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The call's arguments as shapes; until the end the model's large tensors are shapes as well."""
    inputs, structure, _ = flatten((args, kwargs))
    convert = _Converter([*inputs, *model.parameters(), *model.buffers()])
    places: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []
    for module in model.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for registry in registries:
            for name, value in registry.items():
                if isinstance(value, torch.Tensor) and (fake := convert(value)) is not value:
                    places.append((registry, name, value, fake))
    allowed = convert.mode.allow_non_fake_inputs
    convert.mode.allow_non_fake_inputs = True
    try:
        for registry, name, _, fake in places:
            registry[name] = fake
        given = structure.fill([convert(t) for t in inputs])
        unknown = _Unknown(convert.mode)
        with _Reads(unknown), unknown:
            yield given
    finally:
        for registry, name, value, _ in places:
            registry[name] = value
        convert.mode.allow_non_fake_inputs = allowed


class _Unknown(TorchDispatchMode):
    """Real tensors beside fake ones: which hold values that are not to be believed.

    A real tensor that a fake one was written into, and what is computed from it, is unknown. Real
    operations with large results give shapes only.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode = mode
        self._memories = Memories()
        self._unknown: set[int] = set()

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has values, and the right ones."""
        return not _is_empty(tensor) and self._memories.of(tensor) not in self._unknown

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if not any(isinstance(t, FakeTensor) for t in tensors) and self._large(func, args, kwargs):
            with self.mode:
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if not all(self.knows(t) for t in tensors):
            written = tensors_written(func, args, kwargs)
            made = [t for t in (*_tensors(out), *written) if not isinstance(t, FakeTensor)]
            self._unknown.update(self._memories.of(t) for t in made)
        return out

    def _large(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operation on real tensors alone would make a large new tensor."""
        sizes = [t.numel() for t in _tensors((args, kwargs))]
        if not sizes or max(sizes) ** 2 < LARGE_ELEMENTS:
            return False
        if func._schema.is_mutable or any(r.alias_info for r in func._schema.returns):
            return False
        with self.mode:
            probe = func(*args, **kwargs)
        return any(t.numel() >= LARGE_ELEMENTS for t in _tensors(probe))


class _Reads(TorchFunctionMode):
    """Refuses to read values that are not there; what a forward makes large is a shape, too."""

    def __init__(self, unknown: _Unknown) -> None:
        super().__init__()
        self.unknown = unknown

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _FACTORIES:
            for size in _tensors((args, kwargs)):
                if not self.unknown.knows(size):
                    raise _no_value(size, name)
        if name in _FACTORIES and _elements(args, kwargs) >= LARGE_ELEMENTS:
            args, kwargs = tree_map_only(torch.Tensor, int, (args, kwargs))
            with self.unknown.mode:
                return func(*args, **kwargs)
        if name in _READS:
            for tensor in _tensors((args, kwargs)):
                if not self.unknown.knows(tensor):
                    raise _no_value(tensor, name)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as problem:
            tensor = next(t for t in _tensors((args, kwargs)) if not self.unknown.knows(t))
            raise _no_value(tensor, name) from problem


def _no_value(tensor: torch.Tensor, name: str) -> CaptureError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return CaptureError(
        f"the forward needs the values of a tensor {list(tensor.shape)} {kind} ({name}, in "
        f"{user_line()}), but this recording has its shape only.",
        hint="Pass it as a real tensor if it is an argument; if the model holds it, build the model "
        "inside `with synccache.without_weights():`, which keeps small tensors real.",
    )


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in tree_iter(values) if isinstance(t, torch.Tensor)]


class _Converter:
    """Tensors as fake tensors of one mode; the same tensor gives the same fake."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        fakes = [t for t in tensors if isinstance(t, FakeTensor)]
        self.mode: FakeTensorMode = fakes[0].fake_mode if fakes else FakeTensorMode()
        real = [t.device for t in tensors if not _is_empty(t)]
        # models ask tensors for their device: one that computes, not "meta"
        self.device = fakes[0].device if fakes else real[0] if real else torch.device("cpu")
        self.made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) or not (tensor.is_meta or _is_large(tensor)):
            return tensor
        if id(tensor) not in self.made:
            self.made[id(tensor)] = (tensor, self._fake(tensor))
        return self.made[id(tensor)][1]

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        device = self.device if tensor.is_meta else tensor.device
        with self.mode:
            fake = torch.empty_strided(
                tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device
            )
        return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


def _is_large(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.numel() >= SMALL_ELEMENTS
