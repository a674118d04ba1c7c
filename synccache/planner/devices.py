"""Devices as a plan sees them: published peak rates, for estimates where nothing ran.

An estimate is a roofline: an operation takes as long as its arithmetic at the peak rate of its dtype,
or as moving its operands and result once at the peak bandwidth, whichever is longer. No kernel
reaches both peaks, so estimated seconds are a lower bound, good for ratios; they are never printed
as if they had been measured.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from synccache.errors import PlanError
from synccache.planner.quantities import checked_amount, checked_text

_TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Peak rates of one device.

    Units:  flops_per_second by dtype name, two operations for each multiply-add, without sparsity;
            a dtype that is not listed runs at the float32 rate. bytes_per_second of its own memory.
    """

    name: str
    flops_per_second: Mapping[str, float] = field(hash=False)
    bytes_per_second: float
    source: str

    def __post_init__(self) -> None:
        checked_text(self.name, "the name of a device")
        if "float32" not in self.flops_per_second:
            raise PlanError(
                f"device {self.name!r} states no float32 rate, which others fall back on"
            )
        for dtype, rate in self.flops_per_second.items():
            checked_amount(rate, f"flops_per_second of {dtype} on {self.name!r}")
        checked_amount(self.bytes_per_second, f"bytes_per_second of {self.name!r}")

    def seconds(self, flops: int, traffic_bytes: int, dtype: str) -> float:
        """The estimate for one operation; ``traffic_bytes`` it reads and writes.

        >>> DEVICES["a100"].seconds(312 * 10**12, 0, "bfloat16")
        1.0
        """
        rate = self.flops_per_second.get(dtype, self.flops_per_second["float32"])
        return max(flops / rate, traffic_bytes / self.bytes_per_second)

    def __str__(self) -> str:
        rate = self.flops_per_second.get("bfloat16", self.flops_per_second["float32"])
        return (
            f"{self.name}, {rate / _TERA:.0f} TFLOP/s in bfloat16, "
            f"{self.bytes_per_second / _TERA:.2f} TB/s"
        )


def _device(name: str, half: float, single: float, terabytes: float, source: str) -> Device:
    rates = {"bfloat16": half * _TERA, "float16": half * _TERA, "float32": single * _TERA}
    return Device(
        name=name, flops_per_second=MappingProxyType(rates),
        bytes_per_second=terabytes * _TERA, source=source,
    )  # fmt: skip


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "h100": _device(
            "NVIDIA H100 SXM", 989.4, 66.9, 3.35, "NVIDIA H100 data sheet, dense tensor-core rates"
        ),
        "h200": _device(
            "NVIDIA H200 SXM", 989.4, 66.9, 4.8, "NVIDIA H200 data sheet, dense tensor-core rates"
        ),
        "a100": _device("NVIDIA A100 80GB SXM", 312.0, 19.5, 2.039, "NVIDIA A100 data sheet"),
        "l40s": _device("NVIDIA L40S", 362.05, 91.6, 0.864, "NVIDIA L40S data sheet, dense rates"),
        "rtx4090": _device(
            "NVIDIA GeForce RTX 4090", 165.2, 82.6, 1.008,
            "NVIDIA Ada architecture paper, appendix A, float32 accumulation",
        ),
    }
)  # fmt: skip
"""Device by short name: data, from the vendors' own sheets."""

DEFAULT_DEVICE = "h100"


def device(name: str | Device) -> Device:
    """The device of this short name.

    Raises:  PlanError naming what is known.
    """
    if isinstance(name, Device):
        return name
    if not isinstance(name, str) or name.lower() not in DEVICES:
        near = difflib.get_close_matches(str(name).lower(), DEVICES, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise PlanError(
            f"no device is called {name!r}.",
            hint=f"{meant}Known are {', '.join(DEVICES)}; or pass a synccache.planner.devices.Device.",
        )
    return DEVICES[name.lower()]
