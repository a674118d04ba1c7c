"""Which tensors are older than a recording: the only ones that it may take for constants."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import compress

import torch
from torch.utils.weak import TensorWeakRef

_one_recording = threading.RLock()


@contextmanager
def ages() -> Iterator[Callable[[torch.Tensor], bool]]:
    """Gives a function that tells whether a tensor existed before the ``with`` block began.

    All that exists is moved to where the garbage collector does not look (``gc.freeze``); what it
    sees later is younger. That also spares a walk through the whole process, which the many objects
    of a recording would set off and which takes longer than the recording.
    """
    with _one_recording:
        spared = gc.get_freeze_count() == 0
        # else somebody has frozen objects for a reason of their own: they must stay so
        alive = {} if spared else _tensors_alive()
        if spared:
            gc.freeze()

        def born_before(tensor: torch.Tensor) -> bool:
            reference = alive.get(id(tensor))
            if reference is not None and reference() is tensor:
                return True
            return gc.is_tracked(tensor) and all(o is not tensor for o in gc.get_objects())

        try:
            yield born_before
        finally:
            if spared:
                gc.unfreeze()


def _tensors_alive() -> dict[int, TensorWeakRef]:
    things = gc.get_objects()  # hundreds of thousands: looked through without a Python loop
    types = list(map(type, things))
    kinds = {k for k in set(types) if issubclass(k, torch.Tensor)}
    tensors = compress(things, map(kinds.__contains__, types))
    return {id(tensor): TensorWeakRef(tensor) for tensor in tensors}
