"""Ways to keep a held tensor: in which form, in which memory, at what price.

Bytes are exact: `synccache.fx.held` stores what `stored_bytes` counts, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_text

SCALE_BYTES = 4
"""A float32 scale beside float8 numbers."""

_BYTES_PER_GB = 10**9


class Form(StrEnum):
    """The numbers that stand for a held tensor."""

    AS_COMPUTED = "as computed"
    """The model's own dtype: nothing is lost."""
    BFLOAT16 = "bfloat16"
    """Half the bytes of a float32 model; 8 bits of mantissa."""
    FLOAT8 = "float8"
    """e4m3 with one float32 scale for each token (each vector of channels)."""
    FLOAT8_TENSOR = "float8, one scale"
    """e4m3 with one float32 scale for the whole tensor: no bytes for tokens, less exact."""


class Place(StrEnum):
    """Whose memory holds it."""

    DEVICE = "device"
    """The model's own device."""
    HOST = "host"
    """Main memory, page-locked where the device is a CUDA device; copied back before it is used."""
    TURNS = "device in turns"
    """On the device while its guidance branch runs, in main memory while another does."""


def stored_bytes(form: Form, *, elements: int, vectors: int, itemsize: int) -> int:
    """Bytes of one tensor of `elements` numbers in `vectors` vectors of channels, kept in `form`.

    Units:  itemsize is the bytes of one number as computed.

    >>> shape = {"elements": 6 * 100, "vectors": 6, "itemsize": 2}
    >>> [stored_bytes(form, **shape) for form in Form]
    [1200, 1200, 624, 604]
    """
    return {
        Form.AS_COMPUTED: elements * itemsize,
        Form.BFLOAT16: elements * 2,
        Form.FLOAT8: elements + vectors * SCALE_BYTES,
        Form.FLOAT8_TENSOR: elements + SCALE_BYTES,
    }[form]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A form, a place, and their price.

    Units:  drift added on each skipped step (relative L1 error of the form); seconds_per_gb on each
            skipped forward, for each 10**9 bytes as computed (conversion, transfer).
    """

    name: str
    form: Form = Form.AS_COMPUTED
    place: Place = Place.DEVICE
    drift: float = 0.0
    seconds_per_gb: float = 0.0

    def __post_init__(self) -> None:
        checked_text(self.name, "name of a storage")
        if not isinstance(self.form, Form) or not isinstance(self.place, Place):
            raise PlanError(
                f"storage {self.name!r} needs a Form and a Place, "
                f"not {self.form!r} and {self.place!r}"
            )
        checked_amount(self.drift, f"drift of storage {self.name!r}")
        checked_amount(self.seconds_per_gb, f"seconds_per_gb of storage {self.name!r}")

    def seconds(self, size: int) -> float:
        """Seconds lost on one skipped forward for a tensor of `size` bytes as computed."""
        return self.seconds_per_gb * size / _BYTES_PER_GB

    def copies(self, guidance_branches: int) -> int:
        """How many guidance branches' tensors lie on the device at once."""
        return {Place.DEVICE: guidance_branches, Place.TURNS: 1, Place.HOST: 0}[self.place]


STAGED = 2
"""Regions kept on the host whose copies are on the device at once: the one in use and the next."""

_HOST_SECONDS_PER_GB = 0.04  # 25 GB/s: page-locked copies over PCIe 4.0 x16; measured where CUDA is
_CONVERT_SECONDS_PER_GB = 0.002  # 1.5 bytes read and written for each byte, at about 1 TB/s

# Relative L1 error of normally distributed numbers: tests/test_fx_held.py measures it again.
_BFLOAT16_ERROR = 0.0014
_FLOAT8_ERROR = 0.0225

AS_COMPUTED = Storage(name="as computed")
"""On the device, as computed: the default, and what a chain without a choice of storage means."""
BFLOAT16 = Storage(
    name="bfloat16", form=Form.BFLOAT16, drift=_BFLOAT16_ERROR,
    seconds_per_gb=_CONVERT_SECONDS_PER_GB,
)  # fmt: skip
FLOAT8 = Storage(
    name="float8", form=Form.FLOAT8, drift=_FLOAT8_ERROR, seconds_per_gb=_CONVERT_SECONDS_PER_GB
)
TURNS = Storage(name="in turns", place=Place.TURNS, seconds_per_gb=_HOST_SECONDS_PER_GB)
HOST = Storage(name="host", place=Place.HOST, seconds_per_gb=_HOST_SECONDS_PER_GB)
FLOAT8_HOST = Storage(
    name="float8 on the host", form=Form.FLOAT8, place=Place.HOST, drift=_FLOAT8_ERROR,
    seconds_per_gb=_HOST_SECONDS_PER_GB / 2 + _CONVERT_SECONDS_PER_GB,
)  # fmt: skip

STORAGES = (AS_COMPUTED, BFLOAT16, FLOAT8, TURNS, HOST, FLOAT8_HOST)
"""Those that may be asked for by name."""


def storages_named(wanted: Sequence[str | Storage]) -> tuple[Storage, ...]:
    """The storages of these names; a `Storage` stands for itself.

    Raises:  PlanError naming those there are.
    """
    known = {storage.name: storage for storage in STORAGES}
    if isinstance(wanted, str) or not wanted:
        raise PlanError(f"storages must be a list of at least one name, not {wanted!r}")
    for name in wanted:
        if not isinstance(name, Storage) and name not in known:
            raise PlanError(f"there is no storage {name!r}; there are {', '.join(known)}")
    return tuple(s if isinstance(s, Storage) else known[s] for s in wanted)
