"""``Held``: the tensors that stand in for a skipped region, newest last, stored as the plan says.

What goes in comes back in the dtype it was computed in, on the device it was computed on; in
between it may be bfloat16 or float8, and may lie in main memory. Bytes are those of
``synccache.planner.storage.stored_bytes``, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from synccache.errors import StateError
from synccache.planner.storage import AS_COMPUTED, Form, Place, Storage, stored_bytes

FLOAT8_MAX = 448.0  # the largest finite number of e4m3
_CHUNK = 1 << 22  # numbers converted at once: 16 MB of float32 beside the tensor, whatever its size


@dataclass(slots=True)
class _Stored:
    """One tensor in its stored form (numbers, and scales of float8), where that lies at present."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    on_device: tuple[Tensor, ...] = ()
    on_host: tuple[Tensor, ...] = ()
    event: torch.cuda.Event | None = None  # after it the copies that a prefetch began are there


@dataclass(slots=True)
class Held:
    """Tensors of one run of one region: newest last, with the step each was computed on."""

    storage: Storage = AS_COMPUTED
    steps: list[int] = field(default_factory=list)
    forecasts: frozenset[int] = frozenset()  # those of ``steps`` that were predicted, not computed
    _stored: list[_Stored] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._stored)

    def make_room(self, keep: int, *, recent: int = 0, forecast: bool = False) -> None:
        """Drops what goes when one more comes, so that at most ``keep`` remain with it.

        These are the newest ``recent`` tensors, forecasts among them, and the newest computed ones.
        """
        computed = [s not in self.forecasts for s in self.steps] + [not forecast]
        places = range(len(computed))
        newest = set(places[-recent:] if recent else ())
        kept = newest.union(
            [i for i in places if computed[i]][recent - keep :] if keep > recent else ()
        )
        gone = [i for i in places[:-1] if i not in kept]
        for i in reversed(gone):
            self.forecasts -= {self.steps[i]}
            del self._stored[i], self.steps[i]

    def push(
        self, step: int, tensor: Tensor, keep: int, *, recent: int = 0, forecast: bool = False
    ) -> None:
        """Stores a tensor that nobody else writes to, and drops others as ``make_room`` says."""
        self.make_room(keep, recent=recent, forecast=forecast)
        self.steps.append(step)
        stored = _Stored(tensor.shape, tensor.dtype, tensor.device)
        stored.on_device = _formed(tensor.detach(), self.storage.form)
        self._stored.append(stored)
        if forecast:
            self.forecasts |= {step}
        if self.storage.place is Place.HOST:
            self.park()

    def tensors(self) -> list[Tensor]:
        """Oldest first, in the compute dtype, on the device they came from. Not to be written to."""
        self.prefetch()
        found = [_restored(stored) for stored in self._stored]
        if self.storage.place is Place.HOST:
            self.park()
        return found

    def move(self, by: Tensor) -> None:
        """Adds ``by`` to every tensor: forecasts move with it, and their slopes stay as they are."""
        for stored, tensor in zip(self._stored, self.tensors()):
            stored.on_device = _formed(tensor + by, self.storage.form)
            stored.on_host, stored.event = (), None
        if self.storage.place is Place.HOST:
            self.park()

    def park(self) -> None:
        """Leaves what may lie in main memory there alone, so that its device memory is free."""
        if self.storage.place is Place.DEVICE:
            return
        for stored in self._stored:
            stored.on_host = stored.on_host or tuple(map(_to_host, stored.on_device))
            stored.on_device, stored.event = (), None

    def prefetch(self) -> None:
        """Begins to copy what lies in main memory alone back to its device.

        On a CUDA device the copies run beside what is computed now; ``tensors`` waits for them.
        """
        for stored in self._stored:
            if stored.on_device:
                continue
            if stored.device.type != "cuda":
                stored.on_device = tuple(p.to(stored.device, copy=True) for p in stored.on_host)
                continue
            beside = _side_stream(stored.device)
            with torch.cuda.stream(beside):
                stored.on_device = tuple(
                    p.to(stored.device, non_blocking=True) for p in stored.on_host
                )
                stored.event = beside.record_event()

    def parts(self, place: Place) -> Iterator[Tensor]:
        """Every tensor that is kept on the device, or in main memory, in its stored form."""
        for stored in self._stored:
            yield from stored.on_host if place is Place.HOST else stored.on_device

    def bytes_at(self, place: Place) -> int:
        """Bytes kept on the device or in main memory."""
        return sum(part.untyped_storage().nbytes() for part in self.parts(place))


def tensor_bytes(shape: tuple[int, ...], dtype: torch.dtype, form: Form) -> int:
    """Bytes of one held tensor of this shape, kept in ``form``; as a plan counts them."""
    elements = 1
    for size in shape:
        elements *= size
    vectors = elements // shape[-1] if shape and shape[-1] else 1
    return stored_bytes(form, elements=elements, vectors=vectors, itemsize=dtype.itemsize)


_PROBE_NUMBERS = 1 << 25  # 64 MB of bfloat16: long enough to time, short enough not to notice


@lru_cache
def measured(storage: Storage, device: torch.device) -> Storage:
    """The storage with the seconds that it loses on a CUDA device, timed there once."""
    if storage == AS_COMPUTED:
        return storage
    held = Held(storage)
    tensor = torch.ones(1, _PROBE_NUMBERS // 1024, 1024, dtype=torch.bfloat16, device=device)
    held.push(0, tensor, 1)
    held.park()
    held.tensors()  # warms up allocator and copy engine
    held.park()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    held.tensors()
    end.record()
    torch.cuda.synchronize(device)
    seconds = begin.elapsed_time(end) / 1000
    return replace(storage, seconds_per_gb=seconds * 10**9 / (tensor.numel() * tensor.itemsize))


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies run on beside the forward: one for each device."""
    return torch.cuda.Stream(device)


def _formed(tensor: Tensor, form: Form) -> tuple[Tensor, ...]:
    """The tensor in a form; in memory of its own, for a view would keep all that it views."""
    if form is not Form.AS_COMPUTED and not tensor.is_floating_point():
        raise StateError(
            f"a tensor of {str(tensor.dtype).removeprefix('torch.')} cannot be kept as "
            f"{form.value}.",
            hint="Leave its region as computed.",
        )
    if form in (Form.FLOAT8, Form.FLOAT8_TENSOR):
        return _to_float8(tensor, by_token=form is Form.FLOAT8)
    data = tensor.to(torch.bfloat16) if form is Form.BFLOAT16 else tensor
    if data.untyped_storage().nbytes() != data.numel() * data.itemsize:
        data = data.clone(memory_format=torch.contiguous_format)
    return (data,)


def _restored(stored: _Stored) -> Tensor:
    parts = stored.on_device
    if stored.event is not None:
        now = torch.cuda.current_stream(stored.device)
        now.wait_event(stored.event)
        for part in parts:
            part.record_stream(now)
        stored.event = None
    if len(parts) == 1:
        return parts[0].to(stored.dtype)
    return _from_float8(parts[0], parts[1], stored.dtype).view(stored.shape)


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in main memory; page-locked, and made without waiting, where that helps.

    It is read only by copies back, which the device runs after this one.
    """
    pinned = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    return host.copy_(tensor, non_blocking=pinned)


def _to_float8(tensor: Tensor, *, by_token: bool) -> tuple[Tensor, Tensor]:
    """(numbers [vectors, channels], float32 scales [vectors, 1] or [1, 1]): tensor / scale rounded.

    The largest magnitude of a vector (of the tensor) becomes the largest number of e4m3, so nothing
    overflows; a vector of zeros has scale 1.
    """
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    size = rows.abs().amax(dim=1, keepdim=True).float()
    size = size if by_token else size.amax(dim=0, keepdim=True)
    scale = torch.where(size > 0, size / FLOAT8_MAX, torch.ones_like(size))
    data = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device=tensor.device)
    for part in _chunks(rows):
        data[part] = (rows[part].float() / (scale[part] if by_token else scale)).to(data.dtype)
    return data, scale


def _from_float8(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(data.shape, dtype=dtype, device=data.device)
    for part in _chunks(data):
        out[part] = data[part].float() * (scale[part] if len(scale) == len(data) else scale)
    return out


def _chunks(rows: Tensor) -> list[slice]:
    count = max(1, _CHUNK // max(1, rows.shape[1]))
    return [slice(first, first + count) for first in range(0, rows.shape[0], count)]
