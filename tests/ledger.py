"""A ledger of live tensor memory: how many bytes a forward holds at once, beside what it was given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Ledger(TorchDispatchMode):
    """Counts the memory of every tensor that an operation makes, until it is freed.

    ``peak`` is the most bytes that were alive after any operation. Memory in ``given`` (weights,
    inputs) is not counted, nor is what one operation needs inside itself.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = [t.untyped_storage() for t in given]  # kept: addresses are not used again
        self._known = {s._cdata for s in self._given}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    @property
    def live(self) -> int:
        """Bytes alive now."""
        for key in [k for k, (reference, _) in self._live.items() if reference.expired()]:
            del self._live[key]
        return sum(size for _, size in self._live.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.live)
        return out
