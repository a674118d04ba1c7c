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
        self.reasons: list[str] = []  # why forwards were recorded after the first

    def find(self, key: Hashable) -> list[Variant]:
        """The recordings of a signature, an empty list if there are none."""
        found = self.by_key.get(key, [])
        if found:
            self.by_key.move_to_end(key)
            self.new_in_a_row = 0
        return found

    def take(self, key: Hashable, variant: Variant) -> None:
        """Keeps a form of a recording that exists already: nothing was recorded for it."""
        self.by_key.setdefault(key, []).append(variant)
        self.last = variant

    def add(
        self,
        key: Hashable,
        names: list[str],
        variant: Variant,
        change: ValueChanged | None,
        model: str,
    ) -> None:
        """Keeps a recording, and drops the signature used longest ago if there are too many.

        ``change``: the number that is another one; ``model``: what last changed on the model.

        Raises:
            CaptureError: no signature came twice in a row of MAX_SIGNATURES calls.
        """
        if change is not None:
            self.reasons.append(f"{change}{self._line(key, change)}")
        elif self.by_key and key not in self.by_key:
            self.new_in_a_row += 1
            reason = describe_key_change(next(reversed(self.by_key)), key, names, model)
            self.reasons.append(reason)
            if self.new_in_a_row >= MAX_SIGNATURES:
                raise CaptureError(
                    f"the last {self.new_in_a_row} calls all had a signature of their own; this one "
                    f"differs from the one before in: {reason}.",
                    where=self.model_name,
                    hint="Pass what changes every step as a tensor, not as a Python number.",
                )
        self.take(key, variant)
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
                f"{change}{self._line(key, change)} (after {MAX_VALUES} recordings).",
                where=self.model_name,
                hint="Name the module that reads it in leaves=[...] of compile(): it is then called "
                "whole. In the model's own forward, put the code into a sub-module first.",
            ) from change

    def _line(self, key: Hashable, change: ValueChanged) -> str:
        """Where the forward reads the number that changed."""
        for variant in self.by_key.get(key, []):
            for node in variant.captured.graph.nodes:
                if "guard" in node.meta and change.expected in node.args[1:]:
                    return f" ({node.meta['guard']})"
        return ""

    def replace(self, old: Variant, new: Variant) -> None:
        """Puts a variant planned anew in the place of the old one."""
        for found in self.by_key.values():
            found[:] = [new if v is old else v for v in found]
        self.last = new
