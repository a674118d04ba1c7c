"""The compiled forms of a model that are kept: by input signature, a bounded number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from synccache.errors import CaptureError
from synccache.fx.inputs import describe_key_change
from synccache.fx.ops import ValueChanged
from synccache.fx.variant import Variant

MAX_SIGNATURES = 8  # a denoising loop has one or two
MAX_VALUES = 4  # recordings of one signature that read different numbers from its tensors


class Variants:
    """Signature -> recordings; more than one where the forward reads numbers from tensors."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.by_key: OrderedDict[Hashable, list[Variant]] = OrderedDict()
        self.last: Variant | None = None
        self.new_in_a_row = 0

    def find(self, key: Hashable) -> list[Variant]:
        """The recordings of a signature, an empty list if there are none."""
        found = self.by_key.get(key, [])
        if found:
            self.by_key.move_to_end(key)
            self.new_in_a_row = 0
        return found

    def add(self, key: Hashable, names: list[str], variant: Variant) -> None:
        """Keeps a recording, and drops the signature used longest ago if there are too many.

        Raises:
            CaptureError: no signature came twice in a row of MAX_SIGNATURES calls.
        """
        if key not in self.by_key:
            self.new_in_a_row += bool(self.by_key)
            if self.new_in_a_row >= MAX_SIGNATURES:
                change = describe_key_change(next(reversed(self.by_key)), key, names)
                raise CaptureError(
                    f"the last {self.new_in_a_row} calls all had a signature of their own; this one "
                    f"differs from the one before in: {change}.",
                    where=self.model_name,
                    hint="Pass what changes every step as a tensor, not as a Python number.",
                )
        self.by_key.setdefault(key, []).append(variant)
        self.last = variant
        while len(self.by_key) > MAX_SIGNATURES:
            self.by_key.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Drops the recordings of a signature."""
        del self.by_key[key]

    def check_room(self, key: Hashable, change: ValueChanged) -> None:
        """Raises CaptureError where a number changes so often that recording again cannot help."""
        if len(self.by_key.get(key, [])) >= MAX_VALUES:
            raise CaptureError(
                f"the forward reads a number from a tensor, and it changes from call to call: "
                f"{change} (after {MAX_VALUES} recordings).",
                where=self.model_name,
                hint="Put the code that reads it into a sub-module; synccache then calls it whole.",
            ) from change

    def replace(self, old: Variant, new: Variant) -> None:
        """Puts a variant planned anew in the place of the old one."""
        for found in self.by_key.values():
            found[:] = [new if v is old else v for v in found]
        self.last = new
